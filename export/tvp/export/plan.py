"""The plan of an export: a list of the files that it would write. `tvp export --dry-run` prints it."""

from __future__ import annotations

from pathlib import Path

from tvp import sdk
from tvp.sdk.formats.manifest import read_base_manifest
from tvp.trainer import families
from tvp.trainer.prompt import Prompt
from tvp.trainer.task_definition import TaskDefinition

from .base import find_base, made_from
from .bundle import IMAGE_ENCODER
from .kinds import kind_of
from .output import refuse_to_overwrite
from .precision import made_for


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
    """Return the files that `export` would write; the arguments are those of `export`.

    Returns:
        Name, size in bytes and a note ('' for none) for each file. Sizes are estimates: for a graph, the size of its
        weights; for a file of a shared base, 0.

    Raises:
        TvpError: `export` would fail before it writes.
    """
    refuse_to_overwrite(output, force)
    geometry = Prompt.load(prompt).geometry if prompt else None
    family = families.load(model, canvas=geometry.canvas if geometry else None)
    kind = kind_of(family)
    canvas = geometry.canvas if geometry else family.pixel_format.size
    frame = 3 * canvas * canvas * 4 if prompt else 0
    preprocessing = frame + 64 * 2**10
    rows = [("preprocess.onnx", preprocessing, "")]
    rows += [("prompt.safetensors", frame, ""), ("prompt.png", frame // 8, "")] if prompt else []
    rows += [("golden/", 64 * 2**10, "pictures and PyTorch's answers"), ("manifest.json", 4 * 2**10, "")]
    made = made_for(device, precision)
    sizes = kind.sizes(family, precision, "fp16" if made != "cpu" and precision != "fp32" else precision)
    if single_file:
        rows.append((IMAGE_ENCODER, preprocessing + sizes["vision_encoder.onnx"], ""))
    places = [output.parent, sdk.home() / "tasks"] if reuse else []
    found = find_base(made_from(family, precision, made), places)
    if found is not None:
        names = read_base_manifest(found / "manifest.json").files
        return rows + [(f"base/{name}", 0, f"shared with {found}") for name in names]
    rows += [(f"base/{name}", size, "") for name, size in sizes.items()]
    rows += [(f"base/{name}", len(text), "") for name, text in kind.tokenizer_texts(family).items()]
    return [*rows, ("base/manifest.json", 4 * 2**10, "")]
