"""Tasks that have the same base share one opened model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from ..formats.integrity import refuse_links, verify
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


# By the digest of the base, and by the providers of its parts with the number of threads.
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

    Threads that load the same base open it once; other bases do not wait for it. A forked process opens its own.

    Args:
        folder: of the base.
        manifest: of the base.
        plan: the providers of each part.
        make: makes the model of the folder, and of a function that opens its graphs. It reads the small files first,
            since opening graphs takes time and memory that a damaged bundle should not cost.
        verify_files: whether to check the digest of every file first.
    """
    key = (manifest.digest, repr((sorted(plan.chosen.items()), plan.threads)))
    with _locks_lock:
        turn = _locks.setdefault(manifest.digest, _Lock())
    with turn.lock:
        model = _opened.get(key)
        verified = set() if model is None else model.parts.verified
        if verify_files:
            verify(folder, manifest.files, verified)
        else:
            refuse_links(folder, manifest.files)
        # A model that was opened without verification is not the one whose files were verified now.
        unseen = model is not None and verify_files and not model.parts.checked
        if model is None or unseen or not model.parts.fallbacks.keys() <= plan.automatic:
            model = make(folder, lambda: open_parts(folder, plan, manifest.files))
            model.parts.verified, model.parts.checked = verified, verify_files
            model.trimmed = TrimmedMemory()  # its last attribute, so that it goes after all sessions
            _opened[key] = model
        return model  # type: ignore[return-value]
