"""Manifests as values: written and read back the same, open to later fields, and the first format still read."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest

from tests.bundles import seal
from tests.sdk.test_hostile_manifests import BUNDLES, LABELS, PICTURE, QUESTION
from tvp import sdk
from tvp.sdk.errors import BundleError
from tvp.sdk.formats.archive import unpack
from tvp.sdk.formats.calibration import LabelOffsets
from tvp.sdk.formats.integrity import FileEntry
from tvp.sdk.formats.layout import CaptionTemplates, PromptLayout
from tvp.sdk.formats.manifest import (
    CausalManifest,
    ContrastiveManifest,
    LensManifest,
    ParityFacts,
    PixelFacts,
    Provenance,
    Seq2SeqManifest,
    TaskManifest,
    read_base_manifest,
    read_lens_manifest,
    read_task_manifest,
    write_manifest,
)

COMMON = {"family": "a", "precision": "int8", "device": "cuda", "made_from": "b", "files": {"x/y": FileEntry(3, "c")}}
LAYOUT = PromptLayout("<s>{image} {question}", " {answer}", "<image>", (2, 7), apart=True)
SIZES = {"n_image_tokens": 4, "n_text": 5, "n_layers": 6, "n_kv_heads": 7, "head_size": 8, "n_vocab": 9}
BASES = [
    CausalManifest(**COMMON, **SIZES, layout=LAYOUT, n_positions=99, position_axes=3, n_causal=1),
    Seq2SeqManifest(**COMMON, **SIZES, layout=LAYOUT, n_positions=0, n_connector_positions=3, start_token=1),
    ContrastiveManifest(
        **COMMON, captions=CaptionTemplates("{question} {answer}", "ä"), n_features=3, scale=1 / 3, bias=-2.0,
        scoring="sigmoid", n_positions=7, pad_token=0,
    ),
]  # fmt: skip
TASK = TaskManifest(
    name="ä", question="?", labels=("a", "b"), max_new_tokens=3, base="d", files={"x": FileEntry(0, "e")},
    parity=ParityFacts(n_cases=3, logits=1e-7, pixels_within_a_level=0.5, max_loss=0.25),
    provenance=Provenance(model="m", prompt={"steps": [1, {"a": 0.1}]}, versions={"torch": "2"}),
    calibration=(LabelOffsets("?", ("b", "a"), (-1 / 3, 0.0), 64),), requires=("calibration",),
    pixels=PixelFacts(size=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), filter="lanczos"), prompt=("lens", "frame"),
)  # fmt: skip
LENS = LensManifest(
    name="ä", pixels=PixelFacts(size=64, mean=(0.5, 1 / 3, 0.0), std=(1.0, 0.2, 0.3), filter=""), prompt=("lens",),
    files={"x": FileEntry(0, "e")}, parity=ParityFacts(n_cases=3, pixels=0.5), provenance=Provenance(model="m"),
)  # fmt: skip
PAIRS = [(manifest, read_base_manifest) for manifest in BASES] + [
    (TASK, read_task_manifest),
    (LENS, read_lens_manifest),
]


@pytest.mark.parametrize(("manifest", "read"), PAIRS, ids=lambda value: getattr(value, "kind", ""))
def test_what_is_written_is_read_back(manifest, read, tmp_path):
    file = tmp_path / "manifest.json"
    digest = write_manifest(manifest, file)
    assert read(file) == replace(manifest, digest=digest)
    # The writer's bytes are those of the documented rule, and no field has the value that stands where it is absent.
    content = json.loads(file.read_bytes())
    assert file.read_bytes() == seal(content)
    assert {field.name for field in fields(manifest)} - {"digest"} <= content.keys()


@pytest.mark.parametrize(("manifest", "read"), PAIRS, ids=lambda value: getattr(value, "kind", ""))
def test_later_fields_are_passed_over_and_needed_features_are_refused(manifest, read, tmp_path):
    file = tmp_path / "manifest.json"
    write_manifest(manifest, file)
    content = json.loads(file.read_bytes())
    file.write_bytes(seal({**content, "states": [{"name": "x"}], "moments": {"a": 1.5}}))
    assert replace(read(file), digest="") == manifest
    file.write_bytes(seal({**content, "requires": ["states"]}))
    with pytest.raises(BundleError, match=r"needs states, which this TVP does not know\. Update TVP"):
        read(file)
    file.write_bytes(seal(content).replace(b'"format": 2', b'"format": 3'))
    with pytest.raises(BundleError, match=r"is of format 3, and this TVP reads up to 2\. Update TVP"):
        read(file)


@pytest.mark.parametrize(("manifest", "read"), PAIRS, ids=lambda value: getattr(value, "kind", ""))
def test_a_changed_byte_is_noticed(manifest, read, tmp_path):
    file = tmp_path / "manifest.json"
    write_manifest(manifest, file)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.permutation(len(whole))[:150]:
        broken = bytearray(whole)
        broken[place] ^= rng.integers(1, 256)
        file.write_bytes(broken)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            read(file)


def test_numbers_that_json_has_not_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(replace(BASES[2], scale=float("nan")), tmp_path / "manifest.json")
    with pytest.raises(BundleError, match="64 zeros"):
        write_manifest(replace(TASK, question="0" * 64), tmp_path / "manifest.json")
    assert not list(tmp_path.iterdir())


# The first format.


def seal_1(content):
    """A manifest as the first format sealed it: a digest over canonical JSON without the digest."""

    def canonical(value):
        return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    content = {key: value for key, value in content.items() if key != "sha256"}
    return canonical(content | {"sha256": hashlib.sha256(canonical(content)).hexdigest()})


@pytest.fixture(scope="module", params=["llava_next", "instructblip-t5"])
def first(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "bundle"
    unpack(BUNDLES.parent / "format-1" / f"{request.param}.tvp", folder)
    contents = [json.loads((folder / name).read_bytes()) for name in ("manifest.json", "base/manifest.json")]
    assert [content["format"] for content in contents] == [1, 1]
    assert [seal_1(content) for content in contents] == [
        (folder / name).read_bytes() for name in ("manifest.json", "base/manifest.json")
    ]
    return folder, *contents


def answers(folder):
    with sdk.load(folder) as task:
        ranked = [row.label for row in task.rank(PICTURE, QUESTION, labels=LABELS)]
        return task.ask(PICTURE, QUESTION, max_new_tokens=6).tokens, ranked, task.labels, task.manifest.question


def test_a_bundle_of_the_first_format_becomes_one_of_the_second_and_answers_the_same(first, tmp_path):
    folder, task, base = first
    expected = answers(folder)
    assert expected[2:] == (tuple(task["task"]["labels"]), task["task"]["question"])
    new = read_base_manifest(folder / "base" / "manifest.json")
    assert new.kind == ("causal" if base["start_token"] < 0 else "seq2seq")
    assert new.digest == base["sha256"]
    copy = shutil.copytree(folder, tmp_path / "copy")
    digest = write_manifest(new, copy / "base" / "manifest.json")
    write_manifest(replace(read_task_manifest(copy / "manifest.json"), base=digest), copy / "manifest.json")
    assert json.loads((copy / "manifest.json").read_bytes())["format"] == 2
    assert answers(copy) == expected


ODD = (None, True, -1, 2**31, 0.5, "x", [], {"a": 1})


@pytest.mark.parametrize("which", ["task", "base"])
def test_any_field_of_the_first_format_may_be_odd(first, which, tmp_path):
    """Each field in turn is missing or nonsense: a BundleError that names a file, or a value that is read."""
    _, task, base = first
    content, read = (task, read_task_manifest) if which == "task" else (base, read_base_manifest)
    file, refused = tmp_path / "manifest.json", []
    places = [(content, key) for key in content if key != "sha256"]
    places += [(inner, key) for inner in content.values() if isinstance(inner, dict) for key in inner]
    for node, key in places:
        kept = node[key]
        for value in (..., *ODD):
            if value is ...:
                del node[key]
            else:
                node[key] = value
            file.write_bytes(seal_1(content))
            try:
                read(file)
            except BundleError as error:
                refused.append(str(error))
        node[key] = kept
    assert len(refused) > 4 * len(content)
    assert all("manifest.json" in message for message in refused)


def test_the_first_format_is_sealed_in_its_own_way(first, tmp_path):
    _, task, _ = first
    file = tmp_path / "manifest.json"
    whole = seal_1(task)
    for broken in (
        whole + b"\n",
        whole.replace(b"  ", b" ", 1),
        seal({**task}).replace(b'"format": 2', b'"format": 1'),
    ):
        file.write_bytes(broken)
        with pytest.raises(BundleError, match="damaged or was edited"):
            read_task_manifest(file)
    rng = np.random.default_rng(0)
    for place in rng.integers(len(whole), size=50):
        broken = bytearray(whole)
        broken[place] ^= 1
        file.write_bytes(broken)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            read_task_manifest(file)
