"""Tasks that have the same base share one opened model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from ..formats.integrity import Identity, identities, refuse_links, verify
from ..formats.manifest import BaseManifest
from .fork import in_child
from .providers import Plan
from .sessions import Parts, TrimmedMemory, open_parts


class Opened(Protocol):
    """A model that was opened from the graphs of a base."""

    parts: Parts
    trimmed: TrimmedMemory


ModelT = TypeVar("ModelT", bound=Opened)


class _Lock:
    """A lock that a weak dictionary can hold."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


# By the digest of the base, and by the providers of its parts, the number of threads, and the files that were opened
# without verification.
_opened: weakref.WeakValueDictionary[tuple[str, str], Opened] = weakref.WeakValueDictionary()
_locks: weakref.WeakValueDictionary[str, _Lock] = weakref.WeakValueDictionary()
_locks_lock = threading.Lock()


def _begin_anew() -> None:
    """Forget what the parent has open, and its locks, which one of its threads may have held."""
    global _locks_lock
    _opened.clear()
    _locks.clear()
    _locks_lock = threading.Lock()


in_child(_begin_anew)


def share(
    folder: Path,
    manifest: BaseManifest,
    plan: Plan,
    make: Callable[[Path, Callable[[], Parts]], ModelT],
    *,
    verify_files: bool = True,
) -> ModelT:
    """Verify a base and open it, or return the model that another task has open on the same providers.

    Verified files are those of the manifest, wherever they lie, so any verified model of that manifest will do.
    Files that are not verified may be damaged, or replaced on purpose. So only a model of the very same files will do,
    unchanged since then.

    Threads that load the same base open it once; other bases do not wait for it. A forked process opens its own.

    Args:
        folder: of the base.
        manifest: of the base.
        plan: the providers of each part.
        make: makes the model of the folder, and of a function that opens its graphs. It reads the small files first,
            since opening graphs takes time and memory that a damaged bundle should not cost.
        verify_files: whether to check the digest of every file first.
    """

    def key(unverified: set[Identity] | None) -> tuple[str, str]:
        opened_from = None if unverified is None else sorted(unverified)
        return manifest.digest, repr((sorted(plan.chosen.items()), plan.threads, opened_from))

    with _locks_lock:
        turn = _locks.setdefault(manifest.digest, _Lock())
    with turn.lock:
        if verify_files:
            place = key(None)
            model = _opened.get(place)
            files = set() if model is None else model.parts.files
            verify(folder, manifest.files, files)
        else:
            refuse_links(folder, manifest.files)
            files = identities(folder, manifest.files)
            place = key(files)
            known = len(files) == len(manifest.files)  # one that was just written may change and look the same
            able = [_opened.get(key(None)), _opened.get(place)] if known else []
            model = next((one for one in able if one is not None and files <= one.parts.files), None)
        if model is None or not model.parts.fallbacks.keys() <= plan.automatic:
            model = make(folder, lambda: open_parts(folder, plan, manifest.files))
            model.parts.files = files
            model.trimmed = TrimmedMemory()  # its last attribute, so that it goes after all sessions
            _opened[place] = model
        return model  # type: ignore[return-value]
