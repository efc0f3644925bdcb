"""The parity gate: a bundle, run through the sdk, against the unpatched PyTorch model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tvp.sdk import Task
from tvp.sdk.errors import CheckError
from tvp.sdk.formats.golden import AnswerCase, GoldenCase
from tvp.sdk.formats.manifest import ParityFacts
from tvp.trainer.families.family import Family, GenerativeFamily
from tvp.trainer.prompt import Geometry, Prompt

LOGITS_TOLERANCE = 1e-3
PIXELS_SHARE = 0.999  # of the pixel values must lie within one level of Pillow's and torch's, give or take rounding


class Case(NamedTuple):
    """What both sides are asked: a picture, uint8 (height, width, 3), a question, and labels to rank, if any."""

    picture: NDArray[np.uint8]
    question: str
    labels: tuple[str, ...] = ()


@dataclass
class Parity:
    """What was compared and how far apart it was.

    tokens_equal: cases whose answer tokens are the same, from the same pixel values.
    end_to_end_equal: the same with each side's own resizing (Pillow and torch against ONNX).
    logits: largest difference of any logit. pixels_within_a_level: share of pixel values.
    distinct_answers: how many of PyTorch's answers differ; a model that says one thing to everything proves little.
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
        return self.n_within / max(1, self.n_values)

    @property
    def loss(self) -> float:
        """Share of the cases whose answer is not PyTorch's: the most accuracy that can be lost on them."""
        return (self.n_cases - self.tokens_equal) / max(1, self.n_cases)

    def facts(self, max_loss: float | None = None) -> ParityFacts:
        """Return what a manifest keeps; max_loss: share of the golden answers that may differ, None in fp32."""
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
        """What to say where too many pixel values are too far apart."""
        if self.pixels_within_a_level >= PIXELS_SHARE:
            return []
        return [
            f"only {self.pixels_within_a_level:.3%} of the pixel values are within one level (largest gap "
            f"{self.pixels:.2f} levels)"
        ]

    def check(self, name: str, precision: str = "fp32", max_loss: float = 0.0) -> None:
        """Raise CheckError with every difference, if there is one; below fp32, if the loss is over `max_loss`, or
        pixel values differ, which are made in fp32 always."""
        if not np.isfinite(self.logits):
            raise CheckError(
                f"The exported {name!r} in {precision} gives logits that are no numbers. Nothing was written. Take a "
                "higher precision.",
                self.differences,
            )
        if precision != "fp32" and self.loss > max_loss:
            raise CheckError(
                f"The exported {name!r} in {precision} gives another answer than PyTorch in "
                f"{self.n_cases - self.tokens_equal} of {self.n_cases} cases ({self.loss:.1%}), and --max-loss "
                f"allows {max_loss:.1%}. Nothing was written. Take a higher precision, or allow more.",
                self.differences,
            )
        if wrong := (self.differences if precision == "fp32" else []) + self.pixel_differences:
            raise CheckError(
                f"The exported {name!r} is not equal to the PyTorch model: {len(wrong)} differences in "
                f"{self.n_cases} cases (logits differ by up to {self.logits:.1e}, allowed {LOGITS_TOLERANCE:.0e}). "
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
    """Ask both sides every (picture, question) and compare pixel values, tokens and logits.

    Cases in a row with the same picture, the same object, are questions about one view of it.
    n_golden: of so many cases PyTorch's answers are kept, as golden cases of the bundle.
    end_to_end: whether PyTorch answers to its own pixel values too, which is as much work again.
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
            if gap and end_to_end:  # else the same answer to the same pixel values
                features = torch.cat([features, family.encode(expected)])
        decoded = list(view.decode(question, max_new_tokens))
        questions = [question] * len(features)
        tokens, logits = family.generate_tokens(family.connect(features, questions), questions, max_new_tokens)
        if len(decoded) < max_new_tokens and decoded[-1][0] not in family.end_tokens:
            tokens = [row[: len(decoded)] for row in tokens]  # a bundle's answer ends where its context does
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
        # Up to and including the first differing token both sides saw the same input.
        compared = min(n_same + 1, len(mine), len(tokens[0]))
        far = float(np.abs(np.stack([row for _, row in decoded[:compared]]) - logits[0][:compared].numpy()).max())
        report.logits = float(np.maximum(report.logits, far))  # which keeps what is no number
        if mine == tokens[0]:
            report.tokens_equal += 1
        else:
            report.n_golden_different += kept
            report.differences.append(f"{where}: tokens {mine}, PyTorch {tokens[0]}")
        if not far <= LOGITS_TOLERANCE:
            report.differences.append(f"{where}: logits differ by {far:.2e}")
    return report


def compare_pixels(report: Parity, family: Family, given: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Note how far the pixel values (1, 3, size, size) of both sides are apart; returns the largest gap, in levels."""
    std = np.reshape(family.pixel_format.std, (1, 3, 1, 1)) * 255  # normalised units -> levels
    gap = np.abs(given - expected) * std
    report.pixels = max(report.pixels, float(gap.max()))
    report.n_within, report.n_values = report.n_within + int((gap <= 1.001).sum()), report.n_values + gap.size
    return float(gap.max())


def pixel_values(family: Family, geometry: Geometry, prompt: Prompt | None, picture: NDArray[np.uint8]) -> torch.Tensor:
    """A prompted picture as training and evaluation make it: float32 (1, 3, size, size)."""
    canvas = geometry.show([picture])
    if prompt is not None:
        canvas = prompt.on(canvas)
    return family.to_pixels(canvas).detach()
