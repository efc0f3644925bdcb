"""Calibration: what a model usually says of each label, learned over pictures without answers and subtracted.

A model may answer one label to nearly every picture of a bad camera. After the subtraction a label is chosen where it
fits a picture better than it fits pictures usually. That evens the answers out, so it helps where the model leans to
a label that is not so common, and may cost where a label really is common.

Usual is one of two things:

- `share` (default): the logarithm of the label's mean share, where the shares of a picture's labels are the softmax of
  their scores. Source: Zhou et al., "Batch Calibration" (ICLR 2024), for the prompts of language models. A model that
  is sure, and right, has shares as even as the answers are, and hardly changes.
- `score`: the label's mean score. A few pictures that a label does not fit at all decide it, so that it costs points
  where a model is sure of its answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tvp.sdk.errors import BundleError, DataError, ModelError, RequestError
from tvp.sdk.formats.calibration import Calibrated, LabelOffsets, offsets_for, read_calibration

from . import families
from .data import Data, picture_of, questions_of
from .evaluate import Asked, ask, judge
from .families import Family
from .files import write_whole
from .metrics import Gain, gain
from .prompt import Geometry, Prompt
from .task_definition import TaskDefinition

log = logging.getLogger("tvp.trainer")

By = Literal["share", "score"]
FORMAT = 1
MAX_BYTES = 2**21  # of a file; a bundle's manifest, which it becomes a part of, may have as many
MIN_PICTURES = 8  # a mean over fewer says little
MOST_SHOWN = 12  # answers whose shares are told
KEYS = ("format", "by", "model", "weights", "prompt", "geometry", "gain", "n_questions", "calibration")


@dataclass(frozen=True)
class Calibration:
    """What is subtracted from the scores of labels, and what it was learned with.

    Attributes:
        offsets: for each question with its set of labels, see `tvp.sdk.formats.calibration`.
        model: the model's name; '' where it is not known.
        weights: sha256 of the model's weights; '' for a model that is no local folder.
        prompt: `digest` of the prompt; '' for none.
        geometry: how pictures lay on the canvas.
        gain: of accuracy, on held-out pictures with answers; None where it was not measured.
        n_questions: the number of questions that the gain was measured on.
        by: what is subtracted, `share` or `score`.
    """

    offsets: Calibrated
    model: str
    weights: str
    prompt: str
    geometry: Geometry
    gain: Gain | None = None
    n_questions: int = 0
    by: By = "share"

    def refuse_other(self, model: str | Path, geometry: Geometry, prompt: Prompt | None) -> None:
        """Raise RequestError for another model, place of the picture or prompt than the calibration was learned with.

        Args:
            model: a folder, a hub id or `zoo:NAME`.
            geometry: how pictures lie on the canvas.
            prompt: the prompt, or None.
        """
        weights = families.digest(model)
        same_model = weights == self.weights if weights and self.weights else _name(model) == self.model
        for same, what, learned, given in (
            (same_model, "model", self.model, _name(model)),
            (digest(prompt) == self.prompt, "prompt", self.prompt[:16] or "none", digest(prompt)[:16] or "none"),
            (geometry == self.geometry, "place of the picture", self.geometry, geometry),
        ):
            if not same:
                raise RequestError(
                    f"The calibration was learned with another {what}: {learned}, not {given}. Offsets hold for one "
                    "model with one prompt. Learn them again with `tvp calibrate`."
                )

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all."""
        content = {
            "format": FORMAT,
            "by": self.by,
            "model": self.model,
            "weights": self.weights,
            "prompt": self.prompt,
            "geometry": asdict(self.geometry),
            "gain": self.gain and self.gain._asdict(),
            "n_questions": self.n_questions,
            "calibration": [asdict(known) for known in self.offsets],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(Path(path), (text + "\n").encode())

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Read a file.

        Raises:
            DataError: the file is missing, damaged or of a newer format.
        """
        path = Path(path)
        try:
            if not path.is_file() or path.stat().st_size > MAX_BYTES:
                raise DataError(
                    f"There is no calibration file {path}, or it is larger than {MAX_BYTES >> 20} MiB. "
                    "`tvp calibrate` writes one."
                )
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"The calibration {path} cannot be read: {error}.") from error
        if isinstance(content, dict) and type(content.get("format")) is int and content["format"] > FORMAT:
            raise DataError(f"{path} is of format {content['format']}; this TVP reads up to {FORMAT}. Update TVP.")
        try:
            return _read(content)
        except (KeyError, TypeError, ValueError, RequestError, BundleError) as error:
            raise DataError(f"{path} is not an intact calibration: {error}. Learn it again.") from error


def learn(
    family: Family,
    data: Data,
    geometry: Geometry,
    prompt: Prompt | None,
    task: TaskDefinition,
    *,
    by: By = "share",
    model: str | Path = "",
    batch: int = 256,
    quiet: bool = True,
) -> Calibration:
    """Learn what the model usually says of each label, over pictures. Right answers are not read.

    Args:
        family: the model.
        data: pictures and questions with labels.
        geometry: how pictures lie on the canvas.
        prompt: the prompt on every picture, or None.
        task: the task that the questions are of.
        by: what usual is, `share` or `score`; see the top of this module. Default `share`.
        model: the folder, hub id or `zoo:NAME` of the model, so that the calibration is refused with another one.
            Default: not noted.
        batch: rows that the language model reads at once. Default 256.
        quiet: show no progress bar. Default True.

    Raises:
        RequestError: no question is answered with labels.
        DataError: there are fewer than `MIN_PICTURES` pictures to each question.
        ModelError: a score is not finite.
    """
    offsets = offsets_of(ask(family, data, geometry, prompt, task, batch, quiet), by)
    weights = families.digest(model) if str(model) else ""
    return Calibration(offsets, _name(model), weights, digest(prompt), geometry, by=by)


def offsets_of(asked: Asked, by: By = "share") -> Calibrated:
    """Return what is usual of each label, for each question with its set of labels; see `learn`."""
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for i, question in enumerate(asked.questions):
        if asked.scores[i] is not None:
            groups.setdefault((question.text, tuple(sorted(question.labels))), []).append(i)
    pictures = [len({asked.pictures[i] for i in members}) for members in groups.values()]
    _refuse_few(pictures)
    offsets = []
    for ((text, _), members), n_pictures in zip(groups.items(), pictures, strict=True):
        if n_pictures < MIN_PICTURES:
            continue
        labels = asked.questions[members[0]].labels
        rows = []
        for i in members:
            by_label = dict(zip(asked.questions[i].labels, asked.scores[i], strict=True))  # type: ignore[arg-type]
            rows.append([by_label[label] for label in labels])
        scores = np.array(rows, np.float64)
        if not np.isfinite(scores).all():
            raise ModelError(
                f"A score of {labels[int(np.isfinite(scores).all(0).argmin())]!r} is not finite, so nothing is usual "
                "of it. Take fp32 and other labels."
            )
        means = scores.mean(0) if by == "score" else _log_mean_shares(scores)
        offsets.append(LabelOffsets(text, labels, tuple(round(float(mean), 6) for mean in means), n_pictures))
    if len(offsets) < len(groups):
        log.warning(
            "%d of %d questions are about fewer than %d pictures; they are not calibrated",
            len(groups) - len(offsets), len(groups), MIN_PICTURES,
        )  # fmt: skip
    return tuple(offsets)


def refuse_unfit(data: Data, free: bool) -> None:
    """Refuse data, before a model is loaded, of which `learn` would find that it says too little.

    Args:
        data: pictures and questions.
        free: whether questions are answered in free text.

    Raises:
        RequestError: no question is answered with labels.
        DataError: there are fewer than `MIN_PICTURES` pictures to each question.
    """
    groups: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for i in range(len(data)):
        for question in questions_of(data, i) if not free else ():
            if question.labels:
                groups.setdefault((question.text, tuple(sorted(question.labels))), set()).add(picture_of(data, i))
    _refuse_few([len(pictures) for pictures in groups.values()])


def _refuse_few(pictures: Sequence[int]) -> None:
    """Refuse questions with these numbers of pictures, see `refuse_unfit`."""
    if not pictures:
        raise RequestError(
            "No question is answered with labels. A model that writes free text chooses among no labels, so there is "
            "nothing to calibrate: take a task with labels, such as count."
        )
    if max(pictures) < MIN_PICTURES:
        raise DataError(
            f"Each of the {len(pictures)} questions is about fewer than {MIN_PICTURES} pictures, and a mean over so "
            "few says little. Give more pictures to each question."
        )


def _log_mean_shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of each label's mean share, of scores (n, n_labels)."""
    logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    mean: NDArray[np.float64] = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
    return mean


def applied(offsets: Calibrated, asked: Asked) -> Asked:
    """Return the same questions with calibrated scores, and the labels that are best by these.

    Free answers stay, and so do those to questions whose labels the calibration does not know.
    """
    found: dict[tuple[str, tuple[str, ...]], NDArray[np.float64]] = {}
    answers, scores = list(asked.answers), list(asked.scores)
    for i, (question, row) in enumerate(zip(asked.questions, asked.scores, strict=True)):
        if row is None:
            continue
        key = question.text, question.labels
        if key not in found:
            found[key] = offsets_for(offsets, *key)
        changed = (row - found[key]).astype(np.float32)
        scores[i], answers[i] = changed, question.labels[int(changed.argmax())]
    return replace(asked, answers=answers, scores=scores)


def compare(before: Asked, after: Asked, match: str = "exact") -> tuple[Gain | None, list[str]]:
    """Say whether a calibration helps, and how it changes the answers.

    Args:
        before: held-out questions with the model's own answers.
        after: the same, calibrated.
        match: when an answer is right, see `TaskDefinition`.

    Returns:
        The gain of accuracy, drawn by whole pictures, or None where a question has no right answer; and lines that say
        it in words.
    """
    n, n_pictures = len(before.questions), len(set(before.pictures))
    measured, lines = None, []
    if all(question.answer for question in before.questions):
        was, now = judge(before, match), judge(after, match)
        measured = gain(was.right, now.right, before.pictures)
        how = {
            "helps": "helped by",
            "hurts": "does not help, it costs:",
            "unclear": "does not help as far as this shows:",
        }
        lines = [
            f"accuracy {was.accuracy:.1%} before, {now.accuracy:.1%} after",
            f"calibration {how[measured.verdict]} {measured} on {n} questions about {n_pictures} held-out pictures",
        ]
    else:
        lines = [
            "whether calibration helps cannot be known: these pictures have no answers",
            "it helps where the model leans to labels that are not so common, and may cost where they are common; "
            "answers to some pictures would tell",
        ]
    n_changed = sum(a != b for a, b in zip(before.answers, after.answers, strict=True))
    lines.append(f"{n_changed} of {n} answers changed about {n_pictures} held-out pictures:")
    old, new = shares(before.answers), shares(after.answers)
    most = sorted(dict.fromkeys([*old, *new]), key=lambda answer: -max(old.get(answer, 0), new.get(answer, 0)))
    width = max(map(len, most[:MOST_SHOWN]), default=0)
    lines += [f"  {a:<{width}} {old.get(a, 0):6.1%} before {new.get(a, 0):6.1%} after" for a in most[:MOST_SHOWN]]
    lines += [f"  and {len(most) - MOST_SHOWN} others"] if len(most) > MOST_SHOWN else []
    return measured, lines


def shares(answers: Sequence[str]) -> dict[str, float]:
    """Return the share of each answer, the most frequent first."""
    return {answer: count / len(answers) for answer, count in Counter(answers).most_common()}


def digest(prompt: Prompt | None) -> str:
    """Return a sha256 of what a prompt does to a picture; '' for none."""
    if prompt is None:
        return ""
    values = {} if prompt.frame is None else {"frame": prompt.frame}
    values |= {} if prompt.lens is None else prompt.lens.values
    total = hashlib.sha256(repr((prompt.pixel_range, prompt.lens and prompt.lens.describe())).encode())
    for name, value in sorted(values.items()):
        total.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return total.hexdigest()


def _name(model: str | Path) -> str:
    place = Path(families.locate(model)) if str(model) else Path()
    return place.resolve().name if str(model) and place.exists() else str(model)


def _read(content: Any) -> Calibration:
    """Read the content of a file; raises the errors that `Calibration.load` tells."""
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    for wrong, how in ((set(KEYS) - set(content), "lacks"), (set(content) - set(KEYS), "has the unknown key")):
        if wrong:
            raise ValueError(f"it {how} {min(wrong)!r}")
    if not all(isinstance(content[key], str) for key in ("model", "weights", "prompt")):
        raise ValueError("model, weights and prompt are texts")
    if content["by"] not in get_args(By):
        raise ValueError(f"it is by {content['by']!r}, and may be by {' or '.join(get_args(By))}")
    if type(content["format"]) is not int or type(content["n_questions"]) is not int or content["n_questions"] < 0:
        raise ValueError("format and n_questions are whole numbers")
    sides = content["geometry"]
    if type(sides["canvas"]) is not int or type(sides["inner"]) is not int:
        raise ValueError("canvas and inner are whole numbers")
    measured = None
    if content["gain"] is not None:
        measured = Gain(**content["gain"])
        if not all(type(share) in (int, float) and abs(share) <= 1 for share in measured):
            raise ValueError("the gain has shares from -1 to 1")
    offsets = read_calibration(content["calibration"], "calibration")
    if not offsets:
        raise ValueError("it has no offsets")
    return Calibration(
        offsets,
        content["model"],
        content["weights"],
        content["prompt"],
        Geometry(**sides),
        measured,
        content["n_questions"],
        content["by"],
    )
