"""Stopping a graph that runs: by an event, by a time limit, or by a signal.

onnxruntime returns when a graph is done; until then no Python runs in that thread. But it looks at a flag between two
operators, and another thread may set it. One thread of this module watches all runs that can be stopped.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .fork import in_child
from .providers import onnxruntime

PERIOD = 0.02  # seconds between two looks at the events and the clock


class StoppedError(Exception):
    """A run was stopped. Models catch it where an answer can end; `reason` is how the answer's `finish` names it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Runs(threading.local):
    """The runs of this thread that can be stopped: the innermost is the current one."""

    current: Stoppable | None = None


class Stoppable:
    """While its `with` block lasts, the runs of this thread stop when an event is set or a moment has passed.

    Args:
        cancel: the event; None for none.
        until: a moment of `time.perf_counter()`; None for none.
    """

    def __init__(self, cancel: threading.Event | None, until: float | None) -> None:
        self._cancel, self._until = cancel, until
        self.options = onnxruntime().RunOptions()
        self.reason = ""

    def look(self, now: float) -> None:
        """Stop the run if it must not go on."""
        if self._cancel is not None and self._cancel.is_set():
            self.stop("cancelled")
        elif self._until is not None and now >= self._until:
            self.stop("time")

    def stop(self, reason: str) -> None:
        """Stop the run at its next operator."""
        self.reason = self.reason or reason
        self.options.terminate = True

    def __enter__(self) -> Stoppable:
        self._outer, _runs.current = _runs.current, self
        _watch(self)
        return self

    def __exit__(self, *error: object) -> None:
        with _changed:
            _watched.discard(self)
        _runs.current = self._outer


def stoppable(cancel: threading.Event | None, until: float | None) -> AbstractContextManager[Any]:
    """Return a `Stoppable`, or a context that does nothing where there is nothing to stop for."""
    return nullcontext() if cancel is None and until is None else Stoppable(cancel, until)


def stopped(run: Callable[[Any], Any]) -> Any:
    """Do a run of onnxruntime; run: takes RunOptions or None. Raises StoppedError where it was stopped."""
    current = _runs.current or _process
    if current is None:
        return run(None)
    current.look(time.perf_counter())  # the watching thread may look too late for a short run
    if not current.reason:
        try:
            return run(current.options)
        except Exception:
            if not current.reason:
                raise
    raise StoppedError(current.reason)


# The watching thread.

_runs = _Runs()
_process: Stoppable | None = None  # of a program whose every run a signal stops
_watched: set[Stoppable] = set()
_changed = threading.Condition()
_watcher: threading.Thread | None = None


def _watch(one: Stoppable) -> None:
    global _watcher
    with _changed:
        _watched.add(one)
        if _watcher is None or not _watcher.is_alive():  # none survives a fork
            _watcher = threading.Thread(target=_look_at_all, name="tvp-stopping", daemon=True)
            _watcher.start()
        _changed.notify()


def _begin_anew() -> None:
    """Forget the parent's runs, its threads, and its lock, which one of them may have held."""
    global _changed, _watcher, _process
    if _process is not None:
        signal.set_wakeup_fd(-1)  # or this process's signals would stop the parent's runs
    _changed, _watcher, _process = threading.Condition(), None, None
    _watched.clear()


in_child(_begin_anew)


def _look_at_all() -> None:
    while True:
        with _changed:
            while not _watched:
                _changed.wait()
            now = time.perf_counter()
            for one in _watched:
                one.look(now)
        time.sleep(PERIOD)


def stop_on_signals() -> None:
    """Let SIGINT and SIGTERM stop every run of this process, for a program whose main thread runs graphs.

    Python's own handlers run when the main thread is back in Python, which a stopped run brings it to.
    """
    global _process
    if _process is not None or not hasattr(os, "set_blocking") or os.name == "nt":
        return
    _process = Stoppable(None, None)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_stop_at_signal, args=(reader, _process), name="tvp-signals", daemon=True).start()


def _stop_at_signal(reader: int, process: Stoppable) -> None:
    while number := os.read(reader, 1):
        if number[0] in (signal.SIGINT, signal.SIGTERM):
            process.stop("cancelled")
