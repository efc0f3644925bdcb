"""How right the source models answer with the prompt as it is, on pictures that training does not see."""

from __future__ import annotations

import torch

from .data import Subset
from .evaluate import accuracy
from .preparation import Prepared
from .prompt import Prompt
from .team import Team

MOST_ROWS = 256  # questions that a language model reads at once


def validate(prompt: Prompt, prepared: Prepared, team: Team) -> float:
    """The share of validation questions answered right, in [0, 1], over all source models and processes."""
    config, home = prepared.config, prepared.home
    mine = Subset(prepared.validation, range(team.rank, len(prepared.validation), team.size))
    # As many rows as training reads at once: these fit into memory even with all that a gradient needs.
    n_rows = min(MOST_ROWS, -(-config.batch // config.accumulate) * config.questions)
    right = torch.zeros(2, dtype=torch.float64, device=home)
    for source in prepared.sources:
        if prepared.offload:
            source.model.to(home)
        result = accuracy(source, mine, prompt.geometry, prompt, prepared.task, n_rows)
        right += torch.tensor([result.right.sum(), result.n], device=home)
        if prepared.offload:
            source.model.to("cpu")
    n_right, n_asked = team.sum(right).tolist()
    return float(n_right / n_asked)
