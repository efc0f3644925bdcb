"""Files of torch.save that a stranger wrote: real ones are read, and none takes more memory than it has bytes."""

from __future__ import annotations

import io
import os
import pickle
import resource
import tracemalloc
import zipfile
from collections import Counter

import pytest
import torch

from tests.tiny import save_tiny
from tvp.sdk.errors import DataError, ModelError
from tvp.trainer import convert, run
from tvp.trainer.tensor_files import load_tensors
from tvp.trainer.train import TrainConfig, train

NUMBERS = 2**40  # more than any machine here holds


def save(file, content, **options):
    torch.save(content, file, **options)
    return file


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_whatever_torch_saves_of_tensors_is_read(tmp_path, new, mapped):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    marked = torch.nn.Parameter(torch.ones(2))
    marked.mark = 3
    types = [torch.bfloat16, torch.half, torch.double, torch.int8, torch.bool, torch.complex64]
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameters": [torch.nn.Parameter(torch.ones(3)), marked],
        "types": [torch.ones(2, dtype=dtype) for dtype in types + ([torch.uint16, torch.float8_e4m3fn] if new else [])],
        "shared": [shared := torch.arange(12.0).view(3, 4), shared.T, shared[1:, ::2], shared[:0], shared.sum()],
        "expanded": torch.arange(4).expand(1, -1),
        "plain": [1, 2.5, "é", None, True, (1, 2), {3}, 10**30, 1j, Counter("aab"), torch.float16, torch.Size([1, 2])],
    }
    file = save(tmp_path / "a.pt", content, _use_new_zipfile_serialization=new)
    found = load_tensors(file, mapped=mapped)
    torch.testing.assert_close(found["shared"], content["shared"], rtol=0, atol=0)
    torch.testing.assert_close(found["optimizer"], content["optimizer"], rtol=0, atol=0)
    assert found["plain"] == content["plain"]
    assert [t.dtype for t in found["types"]] == [t.dtype for t in content["types"]]


class Declared:
    """A tensor of another shape than its numbers have."""

    def __init__(self, shape, strides, offset=0, n=4):
        self._said = torch.zeros(n)._typed_storage(), offset, shape, strides, False, {}

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self._said


class Call:
    """What calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def rewritten(file, change, how=zipfile.ZIP_STORED):
    """Write a file of torch.save again, with its pickle changed."""
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", how) as new:
        for name, data in members.items():
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)


def packed(file):
    save(file, {"a": torch.zeros(2**20)})
    rewritten(file, lambda data: data, zipfile.ZIP_DEFLATED)


def more(data):
    """Let a pickle declare 60,000 numbers in the place of 1,000."""
    said = pickle.dumps(1000, protocol=2)[2:-1]
    assert data.count(said) == 1
    return data.replace(said, pickle.dumps(60_000, protocol=2)[2:-1])


def more_numbers(file):
    save(file, {"a": torch.zeros(1000, dtype=torch.uint8)[:0]})
    rewritten(file, more)


def more_numbers_in_a_row(file):
    save(file, {"a": torch.zeros(1000, dtype=torch.uint8)[:0]}, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    file.write_bytes(more(data[:-1008]) + data[-1008:])  # the numbers, and before them their count


def in_front(file):
    data = save(file, {"a": torch.zeros(2)}).read_bytes()
    inner = io.BytesIO()
    torch.save({"b": torch.zeros(2)}, inner)
    file.write_bytes(data + inner.getvalue())


def repeated(file):
    numbers = torch.zeros(2**16)
    save(file, [numbers[i:] for i in range(100)])


HOSTILE = {
    "packed": (packed, "is packed"),
    "more numbers": (more_numbers, "declares 60,000 bytes of numbers for data/0, which has 1000"),
    "more numbers, old": (more_numbers_in_a_row, "declares 60,000 bytes"),
    "larger": (lambda f: save(f, Declared((NUMBERS,), (1,))), "a tensor of shape"),
    "larger, old": (
        lambda f: save(f, Declared((NUMBERS,), (1,)), _use_new_zipfile_serialization=False), "a tensor of shape"
    ),
    "expanded": (lambda f: save(f, torch.zeros(1).expand(NUMBERS)), "a tensor of shape"),
    "behind": (lambda f: save(f, Declared((1,), (1,), offset=4)), "a tensor of shape"),
    "strides": (lambda f: save(f, Declared((2, 2), (1, 3))), "a tensor of shape"),
    "negative": (lambda f: save(f, Declared((-1,), (1,))), "unknown way"),
    "repeated": (repeated, "many times larger"),
    "bytes": (lambda f: save(f, Call(bytearray, NUMBERS)), "bytearray, which is no tensor"),
    "empty tensor": (lambda f: save(f, Call(torch.empty, NUMBERS)), "which is no tensor"),
    "code": (lambda f: save(f, Call(os.system, "true")), "system, which is no tensor"),
    "in front": (in_front, "Something is before"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_declares_more_than_it_holds_is_refused(tmp_path, kind):
    make, says = HOSTILE[kind]
    make(tmp_path / "a.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(pickle.UnpicklingError, match=says):
        load_tensors(tmp_path / "a.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_memo_is_no_larger_than_its_file(tmp_path):
    """The unpickler in C makes a table up to the largest number of an entry, here of 32 GB."""
    save(tmp_path / "a.pt", {"a": torch.zeros(2)})
    rewritten(tmp_path / "a.pt", lambda data: b"\x80\x02]r\xff\xff\xff\xff.")
    assert load_tensors(tmp_path / "a.pt") == []


@pytest.mark.parametrize(
    "code", [b"\x96" + bytes(4) + b"\x10\0\0\0", b"\x8e" + bytes(4) + b"\x10\0\0\0", b"X\xff\xff\xff\xff"]
)
def test_no_room_is_made_for_a_text_or_bytes_that_are_not_there(tmp_path, code):
    """A byte array and bytes of 64 GB, and a text of 4 GB; in both formats."""
    save(tmp_path / "new.pt", [])
    rewritten(tmp_path / "new.pt", lambda data: b"\x80\x05" + code + b".")
    data = save(tmp_path / "old.pt", "here", _use_new_zipfile_serialization=False).read_bytes()
    (tmp_path / "old.pt").write_bytes(data.replace(b"X\4\0\0\0here", code))
    for name in ("new.pt", "old.pt"):
        tracemalloc.start()
        with pytest.raises((pickle.UnpicklingError, KeyError, EOFError)):
            load_tensors(tmp_path / name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20


def test_convert_and_training_tell_it_in_their_own_words(tmp_path):
    file = save(tmp_path / "a.bin", {"a": torch.zeros(1).expand(NUMBERS)})
    with pytest.raises(ModelError, match=r"a\.bin cannot be read: It declares a tensor of shape"):
        convert._read(file)
    for name in ("pipe.bin", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ModelError, match=rf"{name} is a folder, a pipe or a device"):
            convert._read(tmp_path / name)
    with pytest.raises(pickle.UnpicklingError, match="It is a folder, a pipe or a device"):
        load_tensors(tmp_path / "pipe.bin")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's configuration, its folder and what its checkpoint holds."""
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig(
        (str(save_tiny("llava", folder / "llava")),), "evp", canvas=32, inner=20, n_train=8, n_validation=2, batch=2,
        steps=2, fca=0, tse=0, update="adam", lr=0.1, keep="last",
    )  # fmt: skip
    train(config, folder / "out", quiet=True)
    return config, folder / "out", torch.load(folder / "out" / run.CHECKPOINT, weights_only=True)


@pytest.mark.parametrize(
    "change",
    [
        {"values": torch.zeros(1).expand(NUMBERS)},
        {"values": [torch.zeros(3, 4, 4)]},
        {"values": "x"},
        {"best_values": [torch.zeros(1)]},
        {"update": {"moments": [(torch.zeros(3, 32, 32), torch.zeros(1))]}},
        {"update": {}},
        {"step": "2"},
        {"steps": [1]},
        {"validations": [{"accuracy": "x" * 10}]},
        {"identity": '{"config": {}, "sources": []}'},
        {"identity": "[" * 100_000},
        {"more": 1},
    ],
)
def test_a_checkpoint_that_is_not_this_runs_is_told_before_training(trained, change):
    config, folder, state = trained
    torch.save(state | change, folder / run.CHECKPOINT)
    with pytest.raises(DataError, match=r"checkpoint\.pt is damaged.*--restart"):
        train(config, folder, quiet=True)
