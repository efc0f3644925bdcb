"""The results of a task: `Answer` and `Ranked`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """An answer; `str(answer)` is its text.

    Attributes:
        text: the answer, without special tokens.
        tokens: ids of its tokens, the end token included where the model gave one.
        log_probabilities: of each token, natural logarithm, among all tokens: temperature and structure change nothing
            in them. Of a contrastive task: the score of the label.
        timing: seconds. `see`: encoding the picture (0 where the view was there already); `first_token`: from the
            question to the first token; `total`: everything.
        finish: why the answer ends. `end`: the model ended it, or it is complete;
            `length`: the limit or the context was reached;
            `stop`: a stop text came; `time`: the time limit passed; `cancelled`; `label`: the task is contrastive, so
            it chose among its labels and there are no tokens.
        unlikeness: how far the picture is from those that the bundle was made for; see `View.unlikeness`. None where
            that is not known.
    """

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    timing: Mapping[str, float]
    finish: str
    unlikeness: float | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Ranked:
    """A label and its score.

    Attributes:
        label: the text.
        score: mean log-probability of the label's tokens. Of a contrastive task: the label's log-probability, among
            the other labels (CLIP) or by itself (SigLIP). Where the task's calibration knows the question with these
            labels: the same minus what the calibration says is usual of the label. It orders these labels, and is no
            log-probability.
    """

    label: str
    score: float
