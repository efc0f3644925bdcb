"""What transformers 5 writes in other words than 4.57 reads, and settings that TVP follows or refuses."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from tvp.sdk.errors import ModelError

from ._gate import ATTENTION, PROCESSOR, QUANTISED, TOKENIZER, read_json
from .pixels import PILLOW, PixelFormat

log = logging.getLogger("tvp.trainer")

PREPROCESSOR = "preprocessor_config.json"
# Steps of an image processor that TVP does, or that change nothing of a square RGB picture. Pictures are not cut into
# tiles: see the families.
STEPS = {
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    "do_center_crop",
    "do_pad",
    "do_image_splitting",
    "do_pan_and_scan",
}
LARGEST_SIDE = 8192  # px
SAME = 1e-6  # of a factor; 1/255 is written with six digits and more


def config_of(found: Any, about: str) -> Any:
    """Return config.json, or a part of it, as transformers 4.57 reads it, without its choice of attention."""
    if isinstance(found, list):
        return [config_of(value, about) for value in found]
    if not isinstance(found, dict):
        return found
    left_out = {key for key in found if ATTENTION.fullmatch(key) or (key in QUANTISED and not found[key])}
    parts = {key: config_of(value, about) for key, value in found.items() if key not in left_out}
    rope = parts.pop("rope_parameters", None)
    return parts if rope is None else parts | _rope(rope, parts, about)


def _rope(rope: Any, parts: dict[str, Any], about: str) -> dict[str, Any]:
    """Return `rope_parameters` as the two or three fields that they were before."""
    if isinstance(rope, dict) and rope and all(isinstance(value, dict) for value in rope.values()):
        kinds = list(rope.values())  # one for each kind of layer
        if any(kind != kinds[0] for kind in kinds):
            raise ModelError(
                f"{about} sets other rope_parameters for each of {', '.join(rope)}, which TVP does not follow."
            )
        rope = kinds[0]
    if not isinstance(rope, dict) or not isinstance(rope.get("rope_theta"), int | float):
        raise ModelError(f"{about} sets rope_parameters to {rope!r}. TVP needs a table with a number rope_theta.")
    rope = dict(rope)
    fields = {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    if rope["rope_type"] == "mrope":
        rope["rope_type"] = "default"  # as 4.57 reads it, with sections
    if rope != {"rope_type": "default"}:
        fields["rope_scaling"] = rope
    for name, value in fields.items():
        if name != "rope_scaling" and parts.get(name, value) != value:
            raise ModelError(f"{about} sets {name} to {parts[name]!r}, and to {value!r} in rope_parameters. Keep one.")
    return fields


def tokenizer_options(folder: Path, name: str) -> dict[str, Any]:
    """Return what a tokenizer of transformers 5 is loaded with besides its folder; empty for others."""
    if not (folder / TOKENIZER).is_file():
        return {}
    found = read_json(folder / TOKENIZER, name)
    options: dict[str, Any] = {}
    tokens = found.get("extra_special_tokens")
    if isinstance(tokens, list):  # what 4.57 calls additional; its own extra tokens have names
        named = found.get("model_specific_special_tokens") or {}
        options["additional_special_tokens"] = [*(found.get("additional_special_tokens") or []), *tokens]
        options["extra_special_tokens"] = named if isinstance(named, dict) else {}
    return options


def is_generic(folder: Path, name: str) -> bool:
    """Return whether a tokenizer is of transformers 5's class for any tokenizer.json, which has a new name there."""
    file = folder / TOKENIZER
    return file.is_file() and read_json(file, name).get("tokenizer_class") == "TokenizersBackend"


def processor_of(folder: Path, name: str) -> dict[str, Any]:
    """Return the image processor's settings, which transformers 5 writes among those of the processor.

    Raises:
        ModelError: there are none.
    """
    if (folder / PREPROCESSOR).is_file():
        whole: dict[str, Any] = read_json(folder / PREPROCESSOR, name)
        found = whole.get("image_processor", whole)
    elif (folder / PROCESSOR).is_file():
        found = read_json(folder / PROCESSOR, name).get("image_processor")
    else:
        found = None
    if not isinstance(found, dict):
        raise ModelError(
            f"{name!r} is incomplete: it has no {PREPROCESSOR}, and no image_processor in {PROCESSOR}. They say how "
            "its pixels are scaled. Copy the file of the model's release into the folder."
        )
    return found


def chat_template(folder: Path, name: str) -> Any:
    """Return the processor's own chat template, or None."""
    for file in ("chat_template.json", "chat_template.jinja", PROCESSOR):  # as transformers prefers them
        if not (folder / file).is_file():
            continue
        if file.endswith(".jinja"):
            return (folder / file).read_text(encoding="utf-8", errors="replace")
        if found := read_json(folder / file, name).get("chat_template"):
            return found
    return None


def side_of(size: Any, name: str) -> int:
    """Return the side of the square that a vision encoder takes, px, from one number or from both sides.

    Raises:
        ModelError: it takes no square.
    """
    sides = {size} if isinstance(size, int) else set(size) if isinstance(size, list | tuple) else set()
    side = sides.pop() if len(sides) == 1 else 0
    if not isinstance(side, int) or not 0 < side <= LARGEST_SIDE:
        raise ModelError(
            f"The vision encoder of {name!r} takes pictures of the size {size!r}, which is no square of 1 to "
            f"{LARGEST_SIDE} px."
        )
    return side


def pixel_format(size: int, said: dict[str, Any], processor: Any, name: str) -> PixelFormat:
    """Return what an image processor does with a picture of values in [0, 1].

    Args:
        size: side of the square that the vision encoder takes, px.
        said: its settings as the file has them.
        processor: transformers' object, which has the defaults of its class.
        name: of the checkpoint, for messages.

    Raises:
        ModelError: it does something that TVP does not.
    """
    about = f"The image processor of {name!r}"
    mean, std = (said.get(key) for key in ("image_mean", "image_std"))
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple) or len(mean) != 3 or len(std) != 3:
        raise ModelError(f"{about} has mean {mean} and deviation {std}. TVP needs three of each.")
    if not all(map(_is_number, [*mean, *std])) or not all(v > 0 for v in std):
        raise ModelError(f"{about} has mean {mean} and deviation {std}. TVP needs numbers, and deviations above 0.")
    steps = {**vars(processor), **said}
    unknown = sorted(key for key, on in steps.items() if key.startswith("do_") and on and key not in STEPS)
    if steps.get("rescale_offset"):
        unknown.append("rescale_offset")
    if unknown:
        raise ModelError(f"{about} sets {unknown[0]}, which TVP does not do. It knows {', '.join(sorted(STEPS))}.")
    if steps.get("do_resize") is False:
        raise ModelError(f"{about} does not resize (do_resize is false), and TVP always does. Set it to true.")
    _refuse_crop(steps, about)
    least, most = (steps.get(key) for key in ("min_pixels", "max_pixels"))
    if (isinstance(least, int) and size**2 < least) or (isinstance(most, int) and size**2 > most):
        log.warning(
            "%s shows pictures of %s to %s pixels. TVP shows the canvas of %d x %d px as it is: name another --canvas.",
            about,
            least,
            most,
            size,
            size,
        )
    resample = getattr(processor, "resample", None)
    resample = 3 if resample is None else int(resample)
    if resample not in PILLOW:
        raise ModelError(f"{about} resizes with Pillow's filter {resample}. TVP knows {', '.join(PILLOW.values())}.")
    # A value v in [0, 1] is 255 v as the processor reads it, and factor * v where the model does.
    factor = 255.0 if steps.get("do_rescale") is False else 255.0 * _factor(steps, about)
    if steps.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    if abs(factor - 1) > SAME:
        mean, std = ([v / factor for v in values] for values in (mean, std))
    return PixelFormat(size, tuple(mean), tuple(std), PILLOW[resample])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _factor(steps: dict[str, Any], about: str) -> float:
    factor = steps.get("rescale_factor", 1 / 255)
    if not _is_number(factor) or not 0 < factor < 1e6:
        raise ModelError(f"{about} sets rescale_factor to {factor!r}. It must be a positive number.")
    return float(factor)


def _refuse_crop(steps: dict[str, Any], about: str) -> None:
    """Refuse a processor that cuts out the middle: TVP shows the whole canvas, and the frame is at its edges."""
    size, crop = steps.get("size"), steps.get("crop_size")
    edges = [set(v.values()) if isinstance(v, dict) else {v} for v in (size, crop)]
    edges = [{edge for edge in found if edge is not None} for found in edges]
    if steps.get("do_center_crop") and all(edges) and max(edges[0]) > max(edges[1]):
        raise ModelError(
            f"{about} shows the middle of a picture alone: it resizes to {size} and cuts out {crop}. TVP shows all of "
            "it. If the model bears that, set size to the crop's."
        )
