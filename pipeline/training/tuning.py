"""A model with a head on the mean of a hidden state over time: trained on crops, measured on whole tracks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from musicfm_model.model import MusicFM25Hz
from musicfm_model.precision import float32_arithmetic
from pipeline.config import HOP_LENGTH
from pipeline.embed.window import plan_windows
from pipeline.probing.heads import Head
from pipeline.probing.targets import compute_loss
from pipeline.training.corpus import Corpus
from pipeline.training.draws import make_generator
from pipeline.training.encode import encode
from pipeline.training.labels import Labels, measure
from pipeline.training.tuning_recipe import TuningRecipe
from pipeline.training.worker import Figures

MAX_WINDOWS = 16  # that are measured at once
ORDER_STREAM = 1 << 21  # slots beyond any that draws crops or dropout: the order of the tracks


@dataclass(frozen=True)
class TuningBatch:
    """A micro-batch on the model's device.

    Args:
        crops: (B, T, n_mels) float32 in dB.
        targets: Of each, as ``Labels.targets`` has them.
    """

    crops: Tensor
    targets: Tensor


class Tuning(nn.Module):
    """What is fine-tuned: the encoder up to a layer, and the head.

    The batch norms keep the checkpoint's statistics: a batch is small, and all workers must have the same ones.

    Args:
        musicfm: The model, in float32.
        head: On features of that layer.
        task: One of ``labels.MAIN_METRIC``.
        recipe: Of the run.
    """

    def __init__(self, musicfm: MusicFM25Hz, head: Head, task: str, recipe: TuningRecipe) -> None:
        super().__init__()
        self.musicfm, self.head = musicfm, head
        self.task, self.layer = task, recipe.layer
        musicfm.requires_grad_(False)
        conformer = musicfm.conformer
        for module in (musicfm.conv, *conformer.layers[: self.layer]):
            module.requires_grad_(True)
        if self.layer == musicfm.num_layers:  # the only hidden state that goes through it
            conformer.layer_norm.requires_grad_(True)
        for module in musicfm.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout

    def train(self, mode: bool = True) -> Self:
        """Switch training on or off, the batch norms' not."""
        super().train(mode)
        for module in self.musicfm.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, batch: TuningBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's loss, and the same by name, detached."""
        frames = encode(self.musicfm, batch.crops, {self.layer})[self.layer]
        outputs = self.head(frames.float().mean(dim=1))
        loss = compute_loss(self.task, outputs.float(), batch.targets)
        return loss, {"loss": loss.detach()}

    @torch.no_grad()
    def pool_tracks(self, corpus: Corpus, window_s: float) -> Tensor:
        """Return the mean over each track's frames, cut into windows as the embedding job cuts them.

        Returns:
            (num_tracks, embed_dim) float32 on the CPU: what a store keeps as ``global``, to what log-mels lose in
            half precision.
        """
        was_training = self.training
        self.eval()
        device = self.musicfm.cls_token.device
        sums = torch.zeros(len(corpus.track_ids), self.musicfm.embed_dim)
        counts = torch.zeros(len(corpus.track_ids), 1)
        try:
            for windows in group_windows(corpus, window_s):
                rows = [torch.arange(window.first_row, window.first_row + window.num_rows) for window in windows]
                crops = corpus.log_mels[torch.stack(rows).to(corpus.log_mels.device)].to(device).float()
                with float32_arithmetic(device, allow_tf32=True):
                    frames = encode(self.musicfm, crops, {self.layer})[self.layer].float()
                for window, states in zip(windows, frames, strict=True):
                    kept = states[window.first_kept : window.first_kept + window.num_kept]
                    sums[window.track] += kept.sum(dim=0).cpu()
                    counts[window.track] += len(kept)
        finally:
            self.train(was_training)
        return sums / counts.clamp(min=1)

    @torch.no_grad()
    def answer_tracks(self, corpus: Corpus, window_s: float) -> Tensor:
        """Return what the head says of whole tracks: (num_tracks, num_names) float32 on the CPU, scaled."""
        features = self.pool_tracks(corpus, window_s)
        was_training = self.training
        self.eval()
        try:
            outputs: Tensor = self.head(features.to(self.head.feature_mean.device)).cpu()
        finally:
            self.train(was_training)
        return outputs


def measure_tracks(model: Tuning, corpus: Corpus, labels: Labels, split: str, window_s: float) -> Figures:
    """Return loss and metrics of a split's tracks, named after it."""
    rows = labels.rows_of(split)
    outputs = model.answer_tracks(select_tracks(corpus, rows), window_s)
    loss = compute_loss(labels.task, outputs, labels.targets()[rows])
    figures = {"loss": float(loss), **measure(labels, split, outputs)}
    return {f"{split}.{name}": value for name, value in figures.items()}


@dataclass(frozen=True)
class TrackWindow:
    """A window of a corpus's track, in mel frames, and those of its 25 Hz frames that count."""

    track: int
    first_row: int
    num_rows: int
    first_kept: int
    num_kept: int


def group_windows(corpus: Corpus, window_s: float) -> Iterator[list[TrackWindow]]:
    """Yield windows of equal length, some at a time, until all tracks are covered."""
    waiting: dict[int, list[TrackWindow]] = {}
    places = zip(corpus.first_rows.tolist(), corpus.num_frames.tolist(), strict=True)
    for track, (first_row, num_frames) in enumerate(places):
        for window in plan_windows(num_frames * HOP_LENGTH, window_s):
            start, num_rows = window.start_sample // HOP_LENGTH, window.num_samples // HOP_LENGTH
            group = waiting.setdefault(num_rows, [])
            group.append(
                TrackWindow(track, first_row + start, num_rows, window.first_kept_frame, window.num_kept_frames)
            )
            if len(group) == MAX_WINDOWS:
                yield waiting.pop(num_rows)
    yield from waiting.values()


class CropSource:
    """Draws crops of labelled tracks, from (seed, step, slot) alone.

    Args:
        corpus: The tracks.
        labels: Of the same tracks, in the same order.
        recipe: Of the run.
        device: The model's.
    """

    def __init__(self, corpus: Corpus, labels: Labels, recipe: TuningRecipe, device: torch.device) -> None:
        self._corpus, self._recipe, self._device = corpus, recipe, device
        self._targets = labels.targets()
        self._rows = torch.tensor(labels.rows_of("train"))

    def make_batch(self, step: int, slot: int) -> TuningBatch:
        """Make a micro-batch: every training track comes once before any comes again; a short one is repeated."""
        recipe, corpus = self._recipe, self._corpus
        tracks = self._choose_tracks(step * recipe.num_slots + slot)
        generator = make_generator(recipe.seed, step, slot)
        lengths, wanted = corpus.num_frames[tracks], recipe.window_frames
        share = torch.rand(len(tracks), generator=generator, dtype=torch.float64)
        start = (share * (lengths - wanted + 1).clamp(min=1)).long()
        within = (start[:, None] + torch.arange(wanted)) % lengths[:, None]
        rows = (corpus.first_rows[tracks][:, None] + within).to(corpus.log_mels.device)
        crops = corpus.log_mels[rows].to(self._device).float()
        return TuningBatch(crops, self._targets[tracks].to(self._device))

    def _choose_tracks(self, batch: int) -> Tensor:
        """Return the tracks of a run's micro-batch, counted from 0: (num_crops,) int64."""
        num = len(self._rows)
        positions = range(batch * self._recipe.num_crops, (batch + 1) * self._recipe.num_crops)
        orders = {
            epoch: torch.randperm(num, generator=make_generator(self._recipe.seed, epoch, ORDER_STREAM))
            for epoch in {position // num for position in positions}
        }
        return self._rows[[int(orders[position // num][position % num]) for position in positions]]


def select_tracks(corpus: Corpus, rows: Sequence[int]) -> Corpus:
    """Return some of a corpus's tracks, in the given order; the log-mels are shared."""
    return replace(
        corpus,
        track_ids=[corpus.track_ids[row] for row in rows],
        groups=[corpus.groups[row] for row in rows],
        first_rows=corpus.first_rows[list(rows)],
        num_frames=corpus.num_frames[list(rows)],
    )
