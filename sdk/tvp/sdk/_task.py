"""Loading a task and asking it: `load`, `Task`, `View`, `Answer`."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._decoder import GrowingKeyValues, KeyValues, log_softmax
from ._image import ImageLike, read_image
from ._manifest import TaskManifest, read_base_manifest, read_task_manifest, verify
from ._sessions import Base, Providers, choose_providers, load_base, open_session, run
from .errors import BundleError, ProviderError, RequestError, near

log = logging.getLogger("tvp.sdk")

MAX_QUESTION = 8192  # characters; longer than any context in use, and bounded before it is tokenised


@dataclass(frozen=True)
class Answer:
    """What a task answers; `str(answer)` is the text.

    tokens: ids, the end token included where the model gave one.
    log_probabilities: one a token.
    timing: seconds, by step: `see` (0 where the view was there already), `first_token`, `total`.
    """

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    timing: Mapping[str, float]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Ranked:
    """A label and its score: the mean log-probability of its tokens."""

    label: str
    score: float


def home() -> Path:
    """The folder that names are looked up in: $TVP_HOME, or ~/.tvp."""
    return Path(os.environ.get("TVP_HOME") or Path.home() / ".tvp")


def tasks() -> list[str]:
    """Names of the tasks under $TVP_HOME/tasks."""
    return sorted(path.parent.name for path in (home() / "tasks").glob("*/manifest.json"))


def load(task: str | os.PathLike[str], *, providers: Providers = "auto", verify_files: bool = True) -> Task:
    """Load a task.

    task: a folder, or a name under $TVP_HOME/tasks.
    providers: `auto`, a provider's name, or a list of names and (name, options) as onnxruntime takes.
    verify_files: check the sha256 of every file first. Leave it on unless the storage is trusted.
    Raises BundleError for a bundle that is missing, damaged, of a newer format or without its base;
    ProviderError for a provider that is unknown or does not start.
    """
    folder = find(task)
    manifest = read_task_manifest(folder / "manifest.json")
    base_manifest = read_base_manifest(folder / "base" / "manifest.json")
    if base_manifest.digest != manifest.base_digest:
        raise BundleError(
            f"The bundle {folder} was exported with the base {manifest.base_digest[:16]}…, and its folder 'base' "
            f"holds {base_manifest.digest[:16]}…. Put the right base there or export again."
        )
    chosen = choose_providers(providers)
    for needed, entries, place in (
        (("preprocess.onnx", "golden/cases.json"), manifest.files, folder),
        (
            base_manifest.needs,
            base_manifest.files,
            folder / "base",
        ),
    ):
        missing = [name for name in needed if name not in entries]
        if missing:
            raise BundleError(f"The manifest in {place} does not list {missing[0]}. Export the bundle again.")
        if verify_files:
            verify(place, entries)
    try:
        base = load_base(folder / "base", base_manifest, chosen)
    except ProviderError as error:
        if providers != "auto" or chosen == ["CPUExecutionProvider"]:
            raise
        log.warning("%s Running on the CPU instead.", error)
        base = load_base(folder / "base", base_manifest, ["CPUExecutionProvider"])
    preprocess = open_session(folder / "preprocess.onnx", ["CPUExecutionProvider"])
    return Task(folder, manifest, base, preprocess)


class Task:
    """A loaded task. Use `load` to get one; closes with `close()` or `with`."""

    def __init__(self, folder: Path, manifest: TaskManifest, base: Base, preprocess: Any) -> None:
        self.folder = folder
        self.manifest = manifest
        self._base: Base | None = base
        self._preprocess = preprocess

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def labels(self) -> tuple[str, ...]:
        return self.manifest.labels

    def see(self, image: ImageLike) -> View:
        """Encode a picture once, to ask about it many times.

        image: a path, bytes, a PIL image, or a uint8 array (height, width, 3).
        Raises ImageError for a picture that cannot be read.
        """
        began = time.perf_counter()
        pixels = self.pixel_values(image)
        output = "image_embeds" if self.base.connector is None else "image_features"
        features = run(self.base.vision_encoder, output, {"pixel_values": pixels})
        return View(self, features, time.perf_counter() - began)

    def pixel_values(self, image: ImageLike) -> NDArray[np.float32]:
        """What the vision encoder is given: float32 (1, 3, size, size), the prompt in it."""
        if self._preprocess is None:
            raise RequestError(f"The task {self.name!r} is closed. Load it again.")
        return run(self._preprocess, "pixel_values", {"image": read_image(image)})

    def ask(self, image: ImageLike, question: str | None = None, *, max_new_tokens: int | None = None) -> Answer:
        """Answer a question about a picture, greedily.

        question: default: the task's own question, where it has one.
        max_new_tokens: default: the bundle's.
        Raises ImageError, or RequestError for a question that cannot be asked.
        """
        self._question(question)  # a bad question fails before the picture is encoded
        return self.see(image).ask(question, max_new_tokens=max_new_tokens)

    def rank(
        self, image: ImageLike, question: str | None = None, *, labels: Sequence[str] | None = None
    ) -> list[Ranked]:
        """Score every label (default: the task's) as an answer; best first."""
        self._question(question)
        return self.see(image).rank(question, labels=labels)

    def check(self) -> dict[str, Any]:
        """Replay the bundle's golden cases here; see `tvp.sdk.check`."""
        from ._check import check

        return check(self)

    @property
    def base(self) -> Base:
        if self._base is None:
            raise RequestError(f"The task {self.name!r} is closed. Load it again.")
        return self._base

    def close(self) -> None:
        """Let go of the sessions; memory is freed once no other task or view uses the base."""
        self._base = None
        self._preprocess = None

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Task {self.name!r}, {self.manifest.base_digest[:12]}>"

    def _question(self, question: str | None) -> str:
        if question is None:
            question = self.manifest.question
            if not question:
                raise RequestError(f"The task {self.name!r} has no question of its own; give one.")
        if not isinstance(question, str) or not question.strip():
            raise RequestError("The question is empty; give a text.")
        if len(question) > MAX_QUESTION:
            raise RequestError(f"The question has {len(question):,} characters; at most {MAX_QUESTION:,} are read.")
        return question


class View:
    """A picture as a loaded task sees it. Keys and values of picture and prefix are kept, so a second
    question costs its own tokens only. One view may be asked from several threads; they take turns."""

    def __init__(self, task: Task, features: NDArray[np.float32], seconds: float) -> None:
        self._task = task
        self._base = task.base
        self._features = features  # image embeddings, but where a connector makes those with the question
        self._read = ""  # the question that the connector or the encoder has read
        self._seconds = seconds
        self._cache = KeyValues(self._base) if self._base.encoder is None else GrowingKeyValues(self._base)
        self._lock = threading.Lock()

    def ask(self, question: str | None = None, *, max_new_tokens: int | None = None) -> Answer:
        """Answer a question about this picture, greedily."""
        limit = self._task.manifest.max_new_tokens if max_new_tokens is None else max_new_tokens
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise RequestError(f"max_new_tokens is {limit!r}; it must be a whole number of at least 1.")
        began = time.perf_counter()
        tokens: list[int] = []
        scores: list[float] = []
        first = 0.0
        with self._lock:
            for token, logits in self.decode(question, limit):
                tokens.append(token)
                scores.append(float(log_softmax(logits)[token]))
                first = first or time.perf_counter() - began
        # An end token need not be a special one: BLIP-2 ends at a line break, VPGTrans at "##".
        spoken = tokens[:-1] if tokens[-1] in self._base.manifest.layout.end else tokens
        text = self._base.tokenizer.decode(spoken, skip_special_tokens=True).strip()
        timing = {"see": self._seconds, "first_token": first, "total": self._seconds + time.perf_counter() - began}
        self._seconds = 0.0
        return Answer(text, tuple(tokens), tuple(scores), timing)

    def decode(self, question: str | None, limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each new token with its logits (n_vocab,), greedily; the last is an end token or the limit's.

        Not locked: the export's parity gate reads it; everybody else calls `ask`.
        """
        end = self._base.manifest.layout.end
        logits = self._prefill(question)
        for n_new in range(1, limit + 1):
            token = int(logits[0, -1].argmax())
            yield token, logits[0, -1]
            if token in end or n_new == limit:
                return
            logits = self._cache.run(self._embed([token])[None], 1)

    def rank(self, question: str | None = None, *, labels: Sequence[str] | None = None) -> list[Ranked]:
        """Score labels as answers to a question about this picture; best first."""
        if isinstance(labels, str):
            raise RequestError(f"labels is the text {labels!r}; give a list of texts: labels=['…', …].")
        labels = self._task.labels if labels is None else tuple(labels)
        if not labels or not all(isinstance(label, str) and label for label in labels):
            raise RequestError(
                f"The task {self._task.name!r} has no labels to rank; give them as labels=['…', …]."
                if not labels
                else "Every label must be a text that is not empty."
            )
        with self._lock:
            return self._rank(question, labels)

    def _rank(self, question: str | None, labels: Sequence[str]) -> list[Ranked]:
        candidates = [self._base.words.answer_ids(label) for label in labels]
        first = log_softmax(self._prefill(question)[0, -1])
        totals = np.array([first[ids[0]] for ids in candidates], np.float64)
        length = max(len(ids) for ids in candidates) - 1
        # onnxruntime continues several sequences by one token a run only, so: all labels, token by token.
        branches = self._cache.copies(len(labels), length) if length else None
        for step in range(length):
            fed = [ids[step] if step + 1 < len(ids) else ids[0] for ids in candidates]  # short ones are idle
            logits = log_softmax(branches.run(self._embed(fed)[:, None], 1)[:, -1])  # type: ignore[union-attr]
            for row, ids in enumerate(candidates):
                if step + 1 < len(ids):
                    totals[row] += float(logits[row, ids[step + 1]])
        scores = totals / np.array([len(ids) for ids in candidates])
        order = np.argsort(-scores, kind="stable")
        return [Ranked(labels[i], float(scores[i])) for i in order]

    def _prefill(self, question: str | None) -> NDArray[np.float32]:
        """Run what comes before the answer; returns the logits of its first token (1, 1, n_vocab)."""
        question = self._task._question(question)
        before, after = self._base.words.prompt_ids(question)
        connector = self._base.connector
        if isinstance(self._cache, GrowingKeyValues):
            if self._read != question:
                self._cache.read(self._join(before, question, after))
                self._read = question
            self._cache.rewind()
            return self._cache.run(self._embed([self._base.manifest.start_token])[None], 1)
        n_prefix = len(before) + self._base.manifest.n_image_tokens
        if self._cache.length >= n_prefix and (connector is None or self._read == question):
            self._cache.length = n_prefix  # rewind to the picture
            return self._cache.run(self._embed(after)[None], 1)
        self._cache.length = 0
        logits = self._cache.run(self._join(before, question, after), 1)
        self._read = question
        return logits

    def _join(self, before: list[int], question: str, after: list[int]) -> NDArray[np.float32]:
        """What the language model reads, as embeddings (1, n_all, n_text)."""
        connector = self._base.connector
        image = self._features if connector is None else connector.embed(self._features, question)
        return np.concatenate([self._embed(before), image[0], self._embed(after)])[None]

    def _embed(self, ids: Any) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._base.embeddings[np.asarray(ids, np.int64)].astype(np.float32, copy=False)
        return rows


def find(task: str | os.PathLike[str]) -> Path:
    """The folder of a bundle that is given by path or by name; raises BundleError where there is none."""
    path = Path(task)
    if len(path.name) > 255:
        raise BundleError(f"The name of the bundle has {len(path.name)} characters; no folder's name is that long.")
    if (path / "manifest.json").is_file():
        return path
    if path.is_dir():
        raise BundleError(f"The folder {path} has no manifest.json; it is not a bundle. `tvp export` makes one.")
    if path.is_file():
        raise BundleError(f"{path} is a file; a bundle is a folder with a manifest.json.")
    named = home() / "tasks" / path
    if len(path.parts) == 1 and (named / "manifest.json").is_file():
        return named
    known = tasks()
    raise BundleError(
        f"There is no bundle {os.fspath(task)!r}: no folder of that path, and {home() / 'tasks'} has "
        f"{', '.join(known) or 'no tasks'}.{near(os.fspath(task), known)} `tvp export` makes one."
    )
