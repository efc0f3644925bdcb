"""Loading a task and asking it: `load` and `Task`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from ._generation import Generation, Options
from ._image import ImageLike, read_image
from ._manifest import TaskManifest, read_base_manifest, read_task_manifest, verify
from ._pack import digest, unpack
from ._providers import CPU, ON_CPU, PREPROCESS, Providers, make_plan
from ._sessions import FILES, Base, load_base, open_session, run
from ._shapes import check_preprocess
from ._view import Answer, Ranked, View, answer_together
from .errors import BundleError, RequestError, near

log = logging.getLogger("tvp.sdk")

MAX_QUESTION = 8192  # characters; longer than any context in use, and bounded before it is tokenised


def home() -> Path:
    """The folder that names are looked up in: $TVP_HOME, or ~/.tvp."""
    try:
        return Path(os.environ.get("TVP_HOME") or Path.home() / ".tvp")
    except RuntimeError:  # a user without one, as in some containers, who may still load a folder
        return Path("/nonexistent/.tvp")


def tasks() -> list[str]:
    """Names of the tasks under $TVP_HOME/tasks."""
    return sorted(path.parent.name for path in (home() / "tasks").glob("[!.]*/manifest.json"))


def load(task: str | os.PathLike[str], *, providers: Providers = "auto", verify_files: bool = True) -> Task:
    """Load a task.

    task: a folder, a name under $TVP_HOME/tasks, or a `.tvp` file, which is unpacked to $TVP_HOME/cache.
    providers: `auto` (CUDA where onnxruntime has it and the bundle was made for it or is no int8 or int4, else the
        CPU), a provider (`cpu`, `cuda`, `tensorrt` or
        onnxruntime's name), (name, options), a list of those, or a mapping of parts (`vision_encoder`, `connector`,
        `encoder`, `decoder`, `text_encoder`) to any of these. TensorRT is for the vision encoder; it is never chosen
        by `auto`, and keeps its engine under $TVP_HOME/cache. What was named runs there or is an error; what `auto`
        chose and does not start runs on the CPU, with a warning. `Task.providers` says what each part runs on.
    verify_files: check the sha256 of every file first. Leave it on unless the storage is trusted. A file of a base
        that is loaded is not read again while its inode, size and times stay the same.
    Raises BundleError for a bundle that is missing, damaged, of a newer format or without its base;
    ProviderError for a provider that is unknown or does not start.
    """
    folder = find(task)
    try:
        return _open(folder, providers, verify_files)
    except BundleError as error:
        if Path(task).suffix == ".tvp" and folder != Path(task).absolute():
            raise BundleError(
                f"{error} The folder is a copy that was unpacked from {os.fspath(task)}: if that file is intact, "
                "delete the folder, and it is unpacked again."
            ) from error
        raise


def _open(folder: Path, providers: Providers, verify_files: bool) -> Task:
    manifest = read_task_manifest(folder / "manifest.json")
    base_manifest = read_base_manifest(folder / "base" / "manifest.json")
    if base_manifest.digest != manifest.base_digest:
        raise BundleError(
            f"The bundle {folder} was exported with the base {manifest.base_digest[:16]}…, and its folder 'base' "
            f"holds {base_manifest.digest[:16]}…. Put the right base there or export again."
        )
    plan = make_plan(
        providers,
        [part for part, file in FILES.items() if file in base_manifest.needs],
        home() / "cache" / "tensorrt" / base_manifest.digest,
        base_manifest.precision,
        base_manifest.device,
    )
    for needed, entries, place in (
        (("preprocess.onnx", "golden/cases.json"), manifest.files, folder),
        (base_manifest.needs, base_manifest.files, folder / "base"),
    ):
        missing = [name for name in needed if name not in entries]
        if missing:
            raise BundleError(f"The manifest in {place} does not list {missing[0]}. Export the bundle again.")
    if verify_files:
        verify(folder, manifest.files)
    base = load_base(folder / "base", base_manifest, plan, verify_files=verify_files)
    for part, reason in base.fallbacks.items():
        log.warning("%s Running the %s on the CPU instead.", reason, part)
    preprocess = open_session(folder / "preprocess.onnx", ON_CPU, manifest.files)
    check_preprocess(preprocess, base.vision_encoder)
    from ._closed import ContrastiveBase, ContrastiveTask

    if isinstance(base, ContrastiveBase):
        return ContrastiveTask(folder, manifest, base, preprocess)
    return Task(folder, manifest, base, preprocess)


class Task:
    """A loaded task. Use `load` to get one; closes with `close()` or `with`.

    It may be asked from several threads at once. A service that does so for long on Linux is best started with
    MALLOC_ARENA_MAX=2: of glibc's heaps, up to eight a core, each keeps the most that it ever held. A task does not
    survive a fork: each process loads its own.
    """

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

    @property
    def providers(self) -> Mapping[str, str]:
        """What each part runs on, by onnxruntime's names; the provider of most of its operators."""
        return {PREPROCESS: CPU, **self.base.providers}

    def see(self, image: ImageLike) -> View:
        """Encode a picture once, to ask about it many times.

        image: a path, bytes, a PIL image, or a uint8 array (height, width, 3).
        Raises ImageError for a picture that cannot be read.
        """
        began = time.perf_counter()
        features = self.encode(self.pixel_values(image))
        return self._view(features, time.perf_counter() - began)

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the vision encoder makes of pixel values (n, 3, size, size)."""
        output = "image_embeds" if self.base.connector is None else "image_features"
        return run(self.base.vision_encoder, output, {"pixel_values": pixels})

    def pixel_values(self, image: ImageLike) -> NDArray[np.float32]:
        """What the vision encoder is given: float32 (1, 3, size, size), the prompt in it."""
        session = self._preprocess  # `close` in another thread may take it
        if session is None:
            raise RequestError(f"The task {self.name!r} is closed. Load it again.")
        return run(session, "pixel_values", {"image": read_image(image)})

    def ask(self, image: ImageLike, question: str | None = None, **options: Unpack[Options]) -> Answer:
        """Answer a question about a picture, greedily unless `options` say otherwise (see `Options`).

        question: default: the task's own question, where it has one.
        Raises ImageError, or RequestError for a question that cannot be asked or an option that cannot be.
        """
        self.generation(options)  # what is bad fails before the picture is encoded
        self._refuse_unreadable(question)
        return self.see(image).ask(question, **options)

    def stream(self, image: ImageLike, question: str | None = None, **options: Unpack[Options]) -> Iterator[str]:
        """Answer as `ask` does, in pieces of text as they come; together they are the answer's text."""
        self.generation(options)
        self._refuse_unreadable(question)
        return self.see(image).stream(question, **options)

    def ask_many(
        self, requests: Iterable[tuple[ImageLike, str | None]], *, batch: int = 8, **options: Unpack[Options]
    ) -> list[Answer]:
        """Answer questions about pictures, `batch` of them at a time; the answers are those of `ask`.

        A picture that is given several times in a row is encoded once. Every row of a batch draws as `ask` does
        with the same seed. timing: `see` is a picture's share of the encoding, and `total` adds the time of all its
        batch's answers. Every question is checked before anything runs. Where `cancel` is set, what is under way ends
        where it is, and what has not begun has no answer: the list is shorter. A `time_limit` is that of each
        answer, from where the prompts of its batch have been read.
        """
        rows = list(requests)
        if wrong := [row for row in rows if not (isinstance(row, (tuple, list)) and len(row) == 2)]:
            raise RequestError(f"ask_many takes (picture, question) pairs, not a {type(wrong[0]).__name__} alone.")
        if not isinstance(batch, Integral) or isinstance(batch, bool) or batch < 1:
            raise RequestError(f"batch is {batch!r}; it must be a whole number of at least 1.")
        batch = int(batch)  # numpy's would overflow
        generation = self.generation(options)
        for _, question in rows:
            self._refuse_unreadable(question, too_long=True)
        answers: list[Answer] = []
        for start in range(0, len(rows), batch):
            if generation.cancel is not None and generation.cancel.is_set():
                break
            answers += self._answer_together(rows[start : start + batch], generation)
        return answers

    # What a task that only chooses among labels does in another way; see `tvp.sdk._closed`.

    def _view(self, features: NDArray[np.float32], seconds: float) -> View:
        return View(self, features, seconds)

    def _refuse_unreadable(self, question: str | None, too_long: bool = False, of_labels: bool = True) -> None:
        if too_long:
            self.base.refuse_too_long(self.question(question))
        else:  # which the first run tells as well, and the bundle's own mistakes before it
            self.base.words.prompt_ids(self.question(question))

    def _answer_together(
        self, requests: Sequence[tuple[ImageLike, str | None]], generation: Generation
    ) -> list[Answer]:
        return answer_together(self, requests, generation)

    def rank(
        self, image: ImageLike, question: str | None = None, *, labels: Sequence[str] | None = None
    ) -> list[Ranked]:
        """Score every label (default: the task's) as an answer; best first."""
        self._refuse_unreadable(question, of_labels=labels is None)
        labels = self.labels_to_rank(labels)
        return self.see(image).rank(question, labels=labels)

    def check(self) -> dict[str, Any]:
        """Replay the bundle's golden cases here; as `tvp check` does."""
        from ._check import check

        return check(self)

    @property
    def base(self) -> Base:
        base = self._base
        if base is None:
            raise RequestError(f"The task {self.name!r} is closed. Load it again.")
        return base

    def close(self) -> None:
        """Let go of the sessions; the system gets their memory back once no other task or view uses the base."""
        self._base = None
        self._preprocess = None

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Task {self.name!r}, {self.manifest.base_digest[:12]}>"

    def generation(self, options: Options) -> Generation:
        """Options, checked, with the bundle's own where nothing is given."""
        return Generation.of(options, self.manifest.max_new_tokens)

    def labels_to_rank(self, labels: Sequence[str] | None) -> tuple[str, ...]:
        """The labels, or the task's own; raises RequestError for what cannot be ranked."""
        if isinstance(labels, str):
            raise RequestError(f"labels is the text {labels!r}; give a list of texts: labels=['…', …].")
        labels = self.labels if labels is None else tuple(labels)
        if not labels:
            raise RequestError(
                f"The task {self.name!r} has no labels to rank; give them as labels=['…', …], or to `tvp ask` as "
                "--label … --label …."
            )
        if not all(isinstance(label, str) and label for label in labels):
            raise RequestError("Every label must be a text that is not empty.")
        if longest := next((label for label in labels if len(label) > MAX_QUESTION), None):
            raise RequestError(f"The label has {len(longest):,} characters; at most {MAX_QUESTION:,} are read.")
        return labels

    def question(self, question: str | None) -> str:
        """The question to ask; raises RequestError for one that cannot be asked."""
        if question is None:
            question = self.manifest.question
            if not question:
                raise RequestError(f"The task {self.name!r} has no question of its own; give one.")
        if not isinstance(question, str):
            raise RequestError(f"The question is {question!r}; it must be a text.")
        if not question.strip():
            raise RequestError("The question is empty; give a text.")
        if len(question) > MAX_QUESTION:
            raise RequestError(f"The question has {len(question):,} characters; at most {MAX_QUESTION:,} are read.")
        return question


def find(task: str | os.PathLike[str]) -> Path:
    """The folder of a bundle that is given by path or by name; raises BundleError where there is none."""
    try:
        return _find(Path(task), os.fspath(task)).absolute()
    except OSError as error:
        raise BundleError(f"The bundle {os.fspath(task)!r} cannot be read: {error.strerror or error}.") from error


def _find(path: Path, name: str) -> Path:
    if (path / "manifest.json").is_file():
        return path
    named = len(path.parts) == 1 and not (path.suffix == ".tvp" and path.is_file())
    if named and (home() / "tasks" / path / "manifest.json").is_file():
        return home() / "tasks" / path
    if path.is_dir():
        raise BundleError(f"The folder {path} has no manifest.json; it is not a bundle. `tvp export` makes one.")
    if path.is_file():
        if path.suffix != ".tvp":
            raise BundleError(f"{path} is a file; a bundle is a folder with a manifest.json, or a .tvp file.")
        return _unpacked(path)
    known = tasks()
    raise BundleError(
        f"There is no bundle {name!r}: no folder of that path, and {home() / 'tasks'} has "
        f"{', '.join(known) or 'no tasks'}.{near(name, known)} `tvp export` makes one."
    )


def _unpacked(file: Path) -> Path:
    """The folder that a `.tvp` file is unpacked to, once, under $TVP_HOME/cache."""
    expected = digest(file)
    folder = home() / "cache" / expected
    if not folder.exists():
        try:
            unpack(file, folder, expected)
        except BundleError:
            if not folder.exists():  # another process may have been faster
                raise
    return folder
