"""The tasks of a server: loaded, swapped and dropped while others are asked."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._load import load
from .._runtime.providers import Providers
from .._store import find, home, read_manifests
from .._task import Task
from .._terminal import escaped
from ..errors import RequestError, TvpError, near
from .refusals import Refusal
from .settings import Settings

log = logging.getLogger("tvp.serve")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
GREY = np.full((32, 32, 3), 128, np.uint8)
_numbers = itertools.count()


class Served:
    """A task that is being served. It is closed when it has been dropped and its last question is answered.

    Attributes:
        name: that clients call it by.
        source: where it was loaded from.
        task: the loaded task.
        number: another one for each load: views of an earlier load are not used.
        loaded: when, in seconds since 1970.
        is_dropped: whether no further question comes.
    """

    def __init__(self, name: str, source: str, task: Task) -> None:
        self.name, self.source, self.task = name, source, task
        self.number, self.loaded = next(_numbers), int(time.time())
        self.is_dropped = False
        self._n_questions = 0

    def hold(self) -> None:
        """Keep the task open until `release`."""
        self._n_questions += 1

    def release(self) -> None:
        """A question is answered."""
        self._n_questions -= 1
        self._close_if_done()

    def drop(self) -> None:
        """No further question comes."""
        self.is_dropped = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.is_dropped and not self._n_questions:
            self.task.close()

    def about(self) -> dict[str, Any]:
        """Return what clients may know."""
        manifest, base = self.task.manifest, self.task.model.manifest
        return {
            "name": self.name,
            "task": manifest.name,
            "kind": self.task.kind,
            "question": manifest.question,
            "labels": list(manifest.labels),
            "max_new_tokens": manifest.max_new_tokens,
            "prompt": list(manifest.prompt),
            "model": manifest.provenance.model,
            "precision": base.precision,
            "knows_unlikeness": manifest.n_moment_pictures > 0,
        }


class Tasks:
    """The tasks by name. Everything but loading itself happens in the event loop's thread.

    Args:
        settings: limits of pictures.
        providers: as of `sdk.load`.
        check: whether golden cases are replayed before a task is served.
        on_drop: is told of each task that was dropped or swapped.
    """

    def __init__(
        self,
        settings: Settings,
        providers: Providers = "auto",
        check: bool = False,
        on_drop: Callable[[Served], None] = lambda served: None,
    ) -> None:
        self._settings, self._providers, self._check = settings, providers, check
        self.on_drop = on_drop
        self._tasks: dict[str, Served] = {}
        self._loading = asyncio.Lock()

    def __iter__(self) -> Iterator[Served]:
        return iter([*self._tasks.values()])

    def __len__(self) -> int:
        return len(self._tasks)

    def find(self, name: Any) -> Served:
        """Return a task; without a name, the only one. Raises Refusal where there is none."""
        if name is None and len(self._tasks) == 1:
            return next(iter(self._tasks.values()))
        known = ", ".join(self._tasks) or "none"
        if not isinstance(name, str):
            raise Refusal(400, f"Name the task. This server has: {known}.", "no_task")
        if name not in self._tasks:
            raise Refusal(
                404, f"There is no task {name[:64]!r}. This server has: {known}.{near(name[:64], self._tasks)}",
                "model_not_found",
            )  # fmt: skip
        return self._tasks[name]

    async def load(self, name: str | None, source: str) -> Served:
        """Load a task, or load it anew: questions that were accepted are answered by the one before.

        Raises:
            TvpError: it cannot be loaded; then nothing changes.
        """
        async with self._loading:
            served = await asyncio.to_thread(self.open, name, source)
            self.add(served)
        return served

    def open(self, name: str | None, source: str) -> Served:
        """Load a task and ask it once: the first question of all takes longer. It is not served yet."""
        task = load(source, providers=self._providers, limits=self._settings.image_limits)
        try:
            name = check_name(task.name if name is None else name)
            if self._check:
                task.check()
            if task.kind != "contrastive":
                task.ask(GREY, task.manifest.question or "What is this?", max_new_tokens=2)
            elif task.labels and task.manifest.question:
                task.ask(GREY)
        except BaseException:
            task.close()
            raise
        return Served(name, source, task)

    def add(self, served: Served) -> None:
        """Serve a task, in the place of that which had its name."""
        before = self._tasks.get(served.name)
        self._tasks[served.name] = served
        log.info("serving %s from %s", served.name, escaped(served.source))
        if before is not None:
            self._let_go(before)

    def drop(self, name: str) -> None:
        """Serve a task no longer; raises Refusal where there is none."""
        served = self.find(name)
        del self._tasks[name]
        log.info("dropped %s", name)
        self._let_go(served)

    async def follow(self, wanted: Sequence[tuple[str | None, str]]) -> None:
        """Serve exactly these (name, source) pairs: what is new or has changed is loaded, the rest is dropped.

        One that cannot be loaded stays as it was; the log says so.
        """
        kept: set[str] = set()
        for name, source in wanted:
            try:
                digest = read_manifests(source)[0].digest
                same = [
                    served.name
                    for served in self
                    if served.source == source
                    and served.task.manifest.digest == digest
                    and name in (None, served.name)
                    and served.name not in kept
                ]
                kept.add(same[0] if same else (await self.load(name, source)).name)
            except TvpError as error:
                log.error("%s was not loaded: %s", escaped(source), escaped(str(error)))
                kept |= {served.name for served in self if served.source == source or served.name == name}
        for served in self:
            if served.name not in kept:
                self.drop(served.name)

    def close(self) -> None:
        """Drop all of them."""
        for served in self:
            self.drop(served.name)

    def _let_go(self, served: Served) -> None:
        served.drop()
        self.on_drop(served)


def check_name(name: str) -> str:
    """Return a name that is safe in an address, a log and a metric; raises RequestError for another."""
    if not NAME.fullmatch(name):
        raise RequestError(
            f"A task cannot be served as {name[:64]!r}: a name has at most 64 letters, digits, dots, dashes and "
            "underscores. Give it another one: NAME=TASK."
        )
    return name


def split(text: str) -> tuple[str | None, str]:
    """Return name and source of `NAME=TASK`, or of `TASK` alone."""
    name, equals, source = text.partition("=")
    if not equals or "/" in name or Path(text).exists():
        return None, text
    return check_name(name), source


def read_list(file: Path) -> list[tuple[str | None, str]]:
    """Read a list of tasks: a line for each, TASK or NAME=TASK. `#` begins a comment; paths are from the list's folder.

    Raises:
        RequestError: it cannot be read, or a name is wrong.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"The list of tasks {file} cannot be read: {error}.") from error
    pairs = [split(text) for text in (line.split("#")[0].strip() for line in lines) if text]
    return [(name, str(file.parent / source) if (file.parent / source).exists() else source) for name, source in pairs]


def own_task(source: Any) -> str:
    """Return a name under the server's folder of tasks, for a load over HTTP; raises Refusal for anything else.

    An admin of the service need not be one of the machine: no path leads elsewhere.
    """
    if not isinstance(source, str) or not NAME.fullmatch(source):
        raise Refusal(400, "'task' must be a name under the server's folder of tasks, and no path.", "wrong_task")
    folder = home() / "tasks" / source
    if not (folder / "manifest.json").is_file():
        raise Refusal(404, f"The server's folder of tasks has no {source!r}.", "model_not_found")
    return str(find(folder))
