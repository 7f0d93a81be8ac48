"""Linear maps whose weights lie in memory as oneDNN's matrix products read them, for inference on processors.

PyTorch's own products hand plain weights to its BLAS, which lays them out anew at each call and reaches less of
the processor: of a product of 750 frames with 1024 x 4096 weights 0.15 TFLOP/s on two cores of an AMD EPYC 9004,
where oneDNN with packed weights reaches 0.21. The operations are those that ``torch.compile`` calls for frozen
models (``torch/_inductor/fx_passes/mkldnn_fusion.py``). They have no public name, so that weights stay as they are
where they are missing, as on other processors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_PACKED_VALUES = 2**15  # of a weight: a smaller one is multiplied sooner than oneDNN is called
_TYPICAL_ROWS = 750  # frames of a 30 s window; the layout that suits them suits others too


class PackedLinear(nn.Module):
    """A linear map for inference alone: it can neither be trained nor saved.

    Args:
        weight: (out_features, in_features) float32.
        bias: (out_features,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = pack_weight(weight)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return multiply(x, self.weight, self.bias)


class PointwiseConv(nn.Conv1d):
    """A convolution of kernel size 1 that takes channels last, which makes it a linear map.

    Args:
        in_channels: Width of its input.
        out_channels: Width of its output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, in_channels) to (B, T, out_channels)."""
        return F.linear(x, self.weight.squeeze(2))


def pack_linears(module: nn.Module) -> None:
    """Replace the linear maps inside a module by packed ones, where they are large enough to gain from it."""
    for name, child in module.named_children():
        if not isinstance(child, nn.Linear | PointwiseConv):
            pack_linears(child)
        elif child.weight.numel() >= MIN_PACKED_VALUES:
            setattr(module, name, PackedLinear(child.weight.flatten(1), child.bias))


def pack_weight(weight: Tensor, num_rows: int = _TYPICAL_ROWS) -> Tensor:
    """Return a weight as ``multiply`` takes it: packed, or where oneDNN is not at hand as it is.

    Args:
        weight: (out_features, in_features) float32, on the CPU.
        num_rows: Rows that it will typically be multiplied with.
    """
    weight = weight.detach().contiguous()
    if not can_pack():
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
    return packed


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias.

    Args:
        x: (..., in_features) float32.
        weight: (out_features, in_features), from ``pack_weight``.
        bias: (out_features,), or None.
    """
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def can_pack() -> bool:
    """Say whether this PyTorch multiplies by oneDNN."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
