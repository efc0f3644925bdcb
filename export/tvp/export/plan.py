"""The plan of an export: a list of the files that it would write. `tvp export --dry-run` prints it."""

from __future__ import annotations

from pathlib import Path

from tvp import sdk
from tvp.sdk.formats.manifest import read_base_manifest
from tvp.sdk.formats.moments import FILE
from tvp.trainer import families
from tvp.trainer.prompt import Prompt
from tvp.trainer.task_definition import TaskDefinition

from .base import find_base, made_from
from .bundle import IMAGE_ENCODER
from .kinds import kind_of
from .output import refuse_to_overwrite
from .precision import made_for

MOMENTS = (FILE, 32 * 2**10, "")


def plan(
    model: str | Path,
    task: TaskDefinition,
    output: Path,
    *,
    prompt: str | Path | Prompt | None = None,
    precision: str = "fp32",
    device: str = "cpu",
    reuse: bool = True,
    single_file: bool = False,
    force: bool = False,
    n_moment_pictures: int = 0,
) -> list[tuple[str, int, str]]:
    """Return the files that `export` would write; the arguments are those of `export`.

    Returns:
        Name, size in bytes and a note ('' for none) for each file. Sizes are estimates: for a graph, the size of its
        weights; for a file of a shared base, 0.

    Raises:
        TvpError: `export` would fail before it writes.
    """
    refuse_to_overwrite(output, force)
    prompt = prompt if prompt is None or isinstance(prompt, Prompt) else Prompt.load(prompt)
    geometry = prompt.geometry if prompt else None
    family = families.load(model, canvas=geometry.canvas if geometry else None)
    kind = kind_of(family)
    frame, lens = _sizes(prompt)
    preprocessing = frame + lens + 64 * 2**10
    rows = [("preprocess.onnx", preprocessing, "")]
    rows += [("prompt.safetensors", frame + lens, "")] if prompt else []
    rows += [("prompt.png", frame // 8, "")] if frame else []
    rows += [MOMENTS] if n_moment_pictures else []
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
    kind.check(family)
    rows += [(f"base/{name}", size, "") for name, size in sizes.items()]
    rows += [(f"base/{name}", len(text), "") for name, text in kind.tokenizer_texts(family).items()]
    return [*rows, ("base/manifest.json", 4 * 2**10, "")]


def plan_lens(
    output: Path, *, prompt: Prompt, force: bool = False, n_moment_pictures: int = 0
) -> list[tuple[str, int, str]]:
    """As `plan`, of `export_lens`."""
    refuse_to_overwrite(output, force)
    rows = [
        ("preprocess.onnx", sum(_sizes(prompt)) + 64 * 2**10, ""),
        *([MOMENTS] if n_moment_pictures else []),
        ("golden/", 32 * 2**10, "PyTorch's pixel values"),
    ]
    return [*rows, ("manifest.json", 4 * 2**10, "")]


def _sizes(prompt: Prompt | None) -> tuple[int, int]:
    """Return the bytes of a prompt's frame and of its lens."""
    if prompt is None:
        return 0, 0
    lens = 4 * prompt.lens.n_values if prompt.lens is not None else 0
    return 4 * prompt.frame.numel() if prompt.frame is not None else 0, lens
