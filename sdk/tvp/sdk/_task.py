"""A loaded task: `Task`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from ._generation import Options
from ._image import ImageLike, Reader
from ._lens import OpenedLens, OpenedPrompt, as_picture, check_lens
from ._many import ask_many
from ._models.model import Model, Request
from ._requests import Requests
from ._results import Answer, Ranked
from ._runtime.providers import CPU, PREPROCESS
from ._runtime.sessions import run
from ._runtime.stopping import StoppedError, stoppable
from ._structure import unfinished
from ._view import View
from .errors import ImageError, RequestError, TvpError
from .formats.manifest import LensManifest, TaskManifest

if TYPE_CHECKING:
    from ._check import CheckReport

log = logging.getLogger("tvp.sdk")


class Task:
    """A loaded task. `sdk.load` makes one; `close()` or `with` closes it.

    Several threads may ask it at once. On Linux, start a service that does so for long with MALLOC_ARENA_MAX=2: each
    of glibc's heaps, up to eight a core, keeps the most memory that it ever held. A task does not survive a fork: in a
    forked process it can be closed, and asking it raises RequestError. Each process loads its own.

    A task is of a kind. A `causal` or `seq2seq` task writes its answers. A `contrastive` task (CLIP, SigLIP) chooses:
    `rank` scores any labels, and `ask`, `stream` and `ask_many` answer with the best of the task's own labels. It
    refuses `temperature` and `stop`; `cancel` ends its `ask_many` between batches; other options change nothing.
    A calibration acts where labels are scored whose set it knows for the very question; not on written answers.

    Attributes:
        folder: of the bundle.
        manifest: what the bundle says about the task.
    """

    def __init__(
        self,
        folder: Path,
        manifest: TaskManifest,
        model: Model,
        prompt: OpenedPrompt,
        read: Reader,
        open_lens: Callable[[str | os.PathLike[str]], OpenedLens],
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._model: Model | None = model
        self._own: OpenedPrompt | None = prompt
        self._lens: OpenedLens | None = None
        self._read = read
        self._open_lens: Callable[[str | os.PathLike[str]], OpenedLens] | None = open_lens
        self._requests: Requests | None = Requests(model, manifest)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.manifest.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The task's own labels; empty where its answers are free."""
        return self.manifest.labels

    @property
    def kind(self) -> str:
        """The model kind: `causal`, `seq2seq` or `contrastive`."""
        return self.model.manifest.kind

    @property
    def providers(self) -> Mapping[str, str]:
        """The provider that runs most operators of each part, by onnxruntime's name."""
        return {PREPROCESS: CPU, **self.model.parts.providers}

    def see(self, image: ImageLike) -> View:
        """Encode a picture once, to ask about it many times.

        Args:
            image: a path, bytes, a PIL image, or a uint8 array (height, width, 3).

        Raises:
            ImageError: the picture cannot be read.
        """
        (seen,) = self._see([image])
        if isinstance(seen, ImageError):
            raise seen
        return seen

    def ask(self, image: ImageLike, question: str | None = None, **options: Unpack[Options]) -> Answer:
        """Answer a question about a picture with the likeliest tokens, unless options say otherwise.

        Args:
            image: as of `see`.
            question: default: the task's own, where it has one.
            options: see `Options`.

        Raises:
            ImageError: the picture cannot be read.
            RequestError: the question cannot be asked, or an option is wrong.
            AnswerError: the answer must have a structure, and ended before it had it.
        """
        began = time.perf_counter()
        request = self._open_requests().ask(question, options)  # a bad request fails before the picture is encoded
        try:
            view, request = self._see_in_time(image, request, began)
        except StoppedError as error:
            if request.generation.structure is not None:
                raise unfinished(error.reason, 0) from error
            spent = time.perf_counter() - began
            return Answer("", (), (), {"see": spent, "first_token": 0.0, "total": spent}, error.reason)
        return view.answer(request)

    def stream(self, image: ImageLike, question: str | None = None, **options: Unpack[Options]) -> Iterator[str]:
        """Answer as `ask` does, in pieces of text as they come. Together they are the answer's text.

        An AnswerError comes behind the last piece, and then the pieces are no answer.
        """
        began = time.perf_counter()
        request = self._open_requests().ask(question, options)
        try:
            view, request = self._see_in_time(image, request, began)
        except StoppedError as error:
            if request.generation.structure is not None:
                raise unfinished(error.reason, 0) from error
            return iter(())
        return view.pieces(request)

    def rank(
        self, image: ImageLike, question: str | None = None, *, labels: Sequence[str] | None = None
    ) -> list[Ranked]:
        """Score labels as answers to a question about a picture.

        Args:
            image: as of `see`.
            question: default: the task's own, where it has one.
            labels: texts, none empty. Default: the task's own.

        Returns:
            Every label with its score; best first.
        """
        question, labels = self._open_requests().rank(question, labels)
        return self.see(image).ranking(question, labels)

    @overload
    def ask_many(
        self,
        requests: Iterable[tuple[ImageLike, str | None]],
        *,
        batch: int = 8,
        errors: Literal["raise"] = "raise",
        **options: Unpack[Options],
    ) -> list[Answer]: ...

    @overload
    def ask_many(
        self,
        requests: Iterable[tuple[ImageLike, str | None]],
        *,
        batch: int = 8,
        errors: Literal["return"],
        **options: Unpack[Options],
    ) -> list[Answer | TvpError]: ...

    def ask_many(
        self,
        requests: Iterable[tuple[ImageLike, str | None]],
        *,
        batch: int = 8,
        errors: Literal["raise", "return"] = "raise",
        **options: Unpack[Options],
    ) -> Any:
        """Answer questions about pictures, several at a time.

        The answers are those of `ask`. Below fp32, int8 kernels may round the last bit otherwise where several answers
        are written together, and an answer whose best two tokens are nearly equal may turn; `batch=1` rules it out.

        A picture that comes several times in a row is encoded once. Every row of a batch draws as `ask` does with the
        same seed. Every question is checked before anything runs.

        Args:
            requests: pairs of a picture and a question; None asks the task's own question.
            batch: number of pairs that are answered together, at least 1.
            errors: what happens to a picture that cannot be read, a question that cannot be asked, or an answer that
                ends before it has the structure that it must have. `raise`
                (default) raises its error, and there are no answers. `return` puts the error in the answer's place,
                and the others are answered. Its message begins with the place: "picture 17 of 40: …".
            options: see `Options`. `time_limit` is that of each answer, from the moment that the prompts of its batch
                were read. `cancel` ends running answers where they are.

        Returns:
            The answers in order. Pairs that had not begun when `cancel` was set have none: the list is shorter. In
            `timing`, `see` is a picture's share of the encoding, and `total` holds the time of the whole batch.

        Raises:
            ImageError: a picture cannot be read.
            RequestError: a question cannot be asked, or an option is wrong.
            AnswerError: an answer must have a structure, and ended before it had it.
        """
        return ask_many(self.model, self._open_requests(), self._see, list(requests), batch, errors, options)

    def use_lens(self, lens: str | os.PathLike[str] | None) -> None:
        """Put the prompt of a lens bundle in the place of this one, for all pictures that are seen from now on.

        The whole prompt is replaced, a frame of the task too. Nothing of the base is opened or hashed again. Other
        tasks on the same base, and views that exist already, keep theirs. If it fails, nothing changes.

        Args:
            lens: a folder, or a name under $TVP_HOME/lenses; None for the task's own prompt.

        Raises:
            BundleError: the lens is missing or damaged, or makes other pixel values than the task takes.
        """
        open_lens = self._open_lens
        if open_lens is None:
            raise self._closed()
        self._open_requests()
        self._lens = None if lens is None else open_lens(lens)

    @property
    def lens(self) -> LensManifest | None:
        """What the lens bundle in use says about itself; None for the task's own prompt."""
        lens = self._lens
        return None if lens is None else lens.manifest

    def check(self) -> CheckReport:
        """Replay the bundle's golden cases on this machine, as `tvp check` does.

        They were made with the task's own prompt, and so they are asked with it, whatever lens is in use. Of the lens,
        the golden pixels of its own bundle are compared.

        Raises:
            CheckError: an answer differs from PyTorch's; it lists every difference. Or a pixel value of the lens does.
            BundleError: the golden cases or the golden pixels cannot be read.
        """
        from ._check import check, check_words  # of no use to whoever only asks
        from .formats.golden import read_cases
        from .formats.golden_words import PICTURE, read_golden_words

        exact = self.model.manifest.precision == "fp32"
        cases = read_cases(self.folder)
        golden, lens = self.folder / "golden", self._lens
        report = check(
            self.name, cases, lambda name: self._see_own(golden / name), exact, self.manifest.parity.max_loss
        )
        if (words := read_golden_words(self.folder)) is not None:
            check_words(self.name, words, self._see_own(golden / PICTURE))
        if lens is not None:
            check_lens(lens, lambda picture: self._run(lens, picture))
        return report

    def pixel_values(self, image: ImageLike) -> NDArray[np.float32]:
        """Return the vision encoder's input: float32 (1, 3, size, size), with the prompt in it."""
        return self._run(self._lens or self._own, image)

    def prompted(self, image: ImageLike) -> NDArray[np.uint8]:
        """Return what the model is shown of a picture, as a picture: uint8 (size, size, 3), with the prompt in it.

        Values of a frame that lie beyond black and white are clipped here, and only here.

        Raises:
            RequestError: the task was exported by a version that did not write down its pixel format.
        """
        pixels = (self.lens or self.manifest).pixels
        if pixels is None:
            raise RequestError(f"The task {self.name!r} does not say what its pixel values mean. Export it again.")
        return as_picture(self.pixel_values(image), pixels)

    @property
    def model(self) -> Model:
        """The opened base, which other tasks may share."""
        self._open_requests()
        model = self._model
        if model is None:
            raise self._closed()
        return model

    def close(self) -> None:
        """Let go of the model; the system gets its memory back when no other task or view uses it."""
        # What opens a lens holds the vision encoder.
        self._model = self._requests = self._own = self._lens = self._open_lens = None

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Task {self.name!r}, {self.manifest.base[:12]}>"

    def _open_requests(self) -> Requests:
        requests = self._requests
        if requests is None:
            raise self._closed()
        requests.refuse_fork()
        return requests

    def _run(self, prompt: OpenedPrompt | None, image: ImageLike) -> NDArray[np.float32]:
        """Return the pixel values of a picture behind a prompt; it is None where `close` in another thread took it."""
        self._open_requests()
        if prompt is None:
            raise self._closed()
        return run(prompt.preprocess, "pixel_values", {"image": self._read(image)})

    def _see_own(self, image: ImageLike) -> View:
        """Encode a picture with the task's own prompt."""
        (seen,) = self._see([image], self._own)
        if isinstance(seen, ImageError):
            raise seen
        return seen

    def _closed(self) -> RequestError:
        return RequestError(f"The task {self.name!r} is closed. Load it again.")

    def _see_in_time(self, image: ImageLike, request: Request, began: float) -> tuple[View, Request]:
        """Encode a picture; returns its view, and the request with the rest of its time. Raises StoppedError."""
        generation = request.generation
        limit = generation.time_limit
        with stoppable(generation.cancel, None if limit is None else began + limit):
            view = self.see(image)
        if limit is None:
            return view, request
        left = limit - (time.perf_counter() - began)
        if left <= 0:
            raise StoppedError("time")
        return view, request._replace(generation=replace(generation, time_limit=left))

    def _see(self, images: Sequence[ImageLike], prompt: OpenedPrompt | None = None) -> list[View | ImageError]:
        """Return a view for each picture, or why it cannot be read.

        It is the same view where a picture comes several times in a row. The prompt is by default the one in use.
        """
        began = time.perf_counter()
        model, requests = self.model, self._open_requests()
        prompt = prompt or self._lens or self._own
        places: list[int] = []
        different: list[ImageLike] = []
        for image in images:
            if not different or not _same(image, different[-1]):
                different.append(image)
            places.append(len(different) - 1)
        results: list[View | ImageError | None] = [None] * len(different)
        pixels: dict[int, NDArray[np.float32]] = {}
        for place, image in enumerate(different):
            try:
                pixels[place] = self._run(prompt, image)
            except ImageError as error:
                results[place] = error
        if pixels:
            states = model.see(np.concatenate([*pixels.values()]) if len(pixels) > 1 else next(iter(pixels.values())))
            seconds = (time.perf_counter() - began) / len(pixels)
            for place, state in zip(pixels, states, strict=True):
                results[place] = view = View(
                    model, requests, state, seconds, None if prompt is None else prompt.moments
                )
                if view.unlikeness is not None:
                    log.info("saw a picture with the task %r: unlikeness %.2f", self.name, view.unlikeness)
        return [results[place] for place in places]  # type: ignore[misc]


def _same(image: ImageLike, other: ImageLike) -> bool:
    named = isinstance(image, (str, os.PathLike)) and isinstance(other, (str, os.PathLike))
    return image is other or (named and image == other)
