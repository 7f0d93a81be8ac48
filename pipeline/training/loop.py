"""The course of a training run in one process; who shares it out among workers passes a wrapped model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from musicfm_model.config import ModelConfig
from musicfm_model.model import MusicFM25Hz
from pipeline.training.corpus import Corpus
from pipeline.training.crops import Batch, make_batch
from pipeline.training.draws import draw_batch, make_generator
from pipeline.training.export import write_stats
from pipeline.training.gates import MIN_HELD_OUT_FRAMES, GateCrops, choose_gate_crops, measure_gates
from pipeline.training.masking import make_noise_bank
from pipeline.training.objectives import Pretraining
from pipeline.training.recipe import Recipe
from pipeline.training.schedule import learning_rate
from pipeline.training.state import Progress, load_state, save_state
from pipeline.training.step import SkipCounter, StepResult, make_optimizer, take_step

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


@dataclass(frozen=True)
class Worker:
    """This process among those that share a step.

    Args:
        rank: From 0.
        num_workers: How many there are; they share the recipe's slots evenly.
    """

    rank: int = 0
    num_workers: int = 1

    def own_slots(self, recipe: Recipe) -> range:
        """Return the micro-batches of a step that are this worker's."""
        each = recipe.num_slots // self.num_workers
        return range(self.rank * each, (self.rank + 1) * each)


def build_model(config: ModelConfig, recipe: Recipe, stats: tuple[float, float], folder: Path) -> Pretraining:
    """Build a fresh model with its heads; the recipe's seed gives its weights.

    Args:
        config: Sizes.
        recipe: What it is trained by.
        stats: Mean and standard deviation of the corpus, in dB.
        folder: Where its statistics file goes; made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stats_path = folder / "stats.json"
    write_stats(stats_path, *stats)
    torch.manual_seed(recipe.seed)
    musicfm = MusicFM25Hz(
        num_codebooks=config.num_codebooks,
        codebook_dim=config.codebook_dim,
        codebook_size=config.codebook_size,
        n_mels=config.n_mels,
        conv_dim=config.conv_dim,
        encoder_dim=config.embed_dim,
        encoder_depth=config.num_layers,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        stat_path=str(stats_path),
        model_path=None,
    )
    return Pretraining(musicfm, recipe)


@dataclass
class TrainingRun:
    """A run and what it needs, on its device.

    Args:
        model: What is trained.
        wrapped: The same, or what shares it out among workers.
        train: Tracks that it is trained on.
        held_out: Tracks that it is measured on.
        folder: Of its state.
        intervals: How often it does what.
        worker: This process among several.
        on_report: Gets every line of the curve.
        combine: Makes the workers' means one; every worker calls it as often as the others.
        should_stop: Asked after every step; a run that stops early is saved.
    """

    model: Pretraining
    wrapped: nn.Module
    train: Corpus
    held_out: Corpus
    folder: Path
    intervals: Intervals = Intervals()
    worker: Worker = Worker()
    on_report: Callable[[dict[str, float]], None] = lambda _: None
    combine: Callable[[dict[str, float]], dict[str, float]] = lambda figures: figures
    should_stop: Callable[[], bool] = lambda: False

    def run(self) -> Progress:
        """Train from the last saved state, or from the beginning, to the recipe's last step.

        Raises:
            RunError: Steps that are not finite repeat, or a state can be neither read nor written.
            UsageError: The corpus has no track as long as a crop.
        """
        recipe, worker = self.model.recipe, self.worker
        optimizer = make_optimizer(self.model, recipe)
        progress = load_state(self.folder, self.model, optimizer, recipe)
        noise_bank = make_noise_bank(self.model.musicfm.preprocessor_melspec_2048)
        gate_crops = choose_gate_crops(self.model, self.train, self.held_out) if self._measures() else None
        skips = SkipCounter(progress.num_skipped)
        meter = Meter()
        self.wrapped.train()
        for step in range(progress.next_step, recipe.num_steps):
            lr = learning_rate(recipe, step)
            slots = worker.own_slots(recipe)
            batches = self._make_batches(step, slots, noise_bank)
            result = take_step(self.wrapped, optimizer, batches, recipe, lr, len(slots))
            skips.count(result.is_skipped, step)
            meter.add(result, self._step_audio_s())
            progress.next_step, progress.num_skipped = step + 1, skips.num_skipped
            is_last = step + 1 == recipe.num_steps or self.should_stop()
            if is_last or is_due(step + 1, self.intervals.report):
                self._report(progress, {**self.combine(meter.read()), "lr": lr, "num_skipped": skips.num_skipped})
            if self.intervals.gates and (is_last or is_due(step + 1, self.intervals.gates)):
                self._report(progress, self._measure(gate_crops, noise_bank))
                meter = Meter()
            if worker.rank == 0 and (is_last or is_due(step + 1, self.intervals.save)):
                save_state(self.folder, self.model, optimizer, progress, recipe)
            if is_last:
                break
        return progress

    def _measures(self) -> bool:
        num_usable = int((self.held_out.num_frames >= MIN_HELD_OUT_FRAMES).sum())
        return self.worker.rank == 0 and bool(self.intervals.gates) and num_usable > 1

    def _make_batches(self, step: int, slots: range, noise_bank: Tensor) -> Iterator[Callable[[], Batch]]:
        recipe = self.model.recipe
        for slot in slots:
            draws = draw_batch(self.train, recipe, step, slot)
            torch.manual_seed(make_generator(recipe.seed, step, DROPOUT_STREAM + slot).initial_seed())
            yield lambda draws=draws: make_batch(self.train, draws, noise_bank)  # type: ignore[misc]

    def _step_audio_s(self) -> float:
        recipe = self.model.recipe
        return (recipe.masked_s + recipe.contrast_s) * recipe.num_slots

    def _measure(self, gate_crops: GateCrops | None, noise_bank: Tensor) -> dict[str, float]:
        if gate_crops is None:
            return {}
        figures = measure_gates(self.model, self.train, self.held_out, gate_crops, noise_bank)
        return {f"held_out.{name}": value for name, value in figures.items()}

    def _report(self, progress: Progress, figures: dict[str, float]) -> None:
        line = {"step": progress.next_step, **figures}
        progress.curve.append(line)
        self.on_report(line)


class Meter:
    """Means over the steps since the last reading, and how fast they went."""

    def __init__(self) -> None:
        self._reset()

    def add(self, result: StepResult, audio_s: float) -> None:
        """Take note of a step; nothing is fetched from the device yet."""
        self._audio_s += audio_s
        if not result.is_skipped:
            self._num += 1
            self._grad_norm += result.grad_norm
            for name, part in result.parts.items():
                self._sums[name] = self._sums.get(name, 0) + part

    def read(self) -> dict[str, float]:
        """Return the means, and audio seconds a second; begin anew."""
        elapsed_s = time.monotonic() - self._start_s
        figures = {name: float(total) / max(1, self._num) for name, total in self._sums.items()}
        figures["grad_norm"] = self._grad_norm / max(1, self._num)
        figures["audio_s_per_s"] = self._audio_s / max(elapsed_s, 1e-9)
        self._reset()
        return figures

    def _reset(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._num, self._grad_norm, self._audio_s = 0, 0.0, 0.0
        self._start_s = time.monotonic()


def is_due(step: int, interval: int) -> bool:
    """Say whether something that happens every so many steps happens after this one."""
    return interval > 0 and step % interval == 0
