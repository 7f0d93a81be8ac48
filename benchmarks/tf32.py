"""TensorFloat-32 on a processor: a GPU's tensor cores, emulated by rounding what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

MANTISSA_BITS = 10  # of TensorFloat-32; float32 has 23
_ROUNDED: tuple[Callable[..., Any], ...] = (F.linear, F.conv1d, F.conv2d, F.scaled_dot_product_attention)


class EmulatedTF32(TorchFunctionMode):
    """Rounds the operands of matrix products and convolutions to 10 mantissa bits, and sums in float32.

    Biases are added in float32, as cuBLAS and cuDNN do. Inside attention the weights of the second product are not
    rounded, for they never leave the kernel. The log-mel's own product stays float32, as it does on a GPU.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function on rounded operands, where it is one that tensor cores compute."""
        if func in _ROUNDED:
            num_operands = 3 if func is F.scaled_dot_product_attention else 2
            args = (*(round_mantissa(each) for each in args[:num_operands]), *args[num_operands:])
        return func(*args, **(kwargs or {}))


def round_mantissa(values: Tensor) -> Tensor:
    """Round float32 values to 10 mantissa bits, to the nearest, halves away from zero (PTX's ``cvt.rna.tf32``)."""
    dropped = 23 - MANTISSA_BITS
    bits = values.contiguous().view(torch.int32)
    rounded = (bits + (1 << (dropped - 1))) & ~((1 << dropped) - 1)
    return rounded.view(torch.float32)
