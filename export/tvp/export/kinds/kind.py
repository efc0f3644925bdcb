"""The protocol of a model kind in an export. Each kind's module has its methods as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tvp import sdk
from tvp.sdk.errors import DataError, RequestError
from tvp.sdk.formats.calibration import Calibrated
from tvp.sdk.formats.manifest import BaseManifest
from tvp.trainer.data import Data, Question, Sample, questions_of
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.task_definition import TaskDefinition

from ..parity import Case, Parity

# Fields of a base's manifest that `base.put_base` sets when the graphs are final.
NOT_YET: dict[str, Any] = {"precision": "fp32", "made_from": "", "files": {}}


def labels_of(task: TaskDefinition, question: Question, where: str) -> tuple[str, ...]:
    """Return the labels that a contrastive model ranks: the task's, or the question's own.

    Raises:
        RequestError: there are none.
    """
    labels = tuple(task.labels or question.labels)
    if not labels:
        raise RequestError(
            f"The task {task.name!r} has no labels, and neither has its data ({where}: {question.text!r}). A "
            "contrastive model only ranks labels. Take a task with labels, data with labels, or give some (--label)."
        )
    return labels


def refuse_unasked(task: TaskDefinition, data: Data, n_cases: int, only_ranks: bool) -> None:
    """Refuse data, before a model is loaded, that makes no cases; see `Kind.cases`.

    Args:
        task: the task.
        data: its samples.
        n_cases: number of cases.
        only_ranks: whether the model is a contrastive one.

    Raises:
        DataError: there is no sample, or one has no question.
        RequestError: a contrastive model has no labels to rank.
    """
    for i in range(min(n_cases, len(data))):
        questions = questions_of(data, i)
        if not questions:
            raise DataError(
                f"Sample {i} of the data has no question to compare answers with. Name data with questions (--data)."
            )
        if only_ranks:
            labels_of(task, questions[0], f"sample {i}")
    if not len(data):
        raise DataError("The data has no samples to compare answers on. Name other data (--data).")


class Kind(Protocol):
    """The module `causal`, `seq2seq` or `contrastive`. Each `family` argument is a model of that kind."""

    def check(self, family: Any) -> None:
        """Try in seconds whether a model can be exported with its own scores.

        Raises:
            ModelError: it cannot; a sentence says why, and names the operation.
        """

    def write(self, family: Any, folder: Path, fused: bool) -> BaseManifest:
        """Write the graphs, embeddings and tokenizers of a base in fp32.

        Args:
            family: the model, on the CPU in fp32.
            folder: the base's folder; it exists and is empty.
            fused: whether the vision encoder uses onnxruntime's own operators, which TensorRT lacks.

        Returns:
            The manifest. The fields of `NOT_YET` have no value yet.

        Raises:
            ModelError: the model cannot be exported, or the sdk cannot read its tokenizer.
        """

    def about(self, family: Any) -> list[str]:
        """Return what decides a base besides weights and versions: configuration, layout and tokenizers, as texts."""

    def tokenizer_texts(self, family: Any) -> dict[str, str]:
        """Return the content of each tokenizer file, by the file's name."""

    def sizes(self, family: Any, precision: str, encoder_precision: str) -> dict[str, int]:
        """Return the size of each file's weights in bytes, by the file's name.

        Args:
            family: the model.
            precision: of the language model.
            encoder_precision: of everything else.
        """

    def cases(self, task: TaskDefinition, samples: Sequence[Sample]) -> list[Case]:
        """Return the cases of the parity gate, one for each sample.

        Raises:
            RequestError: a contrastive model has no labels to rank.
        """

    def measure(
        self,
        task: sdk.Task,
        family: Any,
        geometry: Geometry,
        prompt: Prompt | None,
        cases: Sequence[Case],
        n_golden: int,
        exact: bool,
        calibration: Calibrated = (),
    ) -> Parity:
        """Ask the bundle and PyTorch every case, and compare them.

        Args:
            task: the bundle, loaded.
            family: the model, on the CPU in fp32.
            geometry: canvas, inner size and fit of the bundle.
            prompt: the prompt in the bundle, or None.
            cases: the cases, as `cases` returns them.
            n_golden: number of cases to keep with PyTorch's answers, as golden cases of the bundle.
            exact: whether the bundle is in fp32. A contrastive model's scores and order of labels must then be equal,
                and otherwise only its best label.
            calibration: what is subtracted from PyTorch's scores of labels. Default: nothing.

        Returns:
            The report of the parity gate.
        """
