"""Rotary position embedding (RoFormer, arXiv 2104.09864), with the halves of a head as its pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from musicfm_model.precision import Float32Module

ROTARY_BASE = 10_000.0


class RotaryEmbedding(Float32Module):
    """Cosine and sine of every frame's rotation angles, computed in float32.

    Args:
        head_dim: Width of an attention head, even.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        # On the processor also among tensors without values: on "meta" PyTorch would load SymPy to count.
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        self.register_buffer("inv_freq", ROTARY_BASE**-exponents)

    def forward(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """Return the tables of ``num_frames`` frames: two of (T, 1, head_dim) float32."""
        frames = torch.arange(num_frames, dtype=torch.float32, device=self.inv_freq.device)
        angles = torch.outer(frames, self.inv_freq).repeat(1, 2).unsqueeze(1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of every head by its frame's angle.

    Args:
        x: (B, T, H, D).
        cos: (T, 1, D) float32.
        sin: (T, 1, D) float32.

    Returns:
        (B, T, H, D) in the dtype of ``x``, computed in float32 and rounded once.
    """
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
