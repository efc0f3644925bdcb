"""Models of a hub: what may be fetched, and the folder that a checkpoint's files are in.

Every loader reads from a folder, and never from a name: so the files are looked at before a loader sees them, and no
name inside a file is followed to a hub.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from tvp.sdk.errors import ModelError

from .zoo import locate, near_zoo

VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the hub's own
ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # a bare name would keep its user waiting for the hub
TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
# Each is tried where the one before is not there; a repository may hold its weights several times.
WEIGHTS = (
    ("model.safetensors", "model-*.safetensors"),
    ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("open_clip_pytorch_model.bin",),
)


def offline() -> bool:
    """Return whether nothing may be fetched: `--offline`, or the hub's own variables."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in VARIABLES)


def is_fetched(name: str, typed: Collection[str] | None) -> bool:
    """Return whether a name may be fetched: its user typed it. None: all names were."""
    return typed is None or name in typed


def refuse_misspelt(name: str, place: str = "") -> None:
    """Refuse a name that no model can have, without a look at a hub or at weights.

    Args:
        name: as the user gave it.
        place: a folder or a hub id. Default: what the name means.

    Raises:
        ModelError: it is no folder, no hub id and no name of the zoo or of open_clip.
        ModuleNotFoundError: no model can be loaded here: this is a slim install.
    """
    if find_spec("torch") is None:  # said first, since a model that is there would not help
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    place = place or locate(name)
    if not Path(place).is_dir() and not place.startswith("open_clip:") and not ID.fullmatch(place):
        raise ModelError(
            f"There is no model {name!r}: no such folder, and no hub id (OWNER/NAME) either.{near_zoo(place)}"
        )


def texts_of(name: str, place: str, fetch: bool = True) -> Path:
    """Return the folder of a checkpoint, with its texts; `add_weights` fetches the rest.

    Args:
        name: as the user gave it, for messages.
        place: a folder or a hub id.
        fetch: whether a hub may be asked. Otherwise, and with `HF_HUB_OFFLINE`, its cache is.

    Raises:
        ModelError: there is no such folder, and no such model in the hub or in its cache.
    """
    if Path(place).is_dir():
        return Path(place)
    refuse_misspelt(name, place)
    return _snapshot(name, place, TEXTS, fetch)


def add_weights(name: str, place: str, folder: Path, fetch: bool = True) -> None:
    """Fetch the weights of a hub's model into the folder of its texts. A folder of the user's own stays as it is."""
    if Path(place).is_dir():
        return
    patterns: Collection[str]
    for patterns in WEIGHTS:
        patterns = _shards(folder / f"{patterns[0]}.index.json") or patterns
        _snapshot(name, place, patterns, fetch)
        if any(fnmatch.filter((file.name for file in folder.iterdir()), pattern) for pattern in patterns):
            return


def _shards(index: Path) -> set[str]:
    """Return the names of the files that an index lists; none if it is not there, or damaged, which its reader says."""
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


def _snapshot(name: str, place: str, patterns: Collection[str], fetch: bool) -> Path:
    from huggingface_hub import snapshot_download  # takes a third of a second

    local = offline() or not fetch
    try:
        return Path(snapshot_download(place, allow_patterns=list(patterns), local_files_only=local))
    except Exception as error:  # the hub raises many kinds
        if not local:
            raise ModelError(f"There is no folder {name!r}, and the hub gives no such model: {error}") from error
        why = (
            "nothing is fetched (--offline, HF_HUB_OFFLINE)"
            if offline()
            else "a name in a file is not fetched. Name the model yourself (--model, --guide)"
        )
        raise ModelError(
            f"There is no folder {name!r}, the hub's cache does not hold it, and {why}. "
            f"To download it, run: hf download {place}"
        ) from error
