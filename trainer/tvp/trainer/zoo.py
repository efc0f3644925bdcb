"""Where the zoo is: the tiny models that the repository holds, named `zoo:NAME`."""

from __future__ import annotations

import os
from pathlib import Path

from tvp.sdk.errors import ModelError, near

VARIABLE = "TVP_ZOO"
PREFIX = "zoo:"
# vision encoder -> the zoo's models that use it; it is trained in the first
ENCODERS = {
    "blip": ("blip2", "blip2-t5", "instructblip"),
    "siglip": ("smolvlm", "llava"),
    "qwen": ("qwen2vl",),
}
# trainer/tvp/trainer/zoo.py -> the root of the repository
IN_CHECKOUT = Path(__file__).resolve().parents[3] / "samples" / "zoo"


def zoo_folder() -> Path:
    """The folder of the zoo: `$TVP_ZOO` where it is set, else samples/zoo of the checkout that this package is in.

    Raises:
        ModelError: no tiny models are there.
    """
    named = os.environ.get(VARIABLE)
    if named and not _models(Path(named)):
        raise ModelError(
            f"{VARIABLE} is set to {named}, and that folder holds no models. Set it to samples/zoo of TVP's repository."
        )
    if not named and not _models(IN_CHECKOUT):
        raise ModelError(
            "The zoo's tiny models are in TVP's repository, not in the installed package. Clone the repository and set "
            f"{VARIABLE} to its folder samples/zoo, or install the clone with `pip install -e`."
        )
    return Path(named) if named else IN_CHECKOUT


def locate(name: str | Path) -> str:
    """Turn `zoo:NAME` into the path of its folder; any other name stays as it is.

    Raises:
        ModelError: there is no zoo, or it has no model of this name.
    """
    text = str(name)
    if not text.startswith(PREFIX):
        return text
    folder, wanted = zoo_folder(), text.removeprefix(PREFIX)
    known = _models(folder)
    if wanted not in known:
        raise ModelError(f"There is no {text!r}; the zoo has {', '.join(known)}.{near(wanted, known, PREFIX)}")
    return str(folder / wanted)


def near_zoo(name: str) -> str:
    """Return ' Did you mean zoo:NAME?' for a name that is close to one of the zoo's; '' without a zoo."""
    try:
        known = _models(zoo_folder())
    except ModelError:
        return ""
    return near(name, [name] if name in known else known, PREFIX)


def _models(folder: Path) -> list[str]:
    """The names of the models in a folder, sorted."""
    return sorted(
        {file.parent.name for name in ("config.json", "open_clip_config.json") for file in folder.glob(f"*/{name}")}
    )
