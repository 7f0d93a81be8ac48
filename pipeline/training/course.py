"""The course of a run, from its last saved state to its last step: what pretraining and fine-tuning share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.training.draws import make_generator
from pipeline.training.schedule import ScheduleRecipe, learning_rate
from pipeline.training.state import Progress, load_state, save_state
from pipeline.training.step import SkipCounter, StepRecipe, StepResult, take_step
from pipeline.training.worker import Figures, Worker

DROPOUT_STREAM = 1 << 20  # slots beyond any that draws crops: dropout's own seeds


@dataclass(frozen=True)
class Intervals:
    """How often a run does what, in steps; 0 for never.

    Args:
        report: Means since the last report.
        gates: Measures on held-out tracks.
        save: Writes its state.
    """

    report: int = 50
    gates: int = 500
    save: int = 500


class CourseRecipe(ScheduleRecipe, StepRecipe, Protocol):
    """What a course asks of a recipe; its ``repr`` tells runs apart."""

    @property
    def num_slots(self) -> int:
        """Micro-batches of a step."""

    @property
    def seed(self) -> int:
        """Of all draws."""


@dataclass
class Course:
    """A run's steps and what happens between them.

    Args:
        model: What is trained and saved, on the worker's device; of a micro-batch it gives loss and parts.
        optimizer: Of the model.
        recipe: Of the run.
        make_batch: Makes a micro-batch from (step, slot) alone.
        step_audio_s: Audio of a step, for the rate.
        folder: Of its state.
        intervals: How often it does what.
        worker: This process, perhaps among several.
        measure: Measures on held-out tracks after so many steps; the first worker alone calls it.
        measures_start: Whether it is called before the first step, too.
        on_report: Gets every line of the curve.
        should_stop: Asked before every step, and answered alike by all workers.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: CourseRecipe
    make_batch: Callable[[int, int], Any]
    step_audio_s: float
    folder: Path
    intervals: Intervals
    worker: Worker
    measure: Callable[[int], Figures] = lambda _: {}
    measures_start: bool = False
    on_report: Callable[[Figures], None] = lambda _: None
    should_stop: Callable[[Progress], bool] = lambda _: False

    def run(self) -> Progress:
        """Train from the last saved state, or from the beginning, to the recipe's last step.

        Raises:
            RunError: Steps that are not finite repeat, or a state can be neither read nor written.
        """
        progress = load_state(self.folder, self.model, self.optimizer, self.recipe)
        skips = SkipCounter(progress.num_skipped)
        meter = Meter()
        slots = self.worker.own_slots(self.recipe.num_slots)
        first_step, num_steps = progress.next_step, self.recipe.num_steps
        if self.measures_start and not progress.curve:
            self._measure(progress)
        wrapped = self.worker.wrap(self.model)
        wrapped.train()
        while progress.next_step < num_steps and not self.should_stop(progress):
            step = progress.next_step
            batches = [partial(self._make_batch, step, slot) for slot in slots]
            lr = learning_rate(self.recipe, step)
            result = take_step(wrapped, self.optimizer, batches, self.recipe, lr)
            skips.count(result.is_skipped, step)
            meter.add(result, self.step_audio_s)
            progress.next_step, progress.num_skipped = step + 1, skips.num_skipped
            self._finish_step(progress, meter, is_last=step + 1 == num_steps)
        if first_step < progress.next_step < num_steps:  # it was stopped
            self._finish_step(progress, meter, is_last=True)
        return progress

    def _finish_step(self, progress: Progress, meter: Meter, is_last: bool) -> None:
        """Report, measure and save what is due after a step, or all that was not done at the last one."""
        step, intervals = progress.next_step, self.intervals
        lines = [line for line in progress.curve[-2:] if line["step"] == step]
        is_reported = any("lr" in line for line in lines)
        is_measured = len(lines) > is_reported
        if (is_last or is_due(step, intervals.report)) and not is_reported:
            figures = {**self.worker.combine(meter.read()), "lr": learning_rate(self.recipe, step - 1)}
            self._add_line(progress, {**figures, "num_skipped": progress.num_skipped})
        if intervals.gates and (is_last or is_due(step, intervals.gates)) and not is_measured:
            self._measure(progress)
            meter.begin()
        if self.worker.is_first and (is_last or is_due(step, intervals.save)):
            save_state(self.folder, self.model, self.optimizer, progress, self.recipe)

    def _measure(self, progress: Progress) -> None:
        figures = self.measure(progress.next_step) if self.worker.is_first else {}
        self._add_line(progress, self.worker.share(figures))

    def _make_batch(self, step: int, slot: int) -> Any:
        batch = self.make_batch(step, slot)
        torch.manual_seed(make_generator(self.recipe.seed, step, DROPOUT_STREAM + slot).initial_seed())
        return batch

    def _add_line(self, progress: Progress, figures: Figures) -> None:
        line = {"step": progress.next_step, **figures}
        progress.curve.append(line)
        self.on_report(line)
        self.worker.tell(line)


class Meter:
    """Means over the steps since the last reading, and how fast they went."""

    def __init__(self) -> None:
        self.begin()

    def add(self, result: StepResult, audio_s: float) -> None:
        """Take note of a step; nothing is fetched from the device yet."""
        self._audio_s += audio_s
        if not result.is_skipped:
            self._num += 1
            self._grad_norm += result.grad_norm
            for name, part in result.parts.items():
                self._sums[name] = self._sums.get(name, 0) + part

    def read(self) -> Figures:
        """Return the means, and audio seconds a second; begin anew."""
        elapsed_s = time.monotonic() - self._start_s
        figures = {name: float(total) / max(1, self._num) for name, total in self._sums.items()}
        figures["grad_norm"] = self._grad_norm / max(1, self._num)
        figures["audio_s_per_s"] = self._audio_s / max(elapsed_s, 1e-9)
        self.begin()
        return figures

    def begin(self) -> None:
        """Forget the steps so far."""
        self._sums: dict[str, Tensor | float] = {}
        self._num, self._grad_norm, self._audio_s = 0, 0.0, 0.0
        self._start_s = time.monotonic()


def is_due(step: int, interval: int) -> bool:
    """Say whether something that happens every so many steps happens after this one."""
    return interval > 0 and step % interval == 0
