"""The manifests: the facts about a task, about its base, and about a lens that several tasks may be loaded with.

A manifest is a JSON object, read strictly into a dataclass and written from one; `_sealed` says how its file holds its
own digest. A base's digest stands in the manifest of every task that was exported with it.

A later version may add fields, which this one ignores; it lists features that a reader must know under `requires`.
"""

# ruff: noqa: RUF009 (`_as` makes a field; it holds no state)

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..errors import BundleError
from ._fields import (
    Read,
    number,
    of_type,
    one_of,
    optional,
    read_captions,
    read_facts,
    read_files,
    read_layout,
    read_text,
    read_texts,
    read_three,
    whole,
)
from ._sealed import read_content, sealed
from .calibration import Calibrated, read_calibration
from .integrity import FileEntry
from .layout import CaptionTemplates, PromptLayout

GOLDEN = "golden/cases.json"  # written and read by golden.py; named here because a manifest must list it
T = TypeVar("T")


def _as(read: Read[Any], default: Any = MISSING) -> Any:
    """A dataclass field that is read by `read`; without a default the manifest must have it."""
    return field(default=default, metadata={"read": read})


def _facts_field() -> Any:
    return field(default_factory=dict, metadata={"read": read_facts})


# The manifests.


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # no instances: methods would cost time
class BaseManifest:
    """One exported frozen model. The subclasses say what depends on the model kind.

    Attributes:
        family: name of the model family.
        precision: `fp32`, `fp16`, `int8` or `int4`.
        device: the device that the graphs were made for: `cpu`, `cuda` or `tensorrt`; '' where a bundle of format 1
            does not say.
        made_from: digest of the model and the versions that it was made from, by which an export finds it again.
        files: size and digest of every file, by name.
        requires: names of features that a reader must know; this version knows none.
        digest: sha256 of the manifest's own bytes; '' before it is written.
    """

    kind: ClassVar[str]

    family: str = _as(read_text)
    precision: str = _as(read_text)
    device: str = _as(read_text, "")
    made_from: str = _as(read_text)
    files: Mapping[str, FileEntry] = _as(read_files)
    requires: tuple[str, ...] = _as(read_texts, ())
    digest: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The files that a base of this kind consists of, at least."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # no instances: methods would cost time
class GenerativeManifest(BaseManifest):
    """A model that writes its answer token by token.

    Attributes:
        layout: the order of what the language model reads.
        n_image_tokens: image embeddings of one picture.
        n_text: width of image and token embeddings.
        n_layers, n_kv_heads, head_size: shape of the decoder's cache.
        n_vocab: number of tokens.
        n_positions: the most tokens, image included, that the language model reads; 0 for no bound.
        n_connector_positions: the most tokens that a connector with its own tokenizer reads of a question; 0 where
            there is no such connector.
    """

    layout: PromptLayout = _as(read_layout)
    n_image_tokens: int = _as(whole(1, 2**20))
    n_text: int = _as(whole(1, 2**20))
    n_layers: int = _as(whole(1, 2**12))
    n_kv_heads: int = _as(whole(1, 2**12))
    head_size: int = _as(whole(1, 2**16))
    n_vocab: int = _as(whole(1, 2**24))
    n_positions: int = _as(whole(0, 2**24))
    n_connector_positions: int = _as(whole(0, 2**16), 0)

    @property
    def needs(self) -> tuple[str, ...]:
        names = ["vision_encoder.onnx", "decoder_model_merged.onnx", "embed_tokens.npy", "tokenizer.json"]
        names += ["connector.onnx", "connector_tokenizer.json"] if self.n_connector_positions else []
        return tuple(names)


@dataclass(frozen=True, kw_only=True)
class CausalManifest(GenerativeManifest):
    """A model with a decoder alone.

    Attributes:
        position_axes: positions of one token: 1; 2 (place, and place behind the prompt: VisualGLM); or 3 (time, row,
            column: Qwen2-VL).
        n_causal: -1 where every token sees only the tokens before it. Otherwise the number of tokens at a prompt's
            end (0 or 1) that do; all others of the prompt see each other.
    """

    kind: ClassVar[str] = "causal"

    position_axes: int = _as(one_of(1, 2, 3), 1)
    n_causal: int = _as(one_of(-1, 0, 1), -1)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqManifest(GenerativeManifest):
    """A model with an encoder for picture and question, and a decoder for the answer (T5).

    Attributes:
        start_token: id of the token that the decoder starts from.
    """

    kind: ClassVar[str] = "seq2seq"

    start_token: int = _as(whole(0))

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "encoder_model.onnx")


@dataclass(frozen=True, kw_only=True)
class ContrastiveManifest(BaseManifest):
    """A model that compares a picture with the text of each answer (CLIP, SigLIP).

    Attributes:
        captions: how a question and an answer become the text that is compared.
        n_features: width of the unit features of pictures and of texts.
        scale, bias: the cosine of two features is multiplied by the scale, and the bias is added.
        scoring: `softmax`, for log-probabilities among the answers, or `sigmoid`, for each answer by itself.
        n_positions: the most tokens of a text. A longer text is cut before its end token.
        pad_token: id of the token that fills a text up to `n_positions`; -1 where texts are not filled.
    """

    kind: ClassVar[str] = "contrastive"

    captions: CaptionTemplates = _as(read_captions)
    n_features: int = _as(whole(1, 2**20))
    scale: float = _as(number())
    bias: float = _as(number())
    scoring: str = _as(one_of("softmax", "sigmoid"))
    n_positions: int = _as(whole(1, 2**16))
    pad_token: int = _as(whole(-1))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("vision_encoder.onnx", "text_encoder.onnx", "tokenizer.json")


KINDS: dict[str, type[BaseManifest]] = {
    manifest.kind: manifest for manifest in (CausalManifest, Seq2SeqManifest, ContrastiveManifest)
}


@dataclass(frozen=True, kw_only=True)
class ParityFacts:
    """What the parity gate measured at the export.

    Attributes:
        n_cases: questions that were compared.
        tokens_equal: cases whose answer tokens (contrastive: order of labels) are PyTorch's, from the same pixels.
        end_to_end_equal: the same with each side's own resizing.
        logits: largest difference of a logit (contrastive: of a score).
        pixels: largest difference of a pixel value, in levels of 1/255.
        pixels_within_a_level: share of the pixel values that differ by at most one level, from 0 to 1.
        distinct_answers: number of different answers among PyTorch's; 0 where it was not counted.
        max_loss: share of the golden answers that may differ, from 0 to 1; 0 in fp32.
    """

    n_cases: int = _as(whole(0), 0)
    tokens_equal: int = _as(whole(0), 0)
    end_to_end_equal: int = _as(whole(0), 0)
    logits: float = _as(number(), 0.0)
    pixels: float = _as(number(), 0.0)
    pixels_within_a_level: float = _as(number(0, 1), 0.0)
    distinct_answers: int = _as(whole(0), 0)
    max_loss: float | None = _as(optional(number(0, 1)), None)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a bundle comes from. None of it changes an answer.

    Attributes:
        model: name of the model's folder, or its hub id.
        family: name of the model family.
        weights: sha256 of the model's weights; '' for a model that is no local folder.
        prompt: the facts that the prompt file holds; empty without a prompt.
        versions: version of each package that made the bundle.
    """

    model: str = _as(read_text, "")
    family: str = _as(read_text, "")
    weights: str = _as(read_text, "")
    prompt: Mapping[str, Any] = _facts_field()
    versions: Mapping[str, Any] = _facts_field()


@dataclass(frozen=True, kw_only=True)
class PixelFacts:
    """The pixel values that a vision encoder takes, and that preprocess.onnx makes.

    Attributes:
        size: side of the square, px.
        mean, std: of red, green and blue; a pixel value is (value in [0, 1] - mean) / std.
        filter: how a canvas of another size is resized: `bicubic`, `bilinear` or `lanczos`; '' in a lens bundle whose
            canvas has the size.
    """

    size: int = _as(whole(1, 2**16))
    mean: tuple[float, ...] = _as(read_three(number(-1e3, 1e3)))
    std: tuple[float, ...] = _as(read_three(number(1e-6, 1e3)))
    filter: str = _as(read_text)

    def fit(self, wanted: PixelFacts) -> bool:
        """Return whether these are the pixel values that a task wants. Files round means and spreads differently."""
        near = np.allclose([self.mean, self.std], [wanted.mean, wanted.std], rtol=0, atol=1e-6)
        return bool(near) and self.size == wanted.size and self.filter in ("", wanted.filter)

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.size} px, mean ({mean}), std ({std}){self.filter and f', {self.filter}'}"


def _read_pixels(value: Any, where: str) -> PixelFacts:
    return _parse(PixelFacts, value, where)


@dataclass(frozen=True, kw_only=True)
class TaskManifest:
    """A task ready to run, apart from its base.

    Attributes:
        name: of the task.
        question: asked where the caller gives none; '' for none.
        labels: the answers that are ranked where the caller gives none; empty for none.
        max_new_tokens: longest answer, in tokens, where the caller gives no limit.
        base: digest of the base's manifest.
        files: size and digest of every file outside of the base, by name.
        parity, provenance: see there.
        pixels: what preprocess.onnx makes; None in a bundle of before.
        prompt: the parts of the prompt in preprocess.onnx: `lens`, `frame`, both or none.
        calibration: what is subtracted from the scores of labels; empty for none. Where there is some, `requires`
            names it.
        n_moment_pictures: number of pictures behind moments.npy; 0 where the bundle has no moments.
        requires: names of features that a reader must know; this version knows those of `_sealed.KNOWN`.
        digest: sha256 of the manifest's own bytes; '' before it is written.
    """

    kind: ClassVar[str] = "task"

    name: str = _as(read_text)
    question: str = _as(read_text)
    labels: tuple[str, ...] = _as(read_texts)
    max_new_tokens: int = _as(whole(1, 2**16))
    base: str = _as(read_text)
    files: Mapping[str, FileEntry] = _as(read_files)
    parity: ParityFacts = _as(lambda value, where: _parse(ParityFacts, value, where))
    provenance: Provenance = _as(lambda value, where: _parse(Provenance, value, where))
    pixels: PixelFacts | None = _as(optional(_read_pixels), None)
    prompt: tuple[str, ...] = _as(read_texts, ())
    calibration: Calibrated = _as(read_calibration, ())
    n_moment_pictures: int = _as(whole(0), 0)
    requires: tuple[str, ...] = _as(read_texts, ())
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class LensManifest:
    """A prompt without a base: a preprocess.onnx that takes the place of a task's own.

    Attributes:
        name: of the lens, for people.
        pixels: what preprocess.onnx makes. It fits every task whose pixels are the same.
        n_moment_pictures: as of `TaskManifest`. The moments hold for tasks on the same weights.
        files, parity, provenance, prompt, requires, digest: as of `TaskManifest`. Of `parity`, only the figures about
            pixel values are measured.
    """

    kind: ClassVar[str] = "lens"

    name: str = _as(read_text)
    pixels: PixelFacts = _as(_read_pixels)
    prompt: tuple[str, ...] = _as(read_texts)
    files: Mapping[str, FileEntry] = _as(read_files)
    parity: ParityFacts = _as(lambda value, where: _parse(ParityFacts, value, where))
    provenance: Provenance = _as(lambda value, where: _parse(Provenance, value, where))
    n_moment_pictures: int = _as(whole(0), 0)
    requires: tuple[str, ...] = _as(read_texts, ())
    digest: str = ""


# Reading and writing.


def read_task_manifest(file: Path) -> TaskManifest:
    """Read a task's manifest.json; raises BundleError for one that is damaged, edited or of a newer format."""
    content = read_content(file)
    if content.get("kind") == LensManifest.kind:
        raise BundleError(
            f"{file.parent} is a lens without a task. Load a task with it: sdk.load(TASK, lens=LENS), or "
            "`tvp ask TASK … --lens LENS`."
        )
    if content.get("kind") != TaskManifest.kind:
        raise BundleError(f"{file} is not the manifest of a task: its kind is {content.get('kind')!r}.")
    return _parse(TaskManifest, content, str(file))


def read_lens_manifest(file: Path) -> LensManifest:
    """Read a lens bundle's manifest.json; raises BundleError as `read_task_manifest` does."""
    content = read_content(file)
    if content.get("kind") != LensManifest.kind:
        raise BundleError(
            f"{file} is not the manifest of a lens bundle: its kind is {content.get('kind')!r}. "
            "`tvp export --lens … --without-base` makes one."
        )
    return _parse(LensManifest, content, str(file))


def read_base_manifest(file: Path) -> BaseManifest:
    """Read a base's manifest.json into the class of its kind; raises BundleError as `read_task_manifest` does."""
    content = read_content(file)
    kind = one_of(*KINDS)(content.get("kind"), f"{file}: kind")
    return _parse(KINDS[kind], content, str(file))


def write_manifest(manifest: TaskManifest | BaseManifest | LensManifest, file: Path) -> str:
    """Write a manifest, ignore its `digest`, and return the digest of the written file."""
    content = asdict(manifest) | {"kind": manifest.kind}
    del content["digest"]
    data = sealed(content)
    file.write_bytes(data)
    digest: str = json.loads(data)["sha256"]
    return digest


def bases_in(place: Path) -> Iterator[tuple[Path, BaseManifest]]:
    """Yield the bundles in a folder with their bases' manifests.

    A manifest that cannot be read is passed over, and so is a bundle that is being written, whose name begins with a
    dot.
    """
    for file in sorted(place.glob("[!.]*/base/manifest.json")):
        try:
            manifest = read_base_manifest(file)
        except BundleError:  # of another version, or damaged
            continue
        yield file.parents[1], manifest


def _parse(cls: type[T], content: Any, where: str) -> T:
    """Read a dataclass of the fields above from a JSON object."""
    given = of_type(content, where, dict)
    values: dict[str, Any] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        if "read" not in item.metadata:
            continue
        if item.name in given:
            values[item.name] = item.metadata["read"](given[item.name], f"{where}: {item.name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise BundleError(f"{where} lacks {item.name!r}.")
    if "sha256" in given and "digest" in {item.name for item in fields(cls)}:  # type: ignore[arg-type]
        values["digest"] = given["sha256"]
    return cls(**values)
