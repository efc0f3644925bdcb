"""What an export would write, without writing it: `tvp export --dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvp.sdk._manifest import read_base_manifest
from tvp.sdk._task import home
from tvp.trainer import families
from tvp.trainer.families.causal import CausalFamily
from tvp.trainer.families.clip import ContrastiveFamily
from tvp.trainer.families.family import GenerativeFamily
from tvp.trainer.families.instructblip import QuestionAwareFamily
from tvp.trainer.families.seq2seq import Seq2SeqFamily
from tvp.trainer.prompt import Prompt
from tvp.trainer.task_definition import TaskDefinition

from . import closed
from .base import find_base, made_from
from .bundle import IMAGE_ENCODER, exportable, refuse_to_overwrite
from .precision import BYTES, made_for, size_in_encoder
from .tokenizer import fast


def plan(
    model: str | Path,
    task: TaskDefinition,
    output: Path,
    *,
    prompt: Path | None = None,
    precision: str = "fp32",
    device: str = "cpu",
    reuse: bool = True,
    single_file: bool = False,
    force: bool = False,
) -> list[tuple[str, int, str]]:
    """Files that `export` would write: name, size in bytes, and a note.

    Sizes of graphs are those of their weights; a shared base takes no room. Raises what `export` would raise before
    it writes.
    """
    refuse_to_overwrite(output, force)
    geometry = Prompt.load(prompt).geometry if prompt else None
    family = exportable(families.load(model, canvas=geometry.canvas if geometry else None))
    canvas = geometry.canvas if geometry else family.pixel_format.size
    frame = 3 * canvas * canvas * 4 if prompt else 0
    preprocessing = frame + 64 * 2**10
    rows = [("preprocess.onnx", preprocessing, "")]
    rows += [("prompt.safetensors", frame, ""), ("prompt.png", frame // 8, "")] if prompt else []
    rows += [("golden/", 64 * 2**10, "pictures and PyTorch's answers"), ("manifest.json", 4 * 2**10, "")]
    kind = made_for(device, precision)
    sizes = _graphs(family, precision, "fp16" if kind != "cpu" and precision != "fp32" else precision)
    if single_file:
        rows.append((IMAGE_ENCODER, preprocessing + sizes["vision_encoder.onnx"], ""))
    places = [output.parent, home() / "tasks"] if reuse else []
    found = find_base(made_from(family, precision, kind), places)
    if found is not None:
        names = read_base_manifest(found / "manifest.json").files
        return rows + [(f"base/{name}", 0, f"shared with {found}") for name in names]
    rows += [(f"base/{name}", size, "") for name, size in sizes.items()]
    text = closed.tokenizer_text(family) if isinstance(family, ContrastiveFamily) else fast(family.tokenizer).to_str()
    rows += [("base/tokenizer.json", len(text), ""), ("base/manifest.json", 4 * 2**10, "")]
    if isinstance(family, QuestionAwareFamily):
        rows.append(("base/connector_tokenizer.json", len(fast(family.qformer_tokenizer).to_str()), ""))
    return rows


def _graphs(family: GenerativeFamily | ContrastiveFamily, precision: str, of_encoder: str) -> dict[str, int]:
    """Bytes of the weights of each part; the connector and T5's encoder are counted with what they stand beside.

    of_encoder: the precision of what is no language model.
    """
    if isinstance(family, ContrastiveFamily):
        return closed.sizes(family, of_encoder)
    if isinstance(family, Seq2SeqFamily):
        parts, head = [family.language_model], family.language_model.lm_head
    else:
        assert isinstance(family, CausalFamily)
        parts, head = [family.decoder, family.head], family.head
    words: Any = family.embed_tokens.weight
    text = {id(weight): weight.numel() for part in parts for weight in part.parameters()} | {id(words): words.numel()}
    encoder = sum(
        size_in_encoder(name, weight, of_encoder)
        for name, weight in family.model.named_parameters()
        if id(weight) not in text
    )
    named = (pair for part in parts for pair in part.named_parameters())
    whole = sum(weight.numel() for name, weight in named if ".DenseReluDense.wo." in name)  # in fp16 too, see `lower`
    if head.weight is not words:
        del text[id(words)]  # which only the table of embeddings holds
    halves = 4 if precision == "fp32" else 2
    return {
        "vision_encoder.onnx": encoder,
        "decoder_model_merged.onnx": int(sum(text.values()) * BYTES[precision]) + 2 * whole * (precision == "fp16"),
        "embed_tokens.npy": words.numel() * halves,
    }
