"""The published masking, drawn on log-mels as it would come out of the masked waveform.

The published code (``model/musicfm_25hz.py``, ``masking``) replaces 400 ms stretches of the waveform by noise. A
mel frame sees 85 ms, so that beside a stretch's edges it sees some of both. There the powers add up in the share
that each has of the window's energy; the cross term between music and noise is zero on average and is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from musicfm_model.constants import HOP_LENGTH, N_FFT, SAMPLE_RATE
from musicfm_model.log_mel import LogMel
from musicfm_model.pretraining import NOISE_STD
from pipeline.training.recipe import FRAMES_PER_TOKEN, MASK_FRAMES

NOISE_BANK_S = 60
FLOOR_POWER = 1e-10  # what LogMel clamps at: -100 dB


def make_noise_bank(transform: LogMel, seed: int = 0) -> Tensor:
    """Return log-mels of a minute of the noise that masks, (num_frames, n_mels) float32 in dB."""
    generator = torch.Generator().manual_seed(seed)
    noise = NOISE_STD * torch.randn(1, NOISE_BANK_S * SAMPLE_RATE, generator=generator)
    device = transform.mel_stft.mel_scale.fb.device
    log_mel: Tensor = transform(noise.to(device))
    return log_mel[0].T.contiguous()


def noise_shares(is_masked: Tensor) -> Tensor:
    """Return the share of each mel frame's window energy that lies in masked stretches.

    Args:
        is_masked: (B, num_stretches) bool.

    Returns:
        (B, num_stretches * 40) float32 from 0 to 1: 1 where a frame sees noise alone.
    """
    blocks = is_masked.float().repeat_interleave(MASK_FRAMES, dim=1)
    energy = block_energies().to(blocks)
    # Beyond the crop's ends, as beyond a waveform's, the signal is its own mirror image.
    half = len(energy) // 2
    padded = F.pad(blocks[:, None], (half, half - 1), mode="replicate")
    return F.conv1d(padded, energy[None, None])[:, 0].clamp(0, 1)


def block_energies() -> Tensor:
    """Return how a frame's window energy is shared out among the hops around its centre: (10,), sum 1."""
    half_blocks = -(-N_FFT // 2 // HOP_LENGTH)
    energy = torch.zeros(2 * half_blocks * HOP_LENGTH, dtype=torch.float64)
    start = half_blocks * HOP_LENGTH - N_FFT // 2
    energy[start : start + N_FFT] = torch.hann_window(N_FFT, dtype=torch.float64).square()
    return (energy / energy.sum()).reshape(-1, HOP_LENGTH).sum(dim=1)


def mask_log_mels(log_mels: Tensor, noise: Tensor, is_masked: Tensor) -> Tensor:
    """Mask crops.

    Args:
        log_mels: (B, T, n_mels) in dB, T whole stretches of 40.
        noise: (B, T, n_mels) in dB: of the noise alone.
        is_masked: (B, T / 40) bool.

    Returns:
        (B, T, n_mels) float32 in dB.
    """
    share = noise_shares(is_masked)[..., None]
    power = (1 - share) * to_power(log_mels) + share * to_power(noise)
    # Where no noise is seen nothing goes through a logarithm and back.
    return torch.where(share > 0, to_decibels(power), log_mels)


def list_masked_tokens(is_masked: Tensor) -> Tensor:
    """Return (item, token) pairs that the stretches mask: (num_masked, 2) int64."""
    return is_masked.repeat_interleave(MASK_FRAMES // FRAMES_PER_TOKEN, dim=1).nonzero()


def to_power(decibels: Tensor) -> Tensor:
    """Return power of decibels."""
    return torch.exp(decibels * 0.2302585093)  # ln 10 / 10


def to_decibels(power: Tensor) -> Tensor:
    """Return decibels of power, clamped as the model's front end clamps."""
    return 10 * torch.log10(power.clamp(min=FLOOR_POWER))
