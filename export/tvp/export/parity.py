"""The parity gate: compares a bundle, run by the sdk, with the unpatched PyTorch model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tvp.sdk import Task
from tvp.sdk.errors import CheckError, RequestError
from tvp.sdk.formats.golden import AnswerCase, GoldenCase
from tvp.sdk.formats.manifest import ParityFacts
from tvp.trainer.families.family import Family, GenerativeFamily
from tvp.trainer.prompt import Geometry, Prompt

LOGITS_TOLERANCE = 1e-3  # of a logit, or of the largest logit where that is above 1


def bound(largest: float) -> float:
    """Return the allowed difference of logits whose largest absolute value is given."""
    return LOGITS_TOLERANCE * max(1.0, largest)


MOST_READ = 1024  # tokens of a context whose end the gate tries
PIXELS_SHARE = 0.999  # share of the pixel values that must be within one level of Pillow's and torch's


class Case(NamedTuple):
    """A question to both sides about a picture, uint8 (height, width, 3), with labels to rank if there are any."""

    picture: NDArray[np.uint8]
    question: str
    labels: tuple[str, ...] = ()


@dataclass
class Parity:
    """The result of the parity gate.

    Attributes:
        n_cases: number of cases.
        tokens_equal: cases with equal answer tokens, from the same pixel values.
        end_to_end_equal: cases with equal answer tokens where each side prepared the picture itself.
        logits: largest difference of a logit.
        pixels: largest difference of a pixel value, in levels of 1/255.
        n_within: pixel values that differ by at most one level.
        n_values: all pixel values.
        answers: PyTorch's different answers, as tokens. A model that always gives one answer proves little.
        differences: every difference, in words.
        n_golden_different: golden cases that the bundle answers otherwise than PyTorch.
        golden: the golden cases, each with its picture.
    """

    n_cases: int = 0
    tokens_equal: int = 0
    end_to_end_equal: int = 0
    logits: float = 0.0
    pixels: float = 0.0
    n_within: int = 0
    n_values: int = 0
    answers: set[tuple[int, ...]] = field(default_factory=set)
    differences: list[str] = field(default_factory=list)
    n_golden_different: int = 0
    golden: list[tuple[NDArray[np.uint8], GoldenCase]] = field(default_factory=list)

    @property
    def pixels_within_a_level(self) -> float:
        """Share of the pixel values that differ by at most one level, from 0 to 1."""
        return self.n_within / max(1, self.n_values)

    @property
    def loss(self) -> float:
        """Share of the cases whose answer is not PyTorch's, from 0 to 1. The loss of accuracy cannot be larger."""
        return (self.n_cases - self.tokens_equal) / max(1, self.n_cases)

    def facts(self, max_loss: float | None = None) -> ParityFacts:
        """Return the figures for a manifest.

        Args:
            max_loss: share of the golden answers that may differ, from 0 to 1. Default: None, in fp32.
        """
        return ParityFacts(
            n_cases=self.n_cases,
            tokens_equal=self.tokens_equal,
            end_to_end_equal=self.end_to_end_equal,
            logits=self.logits,
            pixels=self.pixels,
            pixels_within_a_level=self.pixels_within_a_level,
            distinct_answers=len(self.answers),
            max_loss=max_loss,
        )

    @property
    def pixel_differences(self) -> list[str]:
        """The difference of the pixel values in words, if fewer than PIXELS_SHARE are within one level."""
        if self.pixels_within_a_level >= PIXELS_SHARE:
            return []
        return [
            f"only {self.pixels_within_a_level:.3%} of the pixel values are within one level, and {PIXELS_SHARE:.1%} "
            f"must be (largest difference {self.pixels:.2f} levels)"
        ]

    def check(self, name: str, precision: str = "fp32", max_loss: float = 0.0) -> None:
        """Raise CheckError if the bundle is not good enough.

        Args:
            name: the task's name.
            precision: in `fp32` (default) no case may differ. In the others, a share of the answers may. Pixel values
                must be equal in all of them: preprocessing always runs in fp32.
            max_loss: share of the answers that may differ below fp32, from 0 to 1. Default 0.

        Raises:
            CheckError: it lists every difference.
        """
        if not np.isfinite(self.logits):
            raise CheckError(
                f"The exported {name!r} in {precision} gives logits that are not finite (NaN or infinite). Nothing was "
                "written. Take a higher precision.",
                self.differences,
            )
        if precision != "fp32" and self.loss > max_loss:
            raise CheckError(
                f"The exported {name!r} in {precision} gives another answer than PyTorch in "
                f"{self.n_cases - self.tokens_equal} of {self.n_cases} cases ({self.loss:.1%}), and --max-loss "
                f"allows {max_loss:.1%}. Nothing was written. Take a higher precision, or a larger --max-loss.",
                self.differences,
            )
        if wrong := (self.differences if precision == "fp32" else []) + self.pixel_differences:
            raise CheckError(
                f"The exported {name!r} is not equal to the PyTorch model: {len(wrong)} differences in "
                f"{self.n_cases} cases (logits differ by up to {self.logits:.1e}; allowed is {LOGITS_TOLERANCE:.0e}, "
                f"or {LOGITS_TOLERANCE:.0e} of the largest logit where that is above 1). "
                "Nothing was written. Please report this with the model's name.",
                wrong,
            )


@torch.no_grad()
def measure(
    task: Task,
    family: GenerativeFamily,
    geometry: Geometry,
    prompt: Prompt | None,
    cases: Iterable[tuple[NDArray[np.uint8], str] | Case],
    max_new_tokens: int = 8,
    n_golden: int = 0,
    end_to_end: bool = True,
) -> Parity:
    """Ask the bundle and PyTorch every question; compare pixel values, answer tokens and logits.

    Args:
        task: the bundle, loaded.
        family: the model, on the CPU in fp32.
        geometry: canvas, inner size and fit of the bundle.
        prompt: the prompt in the bundle, or None.
        cases: pictures, uint8 (height, width, 3), and questions. If cases in a row have the same array as picture,
            that picture is encoded once.
        max_new_tokens: most tokens of an answer. Default 8.
        n_golden: number of cases to keep with PyTorch's answers, as golden cases of the bundle. Default 0.
        end_to_end: whether PyTorch also answers from its own pixel values, which doubles its work. Default True.

    Returns:
        The report. It does not raise for a difference; see `Parity.check`.
    """
    report = Parity()
    seen = None
    for picture, question, *_ in cases:
        where = f"case {report.n_cases} ({picture.shape[1]} x {picture.shape[0]}, {question!r})"
        report.n_cases += 1
        if picture is not seen:
            seen, view = picture, task.see(picture)
            given, expected = task.pixel_values(picture), pixel_values(family, geometry, prompt, picture)
            gap = compare_pixels(report, family, given, expected.numpy())
            features = family.encode(torch.from_numpy(given))
            if gap and end_to_end:  # equal pixel values have equal answers
                features = torch.cat([features, family.encode(expected)])
        decoded = list(view.decode(question, max_new_tokens))
        questions = [question] * len(features)
        tokens, logits = family.generate_tokens(family.connect(features, questions), questions, max_new_tokens)
        if len(decoded) < max_new_tokens and decoded[-1][0] not in family.end_tokens:
            tokens = [row[: len(decoded)] for row in tokens]  # a bundle's answer ends where its context is full
        report.answers.add(tuple(tokens[0]))
        kept = len(report.golden) < n_golden
        if kept:
            chosen = logits[0].log_softmax(-1)[range(len(tokens[0])), tokens[0]]
            case = AnswerCase(
                f"{len(report.golden)}.png",
                question,
                tuple(tokens[0]),
                family.text(tokens[0]),
                tuple(float(f"{value:.7g}") for value in chosen.tolist()),
            )
            report.golden.append((picture, case))
        mine = [token for token, _ in decoded]
        report.end_to_end_equal += mine == tokens[-1]
        n_same = next((i for i, (a, b) in enumerate(zip(mine, tokens[0], strict=False)) if a != b), len(mine))
        # Both sides had the same input up to the first token that differs, and for that token.
        compared = min(n_same + 1, len(mine), len(tokens[0]))
        # Not the logits of `generate_tokens`, which are TVP's: those of the unpatched model, read in one run.
        own = family.own_answer_logits(family.connect(features[:1], [question]), question, tokens[0][:compared]).numpy()
        far = float(np.abs(np.stack([row for _, row in decoded[:compared]]) - own).max())
        allowed = bound(float(np.abs(own).max()))
        report.logits = float(np.maximum(report.logits, far))  # unlike max, it keeps NaN
        if mine == tokens[0]:
            report.tokens_equal += 1
        else:
            report.n_golden_different += kept
            report.differences.append(f"{where}: tokens {mine}, PyTorch {tokens[0]}")
        if not far <= allowed:
            report.differences.append(f"{where}: logits differ by {far:.2e}, and {allowed:.1e} is allowed")
    return report


def long_case(family: GenerativeFamily, most: int, n_image: int, case: Case, n_written: int) -> Case | None:
    """Return a question that ends near the end of the context; None where that is too far away, or there is none.

    Args:
        family: the model.
        most: tokens that the bundle reads at most; 0 for no limit.
        n_image: image embeddings.
        case: its question is repeated.
        n_written: most tokens of an answer.
    """
    if not 0 < most <= MOST_READ:
        return None
    found = None
    for n in range(2, most):
        question = " ".join([case.question] * n)
        try:
            family.check_question(question, "", (), n_image, n_written)
        except RequestError:  # too long, for a Q-Former too
            break
        if n_image + sum(map(len, family.prompt_ids(question))) + n_written > most:
            break
        found = Case(case.picture, question)
    return found


def compare_pixels(report: Parity, family: Family, given: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Add the differences of both sides' pixel values to a report.

    Args:
        report: changed in place.
        family: the model; its pixel format says what a level is.
        given: the bundle's pixel values, (1, 3, size, size).
        expected: PyTorch's pixel values, (1, 3, size, size).

    Returns:
        The largest difference, in levels of 1/255.
    """
    std = np.reshape(family.pixel_format.std, (1, 3, 1, 1)) * 255  # normalized units -> levels
    gap = np.abs(given - expected) * std
    report.pixels = max(report.pixels, float(gap.max()))
    # A difference of one level may be a little more, by rounding.
    report.n_within, report.n_values = report.n_within + int((gap <= 1.001).sum()), report.n_values + gap.size
    return float(gap.max())


def pixel_values(family: Family, geometry: Geometry, prompt: Prompt | None, picture: NDArray[np.uint8]) -> torch.Tensor:
    """Prepare a picture as training and evaluation do.

    Args:
        family: the model.
        geometry: canvas, inner size and fit.
        prompt: the prompt to put on the canvas, or None.
        picture: uint8 (height, width, 3).

    Returns:
        Pixel values, float32 (1, 3, size, size).
    """
    canvas = geometry.show([picture])
    if prompt is not None:
        canvas = prompt.on(canvas)
    return family.to_pixels(canvas).detach()
