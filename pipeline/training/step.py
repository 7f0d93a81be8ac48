"""One step of the optimiser; a step whose numbers are not finite changes nothing and is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from musicfm_model.precision import float32_arithmetic
from pipeline.errors import RunError

MAX_SKIPPED_IN_A_ROW = 5


class OptimizerRecipe(Protocol):
    """What an optimiser asks of a recipe."""

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up."""

    @property
    def weight_decay(self) -> float:
        """Of weights of two dimensions or more."""


class StepRecipe(Protocol):
    """What a step asks of a recipe."""

    @property
    def max_grad_norm(self) -> float:
        """Gradients are scaled down to this norm."""

    @property
    def precision(self) -> str:
        """``float32`` or ``bfloat16`` (autocast)."""


@dataclass
class StepResult:
    """What a step measured.

    Args:
        parts: Means over its micro-batches, on the device.
        grad_norm: Before clipping.
        is_skipped: Whether it changed nothing, because something in it was not finite.
    """

    parts: dict[str, Tensor]
    grad_norm: float
    is_skipped: bool


@dataclass
class SkipCounter:
    """Counts skipped steps and ends a run in which they repeat."""

    num_skipped: int = 0
    num_in_a_row: int = 0

    def count(self, is_skipped: bool, step: int) -> None:
        """Take note of a step.

        Raises:
            RunError: So many in a row were skipped that the run goes nowhere.
        """
        self.num_skipped += is_skipped
        self.num_in_a_row = self.num_in_a_row + 1 if is_skipped else 0
        if self.num_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RunError(
                f"{self.num_in_a_row} steps in a row, up to step {step}, had a loss or gradient that is not "
                "finite: lower the learning rate, or go on from an earlier checkpoint"
            )


def make_optimizer(parts: Sequence[tuple[nn.Module, float]], recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """Return AdamW over what is trained; biases, norms and other vectors do not decay.

    Args:
        parts: Modules, and what each one's learning rate is multiplied by.
        recipe: Of the run.
    """
    groups: list[dict[str, Any]] = []
    for module, lr_scale in parts:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decay, chosen in (
            (recipe.weight_decay, [p for p in trained if p.ndim >= 2]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            groups.append({"params": chosen, "weight_decay": decay, "lr_scale": lr_scale})
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.98), fused=True)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context that a forward pass computes in."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Callable[[], Any]],
    recipe: StepRecipe,
    lr: float,
) -> StepResult:
    """Take one step.

    Args:
        model: In training mode; gives a micro-batch's loss and its parts. Or what shares it out
            (DistributedDataParallel).
        optimizer: Of the model; a group's ``lr_scale`` multiplies its learning rate.
        batches: Makes each of this worker's micro-batches.
        recipe: Of the run.
        lr: Learning rate.
    """
    device = next(model.parameters()).device
    norms = {name: buffer.clone() for name, buffer in model.named_buffers() if "norm" in name or ".bn" in name}
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    with float32_arithmetic(device, allow_tf32=recipe.precision != "float32"):
        for index, make in enumerate(batches):
            batch = make()
            # Gradients travel between workers once a step, with the last micro-batch.
            waits = index < len(batches) - 1 and hasattr(model, "no_sync")
            with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with autocast(device, recipe.precision):
                    loss, parts = model(batch)
                (loss / len(batches)).backward()
            for name, part in parts.items():
                totals[name] = totals.get(name, 0) + part / len(batches)
    grad_norm = float(nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm))
    is_skipped = not (torch.isfinite(torch.tensor(grad_norm)))
    if is_skipped:
        restore_buffers(model, norms)
        optimizer.zero_grad(set_to_none=True)
    else:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer.step()
    return StepResult(totals, grad_norm, bool(is_skipped))


@torch.no_grad()
def restore_buffers(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Put back the running statistics that a step with numbers that are not finite has spoilt."""
    for name, buffer in model.named_buffers():
        if name in saved:
            buffer.copy_(saved[name])
