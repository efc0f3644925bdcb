"""Task files: a task as TOML, which `tvp init` writes and `-t` of every command reads."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, get_args

from tvp.sdk.errors import DataError, RequestError, near

from . import cameras
from .geometry import Fit
from .task_definition import Match, TaskDefinition

ENDING = ".toml"
MOST_BYTES = 2**20  # TOML's reader takes long for much text
PLACES = ("data", "test", "pictures", "like")  # paths, seen from the file
FIELDS: dict[str, type] = {
    "name": str, "question": str, "labels": list, "data": str, "test": str, "camera": str, "fit": str, "match": str,
    "free": bool, "pictures": str, "like": str, "pairs": list,
}  # fmt: skip
CHOICES: dict[str, tuple[str, ...]] = {"fit": get_args(Fit), "match": get_args(Match)}
DRAWN = "scenes"  # a source, and no path
_SPELT = {str: "a text", bool: "true or false", list: "a list of texts"}


def is_task_file(name: str) -> bool:
    """Return whether a task is named by its file."""
    return name.lower().endswith(ENDING)


def read_task(file: Path) -> TaskDefinition:
    """Read a task file.

    Raises:
        DataError: there is none, or it is not one.
    """
    return make_task(file, _table(file))


def make_task(file: Path, found: dict[str, Any]) -> TaskDefinition:
    """Return the task that a file's fields make.

    Args:
        file: the file, which need not be there yet. Paths are seen from it.
        found: its fields.

    Raises:
        DataError: a field is wrong, or two do not go together.
    """
    for key, value in found.items():
        if key not in FIELDS:
            raise DataError(
                f"{file} sets {key!r}, which is no field of a task. There are {', '.join(FIELDS)}.{near(key, FIELDS)}"
            )
        wanted = FIELDS[key]
        if type(value) is not wanted or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
            raise DataError(f"{file} sets {key} to {value!r}; it takes {_SPELT[wanted]}.")
        if key in CHOICES and value not in CHOICES[key]:
            raise DataError(f"{file} sets {key} to {value!r}; it is one of {', '.join(CHOICES[key])}.")
    _refuse_wrong(file, found)
    place = {key: _place(file, found[key]) for key in PLACES if found.get(key)}
    try:
        camera = cameras.parse(found["camera"]) if found.get("camera") else None
    except RequestError as error:
        raise DataError(f"{file} sets camera to {found['camera']!r}. {error}") from error
    return TaskDefinition(
        name=found.get("name") or file.stem,
        question=found.get("question", ""),
        labels=tuple(label.strip() for label in found.get("labels", ())),
        source=place.get("data", ""),
        free=found.get("free", False),
        fit=found.get("fit", "crop"),
        camera=camera if camera and camera.parts else None,
        match=found.get("match", "loose"),
        test=place.get("test", ""),
        pictures=place.get("pictures", ""),
        like=place.get("like", ""),
        pairs=tuple(_place(file, one) for one in found.get("pairs", ())),
        file=str(file),
    )


def to_toml(fields: dict[str, Any]) -> str:
    """Write the fields of a task as TOML; those without a value are left out."""
    # JSON writes texts, booleans and lists of texts as TOML does.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items() if value]
    return "".join(lines)


def _table(file: Path) -> dict[str, Any]:
    if not file.is_file():  # a pipe may never end
        raise DataError(f"There is no task file {file}. `tvp init FOLDER` writes one from your pictures.")
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise DataError(f"{file} has more than {MOST_BYTES:,} bytes, which no task needs. Name another file.")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise DataError(f"{file} is nested too deeply. A task has texts and lists of texts only.") from error
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise DataError(f"{file} is not a TOML file: {error}") from error


def _refuse_wrong(file: Path, found: dict[str, Any]) -> None:
    """Refuse fields that do not go together, and labels that no answer can be chosen from."""
    given = [key for key in ("data", "pictures", "pairs") if found.get(key)]
    if len(given) > 1:
        raise DataError(f"{file} sets {' and '.join(given)}, which both say where the pictures are. Keep one of them.")
    if not given:
        raise DataError(
            f"{file} does not say where the pictures are. Set data; for a lens, pictures and like, or pairs."
        )
    if bool(found.get("pictures")) != bool(found.get("like")):
        raise DataError(f"{file} sets one of pictures and like. The device's pictures need good ones beside them.")
    if found.get("pairs") and len(found["pairs"]) != 2:
        raise DataError(
            f"{file} sets pairs to {found['pairs']}. They are two folders: what the camera spoilt, and clean."
        )
    if found.get("pairs") and found.get("camera", "none") != "none":
        raise DataError(f"{file} sets pairs and a camera. Pairs hold what their own camera spoilt; keep one of them.")
    if found.get("test") and not found.get("data"):
        raise DataError(f"{file} sets test, and no data to learn from. Set data too.")
    labels = [label.strip() for label in found.get("labels", ())]
    if not all(labels) or len(set(labels)) < len(labels):
        raise DataError(f"{file} has an empty label, or one twice: {found['labels']}. Each label is a text of its own.")
    if len(labels) == 1:
        more = (
            f" Write [{', '.join(json.dumps(part.strip()) for part in labels[0].split(','))}]."
            if "," in labels[0]
            else ""
        )
        raise DataError(f"{file} has the one label {labels[0]!r}, and nothing to choose from.{more}")


def _place(file: Path, name: str) -> str:
    """A path that is seen from the task file."""
    return name if name == DRAWN else str(file.parent / name)
