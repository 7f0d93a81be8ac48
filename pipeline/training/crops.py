"""A micro-batch's crops: read from the corpus, moved in pitch, tempo and sound, masked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from musicfm_model.constants import SAMPLE_RATE
from pipeline.training.corpus import Corpus
from pipeline.training.draws import Draws, Moves
from pipeline.training.masking import list_masked_tokens, mask_log_mels, to_decibels, to_power

SILENCE_DB = -100.0
LOW_PASS_DB_PER_BAND = 3.0


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the model's device.

    Args:
        clean: (num_masked_crops, T, n_mels) in dB, what the targets are made of.
        masked: The same crops, masked.
        contrast: (2 * num_pairs, T, n_mels) in dB.
        masked_tokens: (num_masked, 2) int64 pairs of crop and token.
        contrast_tracks: (2 * num_pairs,) int64.
    """

    clean: Tensor
    masked: Tensor
    contrast: Tensor
    masked_tokens: Tensor
    contrast_tracks: Tensor


def make_batch(corpus: Corpus, draws: Draws, noise_bank: Tensor) -> Batch:
    """Make what was drawn, on the noise bank's device."""
    device = noise_bank.device
    moves = draws.moves.to(device)
    crops = read_crops(corpus.log_mels, draws.first_rows, draws.crop_frames, moves.stretch)
    noise = read_noise(noise_bank, moves.noise_offset, draws.crop_frames)
    crops = move_crops(crops, noise, moves)
    num_masked = draws.num_masked_crops
    is_masked = draws.is_masked.to(device, non_blocking=True)
    clean = crops[:num_masked]
    return Batch(
        clean=clean,
        masked=mask_log_mels(clean, noise[:num_masked], is_masked) if num_masked else clean,
        contrast=crops[num_masked:],
        masked_tokens=list_masked_tokens(draws.is_masked).to(device, non_blocking=True),
        contrast_tracks=draws.tracks[num_masked:].to(device, non_blocking=True),
    )


def read_crops(log_mels: Tensor, first_rows: Tensor, crop_frames: int, stretch: Tensor) -> Tensor:
    """Read crops at their tempo, between two rows by linear interpolation.

    Args:
        log_mels: (num_rows, n_mels) float16 in dB, on any device.
        first_rows: (B,) int64, on the CPU.
        crop_frames: Rows of a crop.
        stretch: (B,) rows of the track for one of the crop, on the result's device.

    Returns:
        (B, crop_frames, n_mels) float32 in dB.
    """
    device = stretch.device
    steps = torch.arange(crop_frames, device=device) * stretch[:, None]
    below = steps.floor()
    rows = first_rows.to(device, non_blocking=True)[:, None] + below.long()
    weight = (steps - below)[..., None]
    at = rows.to(log_mels.device)
    low, high = log_mels[at], log_mels[(at + 1).clamp(max=len(log_mels) - 1)]
    return torch.lerp(low.to(device).float(), high.to(device).float(), weight)


def read_noise(bank: Tensor, offset: Tensor, crop_frames: int) -> Tensor:
    """Read as much noise for every crop from its own place in the bank: (B, crop_frames, n_mels)."""
    rows = offset[:, None] + torch.arange(crop_frames, device=offset.device)
    return bank[rows % len(bank)]


def move_crops(crops: Tensor, noise: Tensor, moves: Moves) -> Tensor:
    """Move crops in pitch, loudness and sound.

    Args:
        crops: (B, T, n_mels) in dB.
        noise: (B, T, n_mels) in dB, of any level.
        moves: Of the B crops.

    Returns:
        (B, T, n_mels) in dB, nothing below silence.
    """
    n_mels = crops.shape[2]
    bands = torch.arange(n_mels, device=crops.device, dtype=torch.float32)
    crops = shift_pitch(crops, moves.semitones)
    turns = bands / n_mels * torch.tensor([0.5, 1.0, 2.0], device=crops.device)[:, None]  # (waves, bands)
    waves = torch.cos(2 * torch.pi * turns + moves.wave_phases[..., None]) * moves.waves_db[..., None]
    fall_db = LOW_PASS_DB_PER_BAND * (bands - moves.low_pass_band[:, None]).clamp(min=0)
    gain_db = moves.gain_db[:, None] + waves.sum(dim=1) - fall_db
    crops = crops + gain_db[:, None]
    level_db = to_decibels(to_power(crops).mean(dim=(1, 2))) + moves.noise_db
    floor = noise - to_decibels(to_power(noise).mean(dim=(1, 2)))[:, None, None] + level_db[:, None, None]
    has_noise = torch.isfinite(moves.noise_db)[:, None, None]
    crops = torch.where(has_noise, to_decibels(to_power(crops) + to_power(floor)), crops)
    return crops.clamp(min=SILENCE_DB)


def shift_pitch(crops: Tensor, semitones: Tensor) -> Tensor:
    """Move every band to where its frequency goes, by linear interpolation between bands.

    Args:
        crops: (B, T, n_mels) in dB.
        semitones: (B,).

    Returns:
        (B, T, n_mels); bands that would come from beyond the highest one repeat it.
    """
    n_mels = crops.shape[2]
    top = hertz_to_mel(torch.tensor(SAMPLE_RATE / 2, device=crops.device))
    width = top / (n_mels + 1)
    centre_hz = mel_to_hertz(width * torch.arange(1, n_mels + 1, device=crops.device))
    source_hz = centre_hz / torch.exp2(semitones / 12)[:, None]
    position = (hertz_to_mel(source_hz) / width - 1).clamp(0, n_mels - 1)
    below = position.floor().long().clamp(max=n_mels - 2)
    weight = (position - below)[:, None]
    index = below[:, None].expand(-1, crops.shape[1], -1)
    return torch.lerp(crops.gather(2, index), crops.gather(2, index + 1), weight)


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Return mels by the HTK formula, which the model's filter bank is spaced by."""
    return 2595.0 * torch.log10(1 + hertz / 700.0)


def mel_to_hertz(mel: Tensor) -> Tensor:
    """Return the frequency of mels."""
    return 700.0 * (10 ** (mel / 2595.0) - 1)
