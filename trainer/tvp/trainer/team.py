"""Several processes that train one prompt together, or one that trains alone."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")


class Team:
    """The processes that `accelerate launch` or `torchrun` started; without them, this process alone.

    Attributes:
        rank: this process's number, from 0.
        size: number of processes.
        device: the accelerator that this process was given; None for a process alone, which may choose.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.device: torch.device | None = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch
            from accelerate import PartialState

            # The default waits ten minutes for the other processes, and a download may take longer.
            state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=6))
            self.rank, self.size, self.device = state.process_index, state.num_processes, state.device

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.size > 1:
            import torch

            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in the order of their ranks."""
        if self.size == 1:
            return items
        import torch

        lists: list[list[T]] = [[] for _ in range(self.size)]
        torch.distributed.all_gather_object(lists, items)
        return [item for one in lists for item in one]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            import torch

            torch.distributed.barrier()
