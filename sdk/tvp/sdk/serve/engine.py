"""The one thread that computes, and what it does for the questions that wait: `Engine`.

A graph uses all cores that the process may use, so two at a time would only take turns. What waits when the thread is
free is answered together; nobody waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from .._generation import Answering
from .._models.generative import reply_of
from .._results import Answer
from .._runtime.stopping import StoppedError, stoppable
from .._view import View, answer_together
from ..errors import AnswerError, ImageError, RequestError
from .guard import note_bug
from .jobs import Job, overdue
from .keys import Keys
from .metrics import Metrics
from .refusals import refusal_of
from .settings import Settings
from .tasks import Served
from .views import Views
from .waiting import Waiting

log = logging.getLogger("tvp.serve")


class Engine:
    """Answers questions in the order of `Waiting`, as `Task.ask` would.

    Attributes:
        waiting: the questions that wait.
        views: pictures that were seen.
        is_draining: whether the server ends: what was accepted is answered, and it is not ready for more.
    """

    def __init__(self, settings: Settings, keys: Keys, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.waiting: Waiting[Job] = Waiting(settings.n_waiting, lambda: keys.names)
        self.views = Views(settings.max_view_bytes)
        self.is_draining = False
        self._seconds_each = 0.1  # that a question took lately
        self._thread = ThreadPoolExecutor(1, "tvp-engine")
        self._loop: asyncio.Task[None] | None = None
        metrics.show("tvp_queue_questions", "Questions that wait.", lambda: len(self.waiting))
        metrics.show("tvp_queue_limit", "Questions that may wait.", lambda: settings.n_waiting)
        metrics.show("tvp_views", "Pictures that are remembered.", lambda: len(self.views))
        metrics.show("tvp_view_bytes", "Memory of remembered pictures.", lambda: self.views.n_bytes)
        metrics.show("tvp_view_hits", "Questions about a remembered picture.", lambda: self.views.n_hits)
        metrics.show("tvp_view_misses", "Questions about a new picture.", lambda: self.views.n_misses)

    def start(self) -> None:
        """Begin to answer."""
        self._loop = asyncio.create_task(self._answer_all())

    async def stop(self) -> None:
        """Answer nothing more."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return self._loop is not None and not self._loop.done()

    def refuse_full(self, caller: str) -> None:
        """Raise Refusal where no place is free; it is asked before a body is read, too."""
        self.waiting.refuse_full(caller, self._seconds_each)

    def submit(self, job: Job) -> None:
        """Let a job wait; raises Refusal where no place is free."""
        self.refuse_full(job.caller)
        job.served.hold()
        self.waiting.put(job)

    def abandon(self, job: Job) -> None:
        """The client is gone, or has all that it wants: nobody waits for this job."""
        job.cancel.set()
        if self.waiting.remove(job):
            job.served.release()

    def forget(self, served: Served) -> None:
        """Forget the views of a task that is served no longer."""
        self._thread.submit(self.views.drop, served.number)

    async def _answer_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.waiting.some()
            jobs = self.waiting.take(self.settings.batch, Job.joins)
            began = time.perf_counter()
            try:
                await loop.run_in_executor(self._thread, self._compute, jobs)
            finally:
                for job in jobs:
                    job.served.release()
            each = (time.perf_counter() - began) / len(jobs)
            self._seconds_each += 0.2 * (each - self._seconds_each)

    # In the thread that computes.

    def _compute(self, jobs: Sequence[Job]) -> None:
        now = time.perf_counter()
        for job in jobs:
            self.metrics.steps.labels("wait").observe(now - job.began)
            if job.cancel.is_set() or now >= job.until:
                job.settle(overdue(job))
        try:
            self._together([job for job in jobs if not job.settled])
        except Exception as error:
            left = [job for job in jobs if not job.settled]
            if len(jobs) > 1:  # one of them must not cost the others their answers
                for job in left:
                    self._compute([job])
                return
            if not isinstance(error, RequestError | ImageError | StoppedError):
                note_bug(error, "of a question")
                error = refusal_of(error)
            for job in left:
                job.settle(overdue(job) if isinstance(error, StoppedError) else error)

    def _together(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        first = jobs[0]
        if first.request is None and first.ranking is None:
            with stoppable(first.cancel, first.until):
                first.settle(png(first.served.task.prompted(first.picture.data)))
            return
        views = self._see(jobs)
        jobs = [job for job in jobs if job.key in views]
        if not jobs:
            return
        if first.ranking is not None:
            with stoppable(first.cancel, first.until):
                first.settle(views[first.key].ranking(*first.ranking))
        else:
            self._answer(jobs, [views[job.key] for job in jobs])
        for job in jobs:
            if not job.served.is_dropped:  # its views were forgotten, and must not come back
                self.views.keep(job.key, views[job.key])

    def _see(self, jobs: Sequence[Job]) -> dict[tuple[int, bytes], View]:
        """Return the views of all pictures that can be seen in time; the others' jobs are settled."""
        views: dict[tuple[int, bytes], View] = {}
        missing: dict[Served, dict[tuple[int, bytes], list[Job]]] = {}
        for job in jobs:
            known = views.get(job.key) or self.views.find(job.key)
            if known is not None:
                views[job.key] = known
            else:
                missing.setdefault(job.served, {}).setdefault(job.key, []).append(job)
        for served, by_key in missing.items():
            wanting = [job for those in by_key.values() for job in those]
            cancel = wanting[0].cancel if len(wanting) == 1 else None
            began = time.perf_counter()
            try:
                with stoppable(cancel, max(job.until for job in wanting)):
                    seen = served.task._see([those[0].picture.data for those in by_key.values()])
            except StoppedError:
                for job in wanting:
                    job.settle(overdue(job))
                continue
            self.metrics.steps.labels("see").observe((time.perf_counter() - began) / len(by_key))
            for (key, those), view in zip(by_key.items(), seen, strict=True):
                if isinstance(view, ImageError):
                    for job in those:
                        job.settle(view)
                    continue
                views[key] = view
                if view.unlikeness is not None:
                    self.metrics.unlikeness.labels(served.name).observe(view.unlikeness)
        return views

    def _answer(self, jobs: Sequence[Job], views: Sequence[View]) -> None:
        began = time.perf_counter()
        requests, going = [], []
        for job, view in zip(jobs, views, strict=True):
            if began >= job.until:
                job.settle(overdue(job))
                continue

            def told(answering: Answering, job: Job = job, view: View = view) -> None:
                job.tell(answering)
                if answering.finish:  # it need not wait for the others of its batch
                    self._settle(job, view.result(reply_of(answering), began))

            assert job.request is not None
            generation = replace(job.request.generation, time_limit=job.until - began, cancel=job.cancel, told=told)
            requests.append(job.request._replace(generation=generation))
            going.append((job, view))
        if going:
            self.metrics.batches.observe(len(going))
            for (job, _), answer in zip(going, answer_together([view for _, view in going], requests), strict=True):
                self._settle(job, answer)

    def _settle(self, job: Job, answer: Answer | AnswerError) -> None:
        if job.settled:
            return
        if isinstance(answer, AnswerError):
            job.settle(overdue(job) if time.perf_counter() >= job.until else refusal_of(answer))
            self.metrics.finishes.labels(job.served.name, "incomplete").inc()
            return
        answer = replace(answer, timing={**answer.timing, "wait": waited(answer, job)})
        job.settle(answer)
        self.metrics.steps.labels("first_token").observe(answer.timing["first_token"])
        self.metrics.steps.labels("total").observe(time.perf_counter() - job.began)
        self.metrics.tokens.labels(job.served.name).inc(len(answer.tokens))
        self.metrics.finishes.labels(job.served.name, answer.finish).inc()


def waited(answer: Answer, job: Job) -> float:
    """Return the seconds that a question waited for its turn."""
    return max(0.0, time.perf_counter() - job.began - answer.timing["total"])


def png(picture: object) -> bytes:
    """Return a picture, uint8 (height, width, 3), as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")  # type: ignore[arg-type]
    return stream.getvalue()
