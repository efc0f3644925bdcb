"""What a command shows on a terminal while it works: one line that moves, and that is gone at the end.

Nothing is shown where stderr is no terminal. Only one line moves at a time: while a bar of tqdm is there, it alone.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

PERIOD = 0.2  # seconds between two pictures of the line
WHEEL, BAR = "|/-\\", 12
log = logging.getLogger("tvp.trainer")


@dataclass
class Work:
    """What is being done: a text, and for work of several steps, which of how many."""

    text: str
    n_steps: int = 0
    step: int = 0
    began: float = field(default_factory=time.monotonic)

    def line(self, now: float) -> str:
        """The line that is shown at this moment."""
        done = max(0, min(self.step - 1, self.n_steps)) * BAR // self.n_steps if self.n_steps else 0
        steps = f"{self.step}/{self.n_steps} [{'#' * done}{'.' * (BAR - done)}] " if self.n_steps else ""
        return f"{WHEEL[int(now / PERIOD) % len(WHEEL)]} {steps}{self.text} … {now - self.began:.0f} s"


class _Line:
    """The line that moves. The innermost work is shown; a thread draws it anew."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.lock = threading.RLock()
        self._n_shown = 0
        self._thread: threading.Thread | None = None

    def begin(self, work: Work) -> None:
        with self.lock:
            self.works.append(work)
            self.draw()
            if self._thread is None:
                self._thread = threading.Thread(target=self._go_on, name="tvp-progress", daemon=True)
                self._thread.start()

    def end(self, work: Work) -> None:
        with self.lock:
            self.works.remove(work)
            self.clear()

    def draw(self) -> None:
        with self.lock:
            if not self.works or _bars():
                return
            width = shutil.get_terminal_size().columns - 1
            line = self.works[-1].line(time.monotonic())[:width]
            sys.stderr.write("\r" + line.ljust(self._n_shown))
            sys.stderr.flush()
            self._n_shown = len(line)

    def clear(self) -> None:
        with self.lock:
            if self._n_shown:
                sys.stderr.write("\r" + " " * self._n_shown)
                sys.stderr.write("\r")
                sys.stderr.flush()
                self._n_shown = 0

    def _go_on(self) -> None:
        while True:
            time.sleep(PERIOD)
            with self.lock:
                if not self.works:
                    self._thread = None
                    return
                self.draw()


_line = _Line()


def _bars() -> bool:
    """Whether a bar of tqdm is shown."""
    kind = getattr(sys.modules.get("tqdm"), "tqdm", None)  # none while another thread imports it
    return len(getattr(kind, "_instances", ())) > 0


def on_terminal() -> bool:
    """Whether stderr is a terminal; of several processes that train together, only the first has one."""
    return os.environ.get("RANK", "0") == "0" and sys.stderr.isatty()


@contextmanager
def working(text: str, n_steps: int = 0) -> Iterator[None]:
    """Show what is being done, and for how long, while the block lasts.

    Args:
        text: such as `loading zoo:blip2`.
        n_steps: number of calls of `step` in the block, for work that has steps. Default 0.
    """
    if not on_terminal():
        yield
        return
    work = Work(text, n_steps)
    _line.begin(work)
    try:
        yield
    finally:
        _line.end(work)


def step(text: str) -> None:
    """Say which step of the work begins; of no effect outside of `working` with steps."""
    work = next((one for one in reversed(_line.works) if one.n_steps), None)
    if work is not None:
        work.step, work.text, work.began = work.step + 1, text, time.monotonic()
        _line.draw()


def bar(items: Iterable[Any], text: str, *, quiet: bool | None = None, **options: Any) -> tqdm[Any]:
    """Return tqdm's bar over items, which takes the place of the line, and is gone when it is done.

    Args:
        items: what is gone through.
        text: what is done with them.
        quiet: show no bar. Default None: no bar where stderr is no terminal.
        options: others of tqdm.
    """
    _line.clear()
    from tqdm import tqdm

    return tqdm(items, text, disable=quiet, leave=False, **options)


def say(text: str) -> None:
    """Tell what is worth knowing: on a terminal in a line of its own, and else in the log."""
    log.info(text)
    if on_terminal():
        _write(text)


def _write(text: str) -> None:
    with _line.lock:
        _line.clear()
        if _bars():
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


class _Warnings(logging.Handler):
    """Writes warnings in lines of their own, where else they would end a line that moves."""

    def emit(self, record: logging.LogRecord) -> None:
        _write(self.format(record))


def tidy_warnings() -> None:
    """Let warnings of TVP keep clear of the line that moves, for a command on a terminal."""
    logger = logging.getLogger("tvp")
    if on_terminal() and not logger.handlers:
        logger.addHandler(_Warnings(logging.WARNING))
        logger.propagate = False
