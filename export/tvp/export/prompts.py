"""Which prompt an export bakes in: a whole one, a lens, a frame, or a lens and a frame that were learned apart."""

from __future__ import annotations

from pathlib import Path

from tvp.sdk.errors import RequestError
from tvp.trainer.prompt import Prompt, compose


def choose_prompt(prompt: Path | None = None, lens: Path | None = None, frame: Path | None = None) -> Prompt | None:
    """Read the prompt files that an export was given.

    Args:
        prompt: file of a whole prompt; then there are no others.
        lens: file of a prompt whose lens is taken.
        frame: file of a prompt that is a frame alone.

    Returns:
        The prompt; None where no file is given.

    Raises:
        RequestError: the files do not go together, or one has not what it is given for.
        DataError: a file is missing or damaged.
    """
    if prompt is not None:
        if lens is not None or frame is not None:
            raise RequestError("--prompt is a whole prompt. Give it alone, or give --lens, --frame or both.")
        return Prompt.load(prompt)
    if lens is not None and frame is not None:
        return compose(Prompt.load(lens), Prompt.load(frame))
    if lens is not None:
        loaded = Prompt.load(lens)
        if loaded.lens is None:
            raise RequestError(f"{lens} has no lens; it is a frame alone. Give it as --frame.")
        if loaded.frame is not None:
            raise RequestError(
                f"{lens} has a frame besides its lens. Give it as --prompt for both, or add --frame with another frame."
            )
        return loaded
    if frame is not None:
        loaded = Prompt.load(frame)
        if loaded.frame is None or loaded.lens is not None:
            has = (
                "no frame; it is a lens alone. Give it as --lens"
                if loaded.frame is None
                else "a lens besides its frame"
            )
            raise RequestError(f"{frame} has {has}{'' if loaded.frame is None else '. Give it as --prompt for both'}.")
        return loaded
    return None


def parts_of(prompt: Prompt | None) -> tuple[str, ...]:
    """Return which parts a prompt has, as a manifest names them."""
    parts = {} if prompt is None else {"lens": prompt.lens, "frame": prompt.frame}
    return tuple(name for name, part in parts.items() if part is not None)
