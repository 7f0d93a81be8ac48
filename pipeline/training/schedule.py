"""Learning rate over a run: a linear warm-up, then a cosine down to a hundredth."""

from __future__ import annotations

import math
from typing import Protocol

FINAL_SHARE = 0.01


class ScheduleRecipe(Protocol):
    """What a schedule asks of a recipe."""

    @property
    def num_steps(self) -> int:
        """Steps of the optimiser."""

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up."""

    @property
    def num_warmup_steps(self) -> int:
        """Steps over which it rises."""


def learning_rate(recipe: ScheduleRecipe, step: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    warmup = min(recipe.num_warmup_steps, recipe.num_steps)
    if step < warmup:
        return recipe.peak_lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.num_steps - warmup)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return recipe.peak_lr * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)
