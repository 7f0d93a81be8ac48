"""Masked prediction: how the input is masked, and the loss over what was masked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from musicfm_model.constants import MEL_FRAMES_PER_TOKEN, SAMPLE_RATE

NOISE_STD = 0.1


def mask_waveform(x: Tensor, mask_hop: float, mask_prob: float, hop_length: int) -> tuple[Tensor, Tensor]:
    """Replace random stretches of each waveform by noise.

    Every whole stretch of ``mask_hop`` seconds is masked with probability ``mask_prob``, each by itself. The
    draws come from PyTorch's global CPU generator in the published order (all stretches, then all noise), so
    a seed gives the published mask on any device.

    Args:
        x: (B, S) samples at 24 kHz.
        mask_hop: Length of a stretch in seconds.
        mask_prob: Probability of masking a stretch.
        hop_length: Samples between mel frames.

    Returns:
        The masked copy of ``x``, and the (item, token) pairs that it masks, (num_masked, 2) int64 on the CPU.
    """
    samples_per_mask = int(SAMPLE_RATE * mask_hop)
    tokens_per_mask = int(SAMPLE_RATE / hop_length / MEL_FRAMES_PER_TOKEN * mask_hop)
    is_masked = torch.rand(x.shape[0], x.shape[1] // samples_per_mask) < mask_prob
    masked_samples = is_masked.repeat_interleave(samples_per_mask, dim=1).nonzero()
    masked_tokens = is_masked.repeat_interleave(tokens_per_mask, dim=1).nonzero()
    noise = NOISE_STD * torch.randn(len(masked_samples), dtype=x.dtype)
    masked = x.clone()
    masked[masked_samples.unbind(1)] = noise.to(x.device)
    return masked, masked_tokens


def masked_prediction_loss(logits: Tensor, tokens: Tensor, masked_indices: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy over the masked tokens.

    Args:
        logits: (B, T, codebook_size).
        tokens: (B, T) int64.
        masked_indices: (num_masked, 2) int64 pairs of item and token.

    Returns:
        Two scalars: the mean cross-entropy in nats, in float32, and the share of tokens predicted right. Both
        are NaN where nothing was masked.
    """
    where = masked_indices.unbind(1)
    return prediction_loss(logits[where], tokens[where])


def prediction_loss(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy over tokens that were all masked.

    Args:
        logits: (num_masked, codebook_size).
        tokens: (num_masked,) int64.

    Returns:
        As from ``masked_prediction_loss``.
    """
    logits = logits.float()
    return F.cross_entropy(logits, tokens), (logits.argmax(-1) == tokens).sum() / tokens.numel()
