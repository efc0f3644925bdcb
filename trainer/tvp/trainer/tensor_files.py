"""Reading tensors from files of `torch.save` that a stranger may have written.

`torch.load(weights_only=True)` runs no code, but it believes what a file declares: a packed member may be a thousand
times its size, and a tensor may be larger than its numbers. So the file is gone through first, without its numbers.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import BYTEARRAY8
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch
from torch.serialization import StorageType

_ZIP = b"PK\x03\x04"  # the first bytes of torch's format; an older one is a row of pickles
MOST_VIEWS = 8  # times the file's size: all tensors together, some of which share their numbers
# What may be called. Not `bytearray(n)`, and not `_codecs.encode`, which doubles a text each time.
_HARMLESS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): Counter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("builtins", "complex"): complex,
    ("__builtin__", "complex"): complex,
}


def load_tensors(file: Path, device: torch.device | str = "cpu", mapped: bool = False) -> Any:
    """Read a file of `torch.save` that holds tensors in lists and dictionaries.

    Args:
        file: the file.
        device: of the tensors. Default `cpu`.
        mapped: map the file instead of reading it, where its format allows that. Default False.

    Raises:
        UnpicklingError: the file holds more than tensors, or declares more than it holds.
        Exception: whatever else its damage leads to.
    """
    in_zip = check_tensors(file)
    return torch.load(file, map_location=device, weights_only=True, mmap=mapped and in_zip)


def check_tensors(file: Path) -> bool:
    """Go through a file of `torch.save` without its numbers; raises as `load_tensors` does.

    Returns:
        Whether it is of torch's newer format, which can be mapped.
    """
    if file.exists() and not file.is_file():  # a pipe may never begin
        raise _refused("it is a folder, a pipe or a device")
    with open(file, "rb") as stream:
        in_zip = stream.read(len(_ZIP)) == _ZIP
        stream.seek(0)
        (_check_zip if in_zip else _check_row)(stream)
    return in_zip


def _check_zip(stream: BinaryIO) -> None:
    with zipfile.ZipFile(stream) as archive:
        members, size = archive.infolist(), os.fstat(stream.fileno()).st_size
        for member in members:
            # torch writes numbers as they are, so that they can be mapped.
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise _refused(f"its member {member.filename!r} is packed, which torch never does")
        # Members that lie over each other would be larger together. Bytes before or behind could hide a second list.
        if sum(member.file_size for member in members) > size or archive.comment:
            raise _refused("its members are larger than the file, or something is behind them")
        if min((member.header_offset for member in members), default=1) != 0:
            raise _refused("something is before its members")
        sizes = {member.filename.partition("/")[2]: member.file_size for member in members}
        if len(sizes) != len(members) or "data.pkl" not in sizes:
            raise _refused("it has no data.pkl, or two members of one name")
        top = members[0].filename.partition("/")[0]
        with archive.open(f"{top}/data.pkl") as data:
            reader = _Reader(io.BytesIO(data.read()), size)
    reader.load()
    for key, n_bytes in reader.storages.items():
        if sizes.get(f"data/{key}") != n_bytes:
            raise _refused(
                f"it declares {n_bytes:,} bytes of numbers for data/{key}, which has {sizes.get(f'data/{key}')}"
            )


def _check_row(stream: BinaryIO) -> None:
    """Check torch's format before 1.6: pickles of a magic number, a version, the system, the content; then numbers."""
    size = os.fstat(stream.fileno()).st_size
    bounded = _Bounded(stream, size)
    for _ in range(4):
        reader = _Reader(bounded, size)
        reader.load()
    declared = sum(reader.storages.values())
    if declared > size:
        raise _refused(f"it declares {declared:,} bytes of numbers, but has {size:,} in all")


def _refused(why: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"{why[0].upper()}{why[1:]}. Do not use it.")


class _Bounded:
    """A file that is not asked for more than it has, since room for that would be made first."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size
        self.readline = stream.readline

    def read(self, n: int) -> bytes:
        if n > self._size:
            raise _refused("it declares a text that is longer than the file")
        return self._stream.read(n)


class _Storage(NamedTuple):
    """Numbers in a row, of which a file holds the bytes."""

    n_bytes: int
    width: int  # bytes of a number


# The unpickler in Python keeps its memo in a dictionary. The one in C makes a table as long as a file says.
class _Reader(pickle._Unpickler):
    """Goes through a pickle and makes no tensor.

    Args:
        stream: the pickle.
        size: of the whole file.

    Attributes:
        storages: bytes that each storage must have, by its key.
    """

    # Room for a byte array would be made before its bytes are read; torch reads none.
    dispatch: ClassVar = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != BYTEARRAY8[0]}

    def __init__(self, stream: BinaryIO | _Bounded, size: int) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storages: dict[str, int] = {}
        self._left = MOST_VIEWS * size

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in self._MAKERS:
            return partial(self._MAKERS[name], self)
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        if module in ("torch", "torch.storage"):
            if name == "UntypedStorage":
                return torch.uint8
            if name.endswith("Storage"):
                return StorageType(name).dtype  # type: ignore[no-untyped-call]
            if isinstance(dtype := vars(torch).get(name), torch.dtype):
                return dtype
        raise _refused(f"it holds a {module}.{name}, which is no tensor")

    def persistent_load(self, saved: Any) -> _Storage:
        kind, dtype, key, _, n, *_ = saved
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(n) is not int or n < 0:
            raise _refused("it declares numbers in an unknown way")
        n_bytes = n * dtype.itemsize
        if self.storages.setdefault(str(key), n_bytes) != n_bytes:
            raise _refused(f"it declares data/{key} with two sizes")
        return _Storage(n_bytes, dtype.itemsize)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> None:
        numbers = [offset, *shape, *strides]
        if not isinstance(storage, _Storage) or any(type(number) is not int or number < 0 for number in numbers):
            raise _refused("it declares a tensor in an unknown way")
        n, there = math.prod(shape), storage.n_bytes // storage.width
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if n and (n > there or last >= there):
            raise _refused(f"it declares a tensor of shape {tuple(shape)}, for which it has {there:,} numbers")
        self._left -= n * storage.width
        if self._left < 0:
            raise _refused("its tensors are together many times larger than the file")

    def _typed_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> None:
        dtype = more[2]  # behind `requires_grad` and `backward_hooks`
        if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
            raise _refused("it declares a tensor in an unknown way")
        self._tensor(storage._replace(width=dtype.itemsize), offset, shape, strides)

    def _parameter(self, *parts: Any) -> None:
        """Its tensor has been checked already."""

    _MAKERS: ClassVar[dict[str, Callable[..., None]]] = {
        "_rebuild_tensor": _tensor,
        "_rebuild_tensor_v2": _tensor,
        "_rebuild_tensor_v3": _typed_tensor,
        "_rebuild_parameter": _parameter,
        "_rebuild_parameter_with_state": _parameter,
    }
