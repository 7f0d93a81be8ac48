"""The Conformer encoder (arXiv 2005.08100) as the published checkpoints use it: pre-norm, rotary, swish."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicfm_model.attention import SelfAttention
from musicfm_model.config import DROPOUT, ModelConfig
from musicfm_model.cpu.packed_linear import PointwiseConv
from musicfm_model.precision import Float32BatchNorm1d
from musicfm_model.rotary import RotaryEmbedding


class FeedForward(nn.Module):
    """Two linear maps with a swish between them."""

    def __init__(self, embed_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(embed_dim, ffn_dim)
        self.intermediate_dropout = nn.Dropout(DROPOUT)
        self.output_dense = nn.Linear(ffn_dim, embed_dim)
        self.output_dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, embed_dim) to the same shape."""
        x = self.intermediate_dropout(F.silu(self.intermediate_dense(x)))
        out: Tensor = self.output_dropout(self.output_dense(x))
        return out


class ConvModule(nn.Module):
    """Gated pointwise convolution, depthwise convolution, batch norm, swish, pointwise convolution."""

    def __init__(self, embed_dim: int, depthwise_kernel_size: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.pointwise_conv1 = PointwiseConv(embed_dim, 2 * embed_dim)
        self.depthwise_conv = nn.Conv1d(
            embed_dim,
            embed_dim,
            depthwise_kernel_size,
            padding=depthwise_kernel_size // 2,
            groups=embed_dim,
            bias=False,
        )
        self.batch_norm = Float32BatchNorm1d(embed_dim)
        self.pointwise_conv2 = PointwiseConv(embed_dim, embed_dim)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, embed_dim) to the same shape."""
        x = F.glu(self.pointwise_conv1(self.layer_norm(x)), dim=2)
        # Its own weights in a call that leaves the channels last: on a processor several times as fast.
        depthwise = self.depthwise_conv
        padding = (depthwise.kernel_size[0] // 2, 0)
        x = x.transpose(1, 2).unsqueeze(3)
        x = F.conv2d(x, depthwise.weight.unsqueeze(3), padding=padding, groups=depthwise.groups).squeeze(3)
        x = F.silu(self.batch_norm(x)).transpose(1, 2)
        out: Tensor = self.dropout(self.pointwise_conv2(x))
        return out


class ConformerLayer(nn.Module):
    """Half a feed-forward step, attention, convolution, the other half step, layer norm."""

    def __init__(self, config: ModelConfig, attention: str) -> None:
        super().__init__()
        self.ffn1_layer_norm = nn.LayerNorm(config.embed_dim)
        self.ffn1 = FeedForward(config.embed_dim, config.ffn_dim)
        self.self_attn_layer_norm = nn.LayerNorm(config.embed_dim)
        self.self_attn = SelfAttention(config.embed_dim, config.num_heads, attention)
        self.self_attn_dropout = nn.Dropout(DROPOUT)
        self.conv_module = ConvModule(config.embed_dim, config.depthwise_kernel_size)
        self.ffn2_layer_norm = nn.LayerNorm(config.embed_dim)
        self.ffn2 = FeedForward(config.embed_dim, config.ffn_dim)
        self.final_layer_norm = nn.LayerNorm(config.embed_dim)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Map (B, T, embed_dim) to the same shape; ``rotary`` is the cosine and sine table of T frames."""
        x = torch.add(x, self.ffn1(self.ffn1_layer_norm(x)), alpha=0.5)
        x = x + self.self_attn_dropout(self.self_attn(self.self_attn_layer_norm(x), rotary))
        x = x + self.conv_module(x)
        x = torch.add(x, self.ffn2(self.ffn2_layer_norm(x)), alpha=0.5)
        out: Tensor = self.final_layer_norm(x)
        return out


class Conformer(nn.Module):
    """A stack of Conformer layers that stops after the last one asked for.

    Hidden state k is the input of layer k: 0 is the front end's output, and the last one, after all layers,
    is the only one that has gone through the encoder's final layer norm. Attribute names are those of the
    published checkpoints.

    Args:
        config: Sizes.
        attention: Back end, see ``check_attention``.
    """

    def __init__(self, config: ModelConfig, attention: str) -> None:
        super().__init__()
        self.embed_positions = RotaryEmbedding(config.head_dim)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.ModuleList(ConformerLayer(config, attention) for _ in range(config.num_layers))
        self.layer_norm = nn.LayerNorm(config.embed_dim)

    def forward(self, x: Tensor, wanted: Collection[int]) -> dict[int, Tensor]:
        """Return hidden states.

        Args:
            x: (B, T, embed_dim).
            wanted: Indices of hidden states, from 0 to the number of layers; at least one.

        Returns:
            (B, T, embed_dim) for each index; only ``max(wanted)`` layers are computed.
        """
        x = self.dropout(x)
        rotary = self.embed_positions(x.shape[1])  # in float32, whatever the precision
        last = max(wanted)
        hidden_states = {}
        for index in range(last):
            if index in wanted:
                hidden_states[index] = x
            x = self.layers[index](x, rotary)
        hidden_states[last] = self.layer_norm(x) if last == len(self.layers) else x
        return hidden_states
