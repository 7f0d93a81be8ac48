"""The arithmetic that the model computes in, and the parts that stay in float32 whatever it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from musicfm_model.constants import Precision

_DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def compute_dtype(precision: str) -> torch.dtype:
    """Return the dtype of weights and activations for a precision.

    Raises:
        ValueError: The precision is none of ``Precision``.
    """
    if precision not in _DTYPES:
        raise ValueError(f"unknown precision {precision!r}: expected one of {', '.join(get_args(Precision))}")
    return _DTYPES[precision]


# cuBLAS and cuDNN read these switches process-wide, so only one forward pass at a time may hold them.
_SWITCHES = threading.RLock()


@contextmanager
def float32_arithmetic(device: torch.device, *, allow_tf32: bool) -> Iterator[None]:
    """Say how CUDA multiplies float32 matrices inside the block, and put the process's own choice back.

    PyTorch lets convolutions use TensorFloat-32 unless told otherwise, so plain float32 has to be asked for
    as well. Elsewhere than on CUDA there is nothing to choose.

    Args:
        device: Where the block computes.
        allow_tf32: Whether inputs may be rounded to TensorFloat-32 (10 mantissa bits).
    """
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    chosen = "tf32" if allow_tf32 else "ieee"
    with _SWITCHES:
        before = matmul.fp32_precision, conv.fp32_precision
        matmul.fp32_precision = conv.fp32_precision = chosen
        try:
            yield
        finally:
            matmul.fp32_precision, conv.fp32_precision = before


class Float32Module(nn.Module):
    """A module whose tensors follow ``.to(device)`` but keep their dtype under ``.half()`` and the like."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move_only(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor).device)

        super()._apply(move_only, recurse)  # type: ignore[no-untyped-call]
        return self


class Float32BatchNorm1d(Float32Module, nn.BatchNorm1d):
    """Batch norm of (B, C, T) in any dtype whose statistics and weights stay in float32."""


class Float32BatchNorm2d(Float32Module, nn.BatchNorm2d):
    """Batch norm of (B, C, H, W) in any dtype whose statistics and weights stay in float32."""
