"""What a forked process does with the sessions of its parent: it leaves them alone.

A fork copies a session's memory and none of its threads. Whoever runs such a session waits for ever, and so does its
destructor, which joins them.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from typing import Any

from ..errors import RequestError

_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


def remember(session: Any) -> None:
    """Remember a session of this process, so that its forks never destroy it."""
    _sessions.add(session)


def in_child(renew: Callable[[], None]) -> None:
    """Call a function in every process that is forked from this one."""
    if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
        os.register_at_fork(after_in_child=renew)


def refuse_fork(process: int, name: str) -> None:
    """Raise RequestError where this process is not the one that loaded a task of this name."""
    if process != os.getpid():
        raise RequestError(
            f"The task {name!r} was loaded in process {process}, and this is process {os.getpid()}, a fork of it. A "
            "loaded task does not survive a fork. Load it again in this process."
        )


def _keep_for_ever() -> None:
    for session in list(_sessions):
        # One reference that nothing takes back, not even the end of the interpreter. The memory stays shared with the
        # parent as long as nobody writes to it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    _sessions.clear()


in_child(_keep_for_ever)
