"""What a micro-batch consists of, drawn from (seed, step, slot) alone: a killed run draws the same again."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.training.corpus import Corpus
from pipeline.training.recipe import MASK_FRAMES, MASK_PROB, Augmentation, Recipe

NUM_WAVES = 3  # slow waves over the bands, of which a filter is made


@dataclass(frozen=True)
class Moves:
    """How each crop is moved; shape (num_crops,) unless stated otherwise, float32.

    Args:
        semitones: Pitch.
        stretch: Mel frames of the track that one frame of the crop covers.
        gain_db: Loudness.
        waves_db: (num_crops, NUM_WAVES) heights.
        wave_phases: (num_crops, NUM_WAVES) in radians.
        low_pass_band: Band from which the crop falls off; beyond the last for those that do not.
        noise_db: Of the noise floor relative to the crop's mean power; -inf for none.
        noise_offset: Row of the bank of noise at which the crop's noise begins, int64.
    """

    semitones: Tensor
    stretch: Tensor
    gain_db: Tensor
    waves_db: Tensor
    wave_phases: Tensor
    low_pass_band: Tensor
    noise_db: Tensor
    noise_offset: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the same on a device."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(frozen=True)
class Draws:
    """A micro-batch's draws: first the masked crops, then those of the contrast, two after two of one track.

    Args:
        crop_frames: Mel frames of a crop.
        tracks: (num_crops,) int64, the track of each, as numbered in the corpus.
        first_rows: (num_crops,) int64, the corpus's row at which each begins.
        is_masked: (num_masked_crops, num_stretches) bool.
        moves: Of all crops.
    """

    crop_frames: int
    tracks: Tensor
    first_rows: Tensor
    is_masked: Tensor
    moves: Moves

    @property
    def num_masked_crops(self) -> int:
        """How many of the crops, the first ones, are masked."""
        return len(self.is_masked)


def make_generator(seed: int, step: int, slot: int) -> torch.Generator:
    """Return a generator of a micro-batch's own."""
    state = np.random.SeedSequence([seed, step, slot]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def draw_batch(corpus: Corpus, recipe: Recipe, step: int, slot: int) -> Draws:
    """Draw a micro-batch.

    Tracks of masked crops are drawn by their length, those of the contrast each once before any comes again.

    Raises:
        UsageError: No track is as long as a crop.
    """
    generator = make_generator(recipe.seed, step, slot)
    crop_frames = recipe.crop_frames(step)
    num_masked = max(1, round(recipe.masked_s * 100 / crop_frames)) if recipe.masked_s else 0
    num_pairs = round(recipe.contrast_s * 100 / crop_frames / 2)
    span = int(crop_frames * (1 + recipe.augmentation.max_stretch)) + 2  # rows that a crop may reach over
    room = corpus.num_frames - span
    if not (room >= 0).any():
        raise UsageError(f"expected tracks of at least {span / 100:.1f} s for the crops of a step, found none")
    tracks = torch.cat(
        [
            torch.multinomial((room + 1).clamp(min=0).double(), num_masked, replacement=True, generator=generator)
            if num_masked
            else torch.empty(0, dtype=torch.int64),
            draw_pairs(room, num_pairs, generator).repeat_interleave(2),
        ]
    )
    share = torch.rand(len(tracks), generator=generator, dtype=torch.float64)
    separate_pairs(share, num_masked)
    first_rows = corpus.first_rows[tracks] + (share * (room[tracks] + 1)).long().clamp(max=room[tracks])
    is_masked = torch.rand(num_masked, crop_frames // MASK_FRAMES, generator=generator) < MASK_PROB
    if num_masked and not is_masked.any():
        is_masked[0, 0] = True
    moves = draw_moves(recipe.augmentation, len(tracks), generator)
    return Draws(crop_frames, tracks, first_rows, is_masked, moves)


def draw_pairs(room: Tensor, num_pairs: int, generator: torch.Generator) -> Tensor:
    """Draw tracks that have room for a crop, each once before any comes again: (num_pairs,) int64."""
    eligible = (room >= 0).nonzero()[:, 0]
    rounds = -(-num_pairs // len(eligible))
    drawn = [eligible[torch.randperm(len(eligible), generator=generator)] for _ in range(rounds)]
    return torch.cat([*drawn, eligible[:0]])[:num_pairs]


def separate_pairs(share: Tensor, num_masked: int) -> None:
    """Move the second crop of each pair to the half of the track that the first one is not in, in place."""
    first, second = share[num_masked::2], share[num_masked + 1 :: 2]
    share[num_masked + 1 :: 2] = torch.where(first < 0.5, 0.5 + second / 2, second / 2)


def draw_moves(augmentation: Augmentation, num_crops: int, generator: torch.Generator) -> Moves:
    """Draw how crops are moved; those that are not get moves that change nothing."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(num_crops, *shape, generator=generator)

    is_moved = (uniform() < augmentation.prob).float()
    has_low_pass = is_moved * (uniform() < augmentation.low_pass_prob)
    noise_db = augmentation.max_noise_db - (augmentation.max_noise_db + 30) * uniform()
    has_noise = (is_moved * (uniform() < 0.5)).bool()
    return Moves(
        semitones=is_moved * augmentation.max_semitones * (2 * uniform() - 1),
        stretch=1 + is_moved * augmentation.max_stretch * (2 * uniform() - 1),
        gain_db=is_moved * augmentation.max_gain_db * (2 * uniform() - 1),
        waves_db=is_moved[:, None] * augmentation.max_filter_db * (2 * uniform(NUM_WAVES) - 1),
        wave_phases=2 * torch.pi * uniform(NUM_WAVES),
        low_pass_band=torch.where(has_low_pass.bool(), 70 + 58 * uniform(), 1000.0),
        noise_db=torch.where(has_noise, noise_db, -torch.inf),
        noise_offset=(uniform() * 1e6).long(),
    )
