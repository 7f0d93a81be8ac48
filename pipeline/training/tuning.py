"""A model with a head on a hidden state, or on its mean over time: trained on crops, measured on whole tracks."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from musicfm_model.model import MusicFM25Hz
from musicfm_model.precision import float32_arithmetic
from pipeline.config import HOP_LENGTH, SAMPLES_PER_FRAME
from pipeline.embed.window import plan_windows
from pipeline.errors import RunError
from pipeline.probing.features import FeatureSet
from pipeline.probing.fitting import Targets
from pipeline.probing.heads import Head, apply_head
from pipeline.probing.targets import compute_loss
from pipeline.training.answers import measure
from pipeline.training.corpus import Corpus
from pipeline.training.draws import make_generator
from pipeline.training.encode import encode
from pipeline.training.labels import Labels
from pipeline.training.tuning_recipe import TuningRecipe
from pipeline.training.worker import Figures

MAX_WINDOWS = 16  # that are measured at once
MEL_PER_FRAME = SAMPLES_PER_FRAME // HOP_LENGTH
ORDER_STREAM = 1 << 21  # slots beyond any that draws crops or dropout: the order of the tracks


@dataclass(frozen=True)
class TuningBatch:
    """A micro-batch on the model's device.

    Args:
        crops: (B, T, n_mels) float32 in dB.
        targets: Of each crop, as ``Labels.targets`` has them, or, where the task has time, of each of its frames,
            one crop after the other.
    """

    crops: Tensor
    targets: Tensor


class Tuning(nn.Module):
    """What is fine-tuned: the encoder up to a layer, and the head.

    The batch norms keep the checkpoint's statistics: a batch is small, and all workers must have the same ones.

    Args:
        musicfm: The model, in float32.
        head: On features of that layer.
        labels: Say what the head answers, and whether it answers for every frame or for the mean over them.
        recipe: Of the run.
    """

    def __init__(self, musicfm: MusicFM25Hz, head: Head, labels: Labels, recipe: TuningRecipe) -> None:
        super().__init__()
        self.musicfm, self.head = musicfm, head
        self.task, self.layer, self.frame_rate_hz = labels.task, recipe.layer, labels.frame_rate_hz
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
        frames = encode(self.musicfm, batch.crops, {self.layer})[self.layer].float()
        features = frames.mean(dim=1) if self.frame_rate_hz is None else frames.flatten(0, 1)
        loss = compute_loss(self.task, self.head(features).float(), batch.targets)
        return loss, {"loss": loss.detach()}

    @torch.no_grad()
    def embed_tracks(self, corpus: Corpus, window_s: float) -> FeatureSet:
        """Return whole tracks' features, cut into windows as the embedding job cuts them.

        Returns:
            Every 25 Hz frame, or the mean over a track's: what a store keeps as ``25hz`` or ``global``, to what
            log-mels lose in half precision.

        Raises:
            RunError: There is no room for them on disk.
        """
        num_frames = np.array([count_frames(int(num), window_s) for num in corpus.num_frames], np.int64)
        lengths = np.ones_like(num_frames) if self.frame_rate_hz is None else num_frames
        firsts = np.cumsum(lengths) - lengths
        vectors = reserve_rows(int(lengths.sum()), self.musicfm.embed_dim)
        for window, frames in self._embed_windows(corpus, window_s):
            first = firsts[window.track]
            if self.frame_rate_hz is None:
                vectors[first] += frames.sum(dim=0).numpy() / num_frames[window.track]
            else:
                start = first + window.first_frame
                vectors[start : start + len(frames)] = frames.numpy()
        spec = self.head.spec
        track_ids = tuple(corpus.track_ids)
        return FeatureSet(
            track_ids, lengths, firsts[None], (vectors,), self.frame_rate_hz, spec.recipes, spec.resolution
        )

    def _embed_windows(self, corpus: Corpus, window_s: float) -> Iterator[tuple[TrackWindow, Tensor]]:
        """Yield windows with those of their frames that count: (num_kept, embed_dim) float32 on the CPU."""
        was_training = self.training
        self.eval()
        device = self.musicfm.cls_token.device
        try:
            for windows in group_windows(corpus, window_s):
                rows = [torch.arange(window.first_row, window.first_row + window.num_rows) for window in windows]
                crops = corpus.log_mels[torch.stack(rows).to(corpus.log_mels.device)].to(device).float()
                with float32_arithmetic(device, allow_tf32=True):
                    states = encode(self.musicfm, crops, {self.layer})[self.layer].float().cpu()
                for window, frames in zip(windows, states, strict=True):
                    yield window, frames[window.first_kept : window.first_kept + window.num_kept]
        finally:
            self.train(was_training)

    def answer_tracks(self, corpus: Corpus, window_s: float) -> list[Tensor]:
        """Return what the head says of whole tracks, on the CPU: for each what ``heads.apply_head`` returns."""
        features = self.embed_tracks(corpus, window_s)
        was_training = self.training
        self.eval()
        try:
            return [
                torch.from_numpy(apply_head(self.head, features.read(track), self.frame_rate_hz))
                for track in range(len(features.lengths))
            ]
        finally:
            self.train(was_training)


def reserve_rows(num_rows: int, embed_dim: int) -> np.memmap[Any, np.dtype[np.float32]]:
    """Return rows of zeros in a file that goes when they are no longer used.

    Raises:
        RunError: The file cannot be made as long as it has to be.
    """
    try:
        with tempfile.TemporaryFile(prefix="musicfm-features-") as file:
            # A file without room behind it would end the process where a row is written.
            num_bytes = num_rows * embed_dim * 4
            if sys.platform == "darwin":  # which has no such call
                file.truncate(num_bytes)
            else:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            return np.memmap(file, np.float32, "r+", shape=(num_rows, embed_dim))
    except OSError as error:
        raise RunError(
            f"cannot keep features of {num_rows} rows in {tempfile.gettempdir()}: {error}; name a folder with "
            "room in the environment variable TMPDIR"
        ) from error


def measure_tracks(model: Tuning, corpus: Corpus, labels: Labels, split: str, window_s: float) -> Figures:
    """Return loss and metrics of a split's tracks, named after it."""
    outputs = model.answer_tracks(select_tracks(corpus, labels.rows_of(split)), window_s)
    targets = labels.targets([len(answers) for answers in outputs], split)
    trained = [answers[:, -len(labels.names) :] for answers in outputs]  # of sections without novelty, the first
    loss = compute_loss(labels.task, torch.cat(trained), torch.cat(targets))
    figures = {"loss": float(loss), **measure(labels, model.head.spec, split, outputs)}
    return {f"{split}.{name}": value for name, value in figures.items()}


@dataclass(frozen=True)
class TrackWindow:
    """A window of a corpus's track, in mel frames, and those of its 25 Hz frames that count.

    Args:
        track: Its number.
        first_row: Where the window begins, among the rows of all tracks.
        num_rows: Mel frames of the window.
        first_kept: The first of the window's own frames that counts.
        num_kept: How many do.
        first_frame: Which of the track's frames that first one is.
    """

    track: int
    first_row: int
    num_rows: int
    first_kept: int
    num_kept: int
    first_frame: int


def count_frames(num_mel_frames: int, window_s: float) -> int:
    """Return how many 25 Hz frames a track has, cut into windows."""
    return sum(window.num_kept_frames for window in plan_windows(num_mel_frames * HOP_LENGTH, window_s))


def group_windows(corpus: Corpus, window_s: float) -> Iterator[list[TrackWindow]]:
    """Yield windows of equal length, some at a time, until all tracks are covered."""
    waiting: dict[int, list[TrackWindow]] = {}
    places = zip(corpus.first_rows.tolist(), corpus.num_frames.tolist(), strict=True)
    for track, (first_row, num_frames) in enumerate(places):
        windows = plan_windows(num_frames * HOP_LENGTH, window_s)
        first_frames = itertools.accumulate((window.num_kept_frames for window in windows), initial=0)
        for window, first_frame in zip(windows, first_frames, strict=False):
            start, num_rows = window.start_sample // HOP_LENGTH, window.num_samples // HOP_LENGTH
            kept = (window.first_kept_frame, window.num_kept_frames)
            group = waiting.setdefault(num_rows, [])
            group.append(TrackWindow(track, first_row + start, num_rows, *kept, first_frame))
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
        self._has_frames = labels.frame_rate_hz is not None
        # A crop of frames begins with a whole one, and repeats a short track after its last whole one.
        self._unit = MEL_PER_FRAME if self._has_frames else 1
        self._num_rows = corpus.num_frames // self._unit * self._unit
        num_targets = self._num_rows // self._unit if self._has_frames else torch.ones_like(self._num_rows)
        self._targets = Targets.join(labels.targets(num_targets.tolist()))
        self._rows = torch.tensor(labels.rows_of("train"))

    def make_batch(self, step: int, slot: int) -> TuningBatch:
        """Make a micro-batch: every training track comes once before any comes again; a short one is repeated."""
        recipe, corpus = self._recipe, self._corpus
        tracks = self._choose_tracks(step * recipe.num_slots + slot)
        generator = make_generator(recipe.seed, step, slot)
        lengths, wanted = self._num_rows[tracks], recipe.window_frames
        share = torch.rand(len(tracks), generator=generator, dtype=torch.float64)
        start = (share * (lengths - wanted + 1).clamp(min=1)).long() // self._unit * self._unit
        within = (start[:, None] + torch.arange(wanted)) % lengths[:, None]
        rows = (corpus.first_rows[tracks][:, None] + within).to(corpus.log_mels.device)
        crops = corpus.log_mels[rows].to(self._device).float()
        wanted_rows = torch.from_numpy(self._targets.firsts)[tracks]
        if self._has_frames:
            wanted_rows = (wanted_rows[:, None] + within[:, :: self._unit] // self._unit).flatten()
        return TuningBatch(crops, self._targets.rows[wanted_rows].to(self._device))

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
