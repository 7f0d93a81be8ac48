"""Where a part of a training job runs: alone, or as one of the workers that share its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Figures = dict[str, float]


@dataclass(frozen=True)
class Worker:
    """This process among those that share a step; by default the only one.

    Args:
        device: Its own.
        rank: From 0.
        num_workers: How many there are; they share a step's micro-batches evenly.
        wrap: Gives the model whose gradients are the means over all workers.
        combine: Makes the workers' figures their means; every worker calls it as often as the others.
        share: Gives all workers the first one's figures, likewise.
        tell: Gets every line of the curve.
    """

    device: torch.device
    rank: int = 0
    num_workers: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    combine: Callable[[Figures], Figures] = lambda figures: figures
    share: Callable[[Figures], Figures] = lambda figures: figures
    tell: Callable[[Figures], None] = lambda _: None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that measures and writes."""
        return self.rank == 0

    def own_slots(self, num_slots: int) -> range:
        """Return which of a step's micro-batches are this worker's."""
        each = num_slots // self.num_workers
        return range(self.rank * each, (self.rank + 1) * each)


def choose_device() -> torch.device:
    """Return a GPU where this process has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
