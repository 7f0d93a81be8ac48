"""A pretraining run in one process; who shares it out among workers passes a wrapped model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from musicfm_model.config import ModelConfig
from musicfm_model.model import MusicFM25Hz
from pipeline.training.corpus import Corpus
from pipeline.training.course import Course, Intervals
from pipeline.training.crops import make_batch
from pipeline.training.draws import draw_batch
from pipeline.training.export import write_stats
from pipeline.training.gates import MIN_HELD_OUT_FRAMES, choose_gate_crops, measure_gates
from pipeline.training.masking import make_noise_bank
from pipeline.training.objectives import Pretraining
from pipeline.training.recipe import Recipe
from pipeline.training.state import Progress
from pipeline.training.step import make_optimizer
from pipeline.training.worker import Figures, Worker


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
        train: Tracks that it is trained on.
        held_out: Tracks that it is measured on.
        folder: Of its state.
        intervals: How often it does what.
        worker: This process, perhaps among several.
        on_report: Gets every line of the curve.
        should_stop: Asked before every step; a run that stops early is saved.
    """

    model: Pretraining
    train: Corpus
    held_out: Corpus
    folder: Path
    intervals: Intervals
    worker: Worker
    on_report: Callable[[Figures], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False

    def run(self) -> Progress:
        """Train from the last saved state, or from the beginning, to the recipe's last step.

        Raises:
            RunError: Steps that are not finite repeat, or a state can be neither read nor written.
            UsageError: The corpus has no track as long as a crop.
        """
        model, recipe = self.model, self.model.recipe
        noise_bank = make_noise_bank(model.musicfm.preprocessor_melspec_2048)
        gate_crops = choose_gate_crops(model, self.train, self.held_out) if self._measures() else None

        def measure(_: int) -> Figures:
            if gate_crops is None:
                return {}
            figures = measure_gates(model, self.train, self.held_out, gate_crops, noise_bank)
            return {f"held_out.{name}": value for name, value in figures.items()}

        return Course(
            model,
            make_optimizer([(model, 1.0)], recipe),
            recipe,
            lambda step, slot: make_batch(self.train, draw_batch(self.train, recipe, step, slot), noise_bank),
            (recipe.masked_s + recipe.contrast_s) * recipe.num_slots,
            self.folder,
            self.intervals,
            self.worker,
            measure,
            on_report=self.on_report,
            should_stop=lambda _: self.should_stop(),
        ).run()

    def _measures(self) -> bool:
        num_usable = int((self.held_out.num_frames >= MIN_HELD_OUT_FRAMES).sum())
        return self.worker.is_first and bool(self.intervals.gates) and num_usable > 1
