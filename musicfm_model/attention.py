"""Multi-head self-attention with rotary embedding, on one of three back ends."""

from __future__ import annotations

import importlib
import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicfm_model.config import DROPOUT
from musicfm_model.rotary import rotate

Attention = Literal["eager", "sdpa", "flash"]


def check_attention(attention: str, precision: str) -> None:
    """Check that a back end exists and can compute in a precision.

    Args:
        attention: ``eager`` (matrix products and a softmax), ``sdpa`` (PyTorch's own choice of fused kernel)
            or ``flash`` (the flash-attn package).
        precision: The model's precision.

    Raises:
        ValueError: The name is unknown, ``flash`` is asked for in another precision than bfloat16 or
            float16, or flash-attn cannot be imported.
    """
    if attention not in get_args(Attention):
        raise ValueError(f"unknown attention {attention!r}: expected one of {', '.join(get_args(Attention))}")
    if attention != "flash":
        return
    if precision not in ("bfloat16", "float16"):
        raise ValueError(
            f"attention 'flash' computes in bfloat16 or float16 only, found precision {precision!r}: "
            "choose one of those, or attention 'sdpa'"
        )
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:
        raise ValueError(
            f"attention 'flash' needs the flash-attn package ({error}): "
            "install music-feature-store[flash], or choose attention 'sdpa'"
        ) from error


def attend(query: Tensor, key: Tensor, value: Tensor, attention: str, dropout: float) -> Tensor:
    """Scaled dot-product attention of every frame to every frame.

    Args:
        query: (B, T, H, D).
        key: (B, T, H, D).
        value: (B, T, H, D).
        attention: The back end.
        dropout: Probability of dropping an attention weight; 0 in evaluation.

    Returns:
        (B, T, H, D).
    """
    if attention == "flash":
        flash_attn = importlib.import_module("flash_attn")
        flash: Tensor = flash_attn.flash_attn_func(query, key, value, dropout_p=dropout)
        return flash
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if attention == "sdpa":
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2)
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    weights = F.dropout(torch.softmax(scores, dim=-1), dropout)
    return (weights @ value).transpose(1, 2)


class SelfAttention(nn.Module):
    """Self-attention whose queries and keys are projected from the rotated input.

    The published encoder rotates the layer's input before the two projections, not their output, and leaves
    the value unrotated.

    Args:
        embed_dim: Width of input and output.
        num_heads: Attention heads.
        attention: The back end.
    """

    def __init__(self, embed_dim: int, num_heads: int, attention: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.linear_q = nn.Linear(embed_dim, embed_dim)
        self.linear_k = nn.Linear(embed_dim, embed_dim)
        self.linear_v = nn.Linear(embed_dim, embed_dim)
        self.linear_out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(DROPOUT)  # of the attention weights: the back ends read its probability

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Map (B, T, embed_dim) to the same shape; ``rotary`` is the cosine and sine table of T frames."""
        rotated = rotate(self._split_heads(x), *rotary).flatten(2)
        heads = attend(
            self._split_heads(self.linear_q(rotated)),
            self._split_heads(self.linear_k(rotated)),
            self._split_heads(self.linear_v(x)),
            self.attention,
            self.dropout.p if self.training else 0.0,
        )
        out: Tensor = self.linear_out(heads.flatten(2))
        return out

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1)
