"""The two manifests: what a bundle and its base say about themselves, read strictly.

A manifest is canonical JSON (sorted keys, two spaces) with the sha256 of its own content, so that a
single changed byte anywhere in a bundle is noticed, in the manifest too.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from .errors import BundleError
from .formats.layout import CaptionTemplates, PromptLayout

FORMAT = 1
MAX_PLACES = 8  # of a question in a prompt; a template may repeat it
MAX_MANIFEST = 2**21  # bytes; a real one has some thousands
SETTLED = 2 * 10**9  # ns; the coarsest clock of a file system in use is FAT's
Identity = tuple[int, int, int, int, int, str]  # device, inode, size, times of content and inode in ns, sha256
T = TypeVar("T")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class BaseManifest:
    """One exported frozen model.

    n_image_tokens: image embeddings a picture. n_text: their width, and that of token embeddings.
    n_positions: the most tokens, image included, that the language model can read; 0 where nothing bounds it.
    start_token: what the decoder behind an encoder starts from; -1 where there is no encoder.
    position_axes: positions a token has: 1, 2 (place, and place behind the prompt, as VisualGLM's), or 3 (time, row,
        column, as Qwen2-VL's).
    n_causal: -1 where every token sees only what is before it; else how many at a prompt's end (0 or 1) do so, as an
        answer's tokens, while all others of the prompt see each other.
    n_connector_positions: the most tokens of a question that a connector of its own reads; 0 for none.
    device: what its graphs were made for, `cpu`, `cuda` or `tensorrt`; '' in the first bundles, which do not say.
    made_from: digest of the model and the versions that it was made from, by which an export finds it again.
    """

    family: str
    precision: str
    layout: PromptLayout
    n_image_tokens: int
    n_text: int
    n_layers: int
    n_kv_heads: int
    head_size: int
    n_vocab: int
    n_positions: int
    position_axes: int
    n_causal: int
    start_token: int
    n_connector_positions: int
    device: str
    made_from: str
    files: Mapping[str, FileEntry]
    digest: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The files that a base of this kind consists of, at least."""
        names = ["vision_encoder.onnx", "decoder_model_merged.onnx", "embed_tokens.npy", "tokenizer.json"]
        names += ["connector.onnx", "connector_tokenizer.json"] if self.n_connector_positions else []
        names += ["encoder_model.onnx"] if self.start_token >= 0 else []
        return tuple(names)


@dataclass(frozen=True)
class ContrastiveManifest:
    """One exported frozen model that only chooses among given answers (CLIP, SigLIP): `kind` is `closed`.

    n_features: width of the unit features of pictures and of texts.
    scale, bias: what their cosine is multiplied by, and what is added.
    scoring: `softmax`, log-probabilities among the answers, or `sigmoid`, of each answer by itself.
    n_positions: the most tokens of a text; what is longer is cut, before its end token.
    pad_token: id of the token that texts are filled up with, to n_positions; -1 where they are not.
    device, made_from: see `BaseManifest`.
    """

    family: str
    precision: str
    captions: CaptionTemplates
    n_features: int
    scale: float
    bias: float
    scoring: str
    n_positions: int
    pad_token: int
    device: str
    made_from: str
    files: Mapping[str, FileEntry]
    digest: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The files that a base of this kind consists of, at least."""
        return ("vision_encoder.onnx", "text_encoder.onnx", "tokenizer.json")


@dataclass(frozen=True)
class TaskManifest:
    """A task ready to run, apart from its base.

    parity: what the export measured. provenance: model, prompt and versions that it was made of.
    """

    name: str
    question: str
    labels: tuple[str, ...]
    max_new_tokens: int
    base_digest: str
    files: Mapping[str, FileEntry]
    parity: Mapping[str, Any]
    provenance: Mapping[str, Any]


def seal(content: dict[str, Any]) -> bytes:
    """Canonical bytes of a manifest, its own digest included."""
    content = {**content, "format": FORMAT}
    content["sha256"] = _digest(content)
    return _canonical(content)


def read_task_manifest(file: Path) -> TaskManifest:
    content = _read(file)
    task, base = _take(content, "task", dict, file), _take(content, "base", dict, file)
    return TaskManifest(
        name=_take(task, "name", str, file),
        question=_take(task, "question", str, file),
        labels=_texts(task, "labels", file),
        max_new_tokens=_positive(task, "max_new_tokens", file),
        base_digest=_take(base, "digest", str, file),
        files=_files(content, file),
        parity=_take(content, "parity", dict, file),
        provenance=_take(content, "provenance", dict, file),
    )


def read_base_manifest(file: Path) -> BaseManifest | ContrastiveManifest:
    content = _read(file)
    if "kind" in content:
        _one_of(content, "kind", ("closed",), file)
        return _closed(content, file)
    layout = _take(content, "layout", dict, file)
    end = _take(layout, "end", list, file)
    if not end or not all(type(token) is int and 0 <= token < 2**31 for token in end):
        raise BundleError(f"{file}: layout.end must list at least one token id.")
    prompt = _take(layout, "prompt", str, file)
    # What is before the question is kept from one question to the next, so that no question may be in it.
    before, _, after = prompt.partition("{question}")
    if not 1 <= prompt.count("{question}") <= MAX_PLACES or before.count("{image}") > 1 or "{image}" in after:
        raise BundleError(f"{file}: layout.prompt must hold {{question}} and at most one {{image}}, before it.")
    return BaseManifest(
        family=_take(content, "family", str, file),
        precision=_take(content, "precision", str, file),
        layout=PromptLayout(
            prompt,
            _take(layout, "answer", str, file),
            _take(layout, "image_token", str, file),
            tuple(end),
            _one_of(layout, "apart", (False, True), file),
        ),
        **{
            key: _positive(content, key, file)
            for key in (
                "n_image_tokens",
                "n_text",
                "n_layers",
                "n_kv_heads",
                "head_size",
                "n_vocab",
            )
        },
        n_positions=_number(content, "n_positions", 0, file),
        start_token=_number(content, "start_token", -1, file),
        position_axes=_one_of(content, "position_axes", (1, 2, 3), file),
        n_causal=_one_of({"n_causal": -1} | content, "n_causal", (-1, 0, 1), file),  # the first bundles have none
        n_connector_positions=_number(content, "n_connector_positions", 0, file),
        device=_take({"device": "", **content}, "device", str, file),
        made_from=_take(content, "made_from", str, file),
        files=_files(content, file),
        digest=_take(content, "sha256", str, file),
    )


def _closed(content: Mapping[str, Any], file: Path) -> ContrastiveManifest:
    captions = _take(content, "captions", dict, file)
    return ContrastiveManifest(
        family=_take(content, "family", str, file),
        precision=_take(content, "precision", str, file),
        captions=CaptionTemplates(_take(captions, "begun", str, file), _take(captions, "asked", str, file)),
        n_features=_positive(content, "n_features", file),
        scale=_finite(content, "scale", file),
        bias=_finite(content, "bias", file),
        scoring=_one_of(content, "scoring", ("softmax", "sigmoid"), file),
        n_positions=_positive(content, "n_positions", file),
        pad_token=_number(content, "pad_token", -1, file),
        device=_take({"device": "", **content}, "device", str, file),
        made_from=_take(content, "made_from", str, file),
        files=_files(content, file),
        digest=_take(content, "sha256", str, file),
    )


def readable_bases(place: Path) -> Iterator[tuple[Path, BaseManifest | ContrastiveManifest]]:
    """Bundles in a folder, and their bases' manifests where those can be read; not one that is being written, whose
    name begins with a dot."""
    for file in sorted(place.glob("[!.]*/base/manifest.json")):
        try:
            manifest = read_base_manifest(file)
        except BundleError:  # of another version, or damaged
            continue
        yield file.parents[1], manifest


def verify(folder: Path, files: Mapping[str, FileEntry], known: set[Identity] | None = None) -> None:
    """Check size and sha256 of every file; raises BundleError that names the first bad one.

    known: files that were verified before and are not hashed again; those verified now are added.
    """
    known = set() if known is None else known
    for name, entry in files.items():
        path = folder / name
        try:
            if path.is_symlink() or not path.is_file():
                raise BundleError(f"The bundle's file {path} is missing. Export or copy the bundle again.")
            now, status = time.time_ns(), path.stat()
            size = status.st_size
            if size != entry.size:
                raise BundleError(
                    f"The bundle's file {path} is damaged: it has {size} bytes, and its manifest says {entry.size}. "
                    "Export or copy the bundle again."
                )
            identity = (status.st_dev, status.st_ino, size, status.st_mtime_ns, status.st_ctime_ns, entry.sha256)
            if identity in known:
                continue
            with open(path, "rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"The bundle's file {path} cannot be read: {error.strerror or error}.") from error
        if found != entry.sha256:
            raise BundleError(
                f"The bundle's file {path} is damaged: its sha256 is {found[:16]}…, and its manifest says "
                f"{entry.sha256[:16]}…. Export or copy the bundle again."
            )
        # A file that is written again within a tick of its clock keeps its times, so what was new is not trusted yet.
        if now - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED:
            known.add(identity)


def _canonical(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({k: v for k, v in content.items() if k != "sha256"})).hexdigest()


def _read(file: Path) -> dict[str, Any]:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise BundleError(f"{file} is not a file; it is not a manifest.")
        if status.st_size > MAX_MANIFEST:
            raise BundleError(f"{file} is larger than {MAX_MANIFEST >> 20} MiB; it is not a manifest.")
        data = file.read_bytes()
    except OSError as error:
        raise BundleError(f"The manifest {file} cannot be read: {error.strerror or error}.") from error
    try:
        content = json.loads(data)
        canonical = isinstance(content, dict) and _canonical(content) == data
        intact = canonical and content.get("sha256") == _digest(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"The manifest {file} is damaged: it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BundleError(f"The manifest {file} is damaged: it is not a JSON object.")
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise BundleError(f"{file} is of format {version}, and this TVP reads up to {FORMAT}. Update TVP.")
    if version != FORMAT or not intact:
        raise BundleError(
            f"The manifest {file} is damaged or was edited: its content does not match its own sha256. "
            "Export or copy the bundle again."
        )
    return content


def _take(content: Mapping[str, Any], key: str, kind: type[T], file: Path) -> T:
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(f"{file}: {key} must be of type {kind.__name__}, not {type(value).__name__}.")
    return value


def _number(content: Mapping[str, Any], key: str, least: int, file: Path, below: int = 2**31) -> int:
    value = _take(content, key, int, file)
    if not least <= value < below:
        raise BundleError(
            f"{file}: {key} is {str(value)[:40]}; it must be a whole number from {least} to below "
            f"2^{below.bit_length() - 1}."
        )
    return value


def _positive(content: Mapping[str, Any], key: str, file: Path) -> int:
    return _number(content, key, 1, file)


def _finite(content: Mapping[str, Any], key: str, file: Path) -> float:
    value = _take(content, key, float, file)
    if not math.isfinite(value):
        raise BundleError(f"{file}: {key} is {value}; it must be a finite number.")
    return value


def _one_of(content: Mapping[str, Any], key: str, allowed: tuple[T, ...], file: Path) -> T:
    value = content.get(key)
    if type(value) is not type(allowed[0]) or value not in allowed:
        raise BundleError(f"{file}: {key} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
    return value


def _texts(content: Mapping[str, Any], key: str, file: Path) -> tuple[str, ...]:
    values = _take(content, key, list, file)
    if not all(isinstance(value, str) for value in values):
        raise BundleError(f"{file}: {key} must be a list of texts.")
    return tuple(values)


def _files(content: Mapping[str, Any], file: Path) -> dict[str, FileEntry]:
    entries = {}
    for name, entry in _take(content, "files", dict, file).items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
            raise BundleError(f"{file} names the file {name!r}, which would lie outside of the bundle.")
        if not isinstance(entry, dict):
            raise BundleError(f"{file}: the entry of {name!r} must hold size and sha256.")
        entries[name] = FileEntry(_number(entry, "size", 0, file, 2**63), _take(entry, "sha256", str, file))
    return entries
