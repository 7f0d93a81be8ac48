"""The Conformer for inference: its batch norms folded into their depthwise convolutions, in float32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicfm_model.conformer import Conformer, ConvModule
from musicfm_model.gpu.shapes import pad_frames


class FoldedConvModule(nn.Module):
    """``ConvModule`` in evaluation: the same function, one operation less; it can neither be trained nor saved.

    Args:
        module: The module, with its norm in float32.
        dtype: What it is to compute in; the norm is folded in float64, and rounded once.
        few_shapes: Whether the convolution is to see few shapes, as cuDNN wants it.
    """

    depthwise_weight: Tensor
    depthwise_bias: Tensor

    def __init__(self, module: ConvModule, dtype: torch.dtype, few_shapes: bool = False) -> None:
        super().__init__()
        self.few_shapes = few_shapes
        self.layer_norm = module.layer_norm
        self.pointwise_conv1 = module.pointwise_conv1
        self.pointwise_conv2 = module.pointwise_conv2
        norm = module.batch_norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = module.depthwise_conv.weight.double() * scale[:, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
        # (C, 1, 1, K): frames along the last axis, which is what cuDNN has kernels for that leave channels last;
        # along the one before, PyTorch's own take six times as long on an H100. On a processor it is all one.
        self.register_buffer("depthwise_weight", weight.detach().to(dtype).unsqueeze(2))
        self.register_buffer("depthwise_bias", bias.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, embed_dim) to the same shape."""
        batch_size, num_frames = x.shape[:2]
        x = F.glu(self.pointwise_conv1(self.layer_norm(x)), dim=2)
        if self.few_shapes:
            x = pad_frames(x)
        weight = self.depthwise_weight
        padding = (0, weight.shape[3] // 2)
        x = x.transpose(1, 2).unsqueeze(2)
        x = F.conv2d(x, weight, self.depthwise_bias, padding=padding, groups=len(weight))
        x = x.squeeze(2).transpose(1, 2)[:batch_size, :num_frames]
        out: Tensor = self.pointwise_conv2(F.silu(x))
        return out


def fold_conformer(conformer: Conformer, dtype: torch.dtype, few_shapes: bool = False) -> None:
    """Replace the convolution modules of a Conformer by folded ones.

    Args:
        conformer: In evaluation mode, its weights in float32.
        dtype: What it is to compute in.
        few_shapes: As ``FoldedConvModule`` takes it.
    """
    for layer in conformer.layers:
        assert isinstance(layer.conv_module, ConvModule)
        layer.conv_module = FoldedConvModule(layer.conv_module, dtype, few_shapes)
