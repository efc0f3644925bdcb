"""The parity gate: a bundle, run through the sdk, against the unpatched PyTorch model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tvp.sdk import Task
from tvp.sdk.errors import CheckError
from tvp.trainer.families._family import WordFamily
from tvp.trainer.prompt import Geometry, Prompt

LOGITS_TOLERANCE = 1e-3
PIXELS_SHARE = 0.999  # of the pixel values must lie within one level of Pillow's and torch's, give or take rounding


@dataclass
class Parity:
    """What was compared and how far apart it was.

    tokens_equal: cases whose answer tokens are the same, from the same pixel values.
    end_to_end_equal: the same with each side's own resizing (Pillow and torch against ONNX).
    logits: largest difference of any logit. pixels_within_a_level: share of pixel values.
    """

    n_cases: int = 0
    tokens_equal: int = 0
    end_to_end_equal: int = 0
    logits: float = 0.0
    pixels: float = 0.0
    pixels_within_a_level: float = 1.0
    differences: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        facts = asdict(self)
        del facts["differences"]
        return facts

    def check(self, name: str) -> None:
        """Raise CheckError with every difference, if there is one."""
        if self.differences:
            raise CheckError(
                f"The exported {name!r} is not equal to the PyTorch model: {len(self.differences)} differences in "
                f"{self.n_cases} cases (logits differ by up to {self.logits:.1e}, allowed {LOGITS_TOLERANCE:.0e}). "
                "Nothing was written. Please report this with the model's name.",
                self.differences,
            )


@torch.no_grad()
def measure(
    task: Task,
    family: WordFamily,
    geometry: Geometry,
    prompt: Prompt | None,
    cases: Iterable[tuple[NDArray[np.uint8], str]],
    max_new_tokens: int = 8,
) -> Parity:
    """Ask both sides every (picture, question) and compare pixel values, tokens and logits."""
    report = Parity()
    within, n_values = 0, 0
    std = np.reshape(family.pixel_format.std, (1, 3, 1, 1)) * 255  # normalised units -> levels
    for picture, question in cases:
        where = f"case {report.n_cases} ({picture.shape[1]} x {picture.shape[0]}, {question!r})"
        report.n_cases += 1
        view = task.see(picture)
        given = task.pixel_values(picture)
        expected = pixel_values(family, geometry, prompt, picture)
        gap = np.abs(given - expected.numpy()) * std
        report.pixels = max(report.pixels, float(gap.max()))
        within, n_values = within + int((gap <= 1.001).sum()), n_values + gap.size
        decoded = list(view.decode(question, max_new_tokens))
        tokens, logits = family.generate_tokens(
            family.see(torch.from_numpy(given), [question]), [question], max_new_tokens
        )
        own, _ = family.generate_tokens(family.see(expected, [question]), [question], max_new_tokens)
        mine = [token for token, _ in decoded]
        report.end_to_end_equal += mine == own[0]
        n_same = next((i for i, (a, b) in enumerate(zip(mine, tokens[0], strict=False)) if a != b), len(mine))
        # Up to and including the first differing token both sides saw the same input.
        compared = min(n_same + 1, len(mine), len(tokens[0]))
        far = float(np.abs(np.stack([row for _, row in decoded[:compared]]) - logits[0][:compared].numpy()).max())
        report.logits = max(report.logits, far)
        if mine == tokens[0]:
            report.tokens_equal += 1
        else:
            report.differences.append(f"{where}: tokens {mine}, PyTorch {tokens[0]}")
        if not far <= LOGITS_TOLERANCE:
            report.differences.append(f"{where}: logits differ by {far:.2e}")
    report.pixels_within_a_level = within / max(1, n_values)
    if report.pixels_within_a_level < PIXELS_SHARE:
        report.differences.append(
            f"only {report.pixels_within_a_level:.3%} of the pixel values are within one level (largest gap "
            f"{report.pixels:.2f} levels)"
        )
    return report


def pixel_values(
    family: WordFamily, geometry: Geometry, prompt: Prompt | None, picture: NDArray[np.uint8]
) -> torch.Tensor:
    """A prompted picture as training and evaluation make it: float32 (1, 3, size, size)."""
    canvas = geometry.show([picture])
    if prompt is not None:
        canvas = prompt.on(canvas)
    return family.to_pixels(canvas).detach()
