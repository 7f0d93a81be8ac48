"""A GPU that is not there: tensors that claim to be on CUDA go through the real code, and every operator is noted.

PyTorch's FakeTensorMode carries shapes, dtypes, strides and devices, and no values. What it does not know of are
cuDNN's fused convolutions; their shapes are given here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from musicfm_model.checkpoint import Checkpoint
from musicfm_model.inference import optimize
from musicfm_model.model import MusicFM25Hz

CUDA = torch.device("cuda:0")
# They give their input another shape, or nothing but a place to write to.
NO_KERNELS = frozenset(
    {
        "_unsafe_view",
        "alias",
        "as_strided",
        "chunk",
        "detach",
        "device",
        "dropout",
        "empty",
        "empty_like",
        "expand",
        "imag",
        "new_empty",
        "permute",
        "real",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unflatten",
        "unfold",
        "unsqueeze",
        "view",
        "view_as_real",
    }
)


@dataclass
class Log:
    """What ran.

    Args:
        kernels: How often each operator ran on the GPU that does work there.
        between: How often operators ran that have tensors on both sides, or read a value off the GPU.
        largest: Most elements of a tensor on the GPU.
        dtypes: What each operator on the GPU gave.
        shapes: Of what each kind of convolution on the GPU took.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    between: Counter[str] = field(default_factory=Counter)
    largest: int = 0
    dtypes: dict[str, set[torch.dtype]] = field(default_factory=dict)
    shapes: dict[str, set[torch.Size]] = field(default_factory=dict)


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that touches the GPU.

    Args:
        log: Where to.
    """

    def __init__(self, log: Log) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        sources = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        results = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        on_gpu = [x for x in (*sources, *results) if x.device.type == "cuda"]
        on_host = [x for x in (*sources, *results) if x.device.type == "cpu" and x.dim() > 0]
        if not on_gpu:
            return found
        if on_host or name == "_local_scalar_dense":
            self.log.between[name] += 1
        if name not in NO_KERNELS:
            self.log.kernels[name] += 1
            for tensor in results:
                self.log.dtypes.setdefault(name, set()).add(tensor.dtype)
            if "conv" in name:
                self.log.shapes.setdefault(name, set()).add(sources[0].shape)
        self.log.largest = max(self.log.largest, *(x.numel() for x in on_gpu))
        return found


@contextmanager
def fake_gpu() -> Iterator[tuple[FakeTensorMode, Log]]:
    """Pretend that there is a GPU; yields the mode, for ``put_on_fake_gpu``, and what has run since."""
    log = Log()
    with _cudnn(), FakeTensorMode(allow_non_fake_inputs=True) as mode, Observer(log):
        yield mode, log


def build_on_processor(checkpoint: Checkpoint, precision: str) -> MusicFM25Hz:
    """Return the model as ``for_inference`` builds it for CUDA, before it is moved there."""
    model = MusicFM25Hz.from_checkpoint(checkpoint)
    model.precision = precision
    optimize(model, CUDA, "sdpa")
    return model


def put_on_fake_gpu(mode: FakeTensorMode, model: MusicFM25Hz) -> MusicFM25Hz:
    """Move a model of ``build_on_processor`` to a GPU that is not there."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model._apply(lambda tensor: mode.from_tensor(tensor).to(CUDA))  # type: ignore[no-any-return, no-untyped-call]
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@contextmanager
def _cudnn() -> Iterator[None]:
    """Give the shapes of cuDNN's fused convolutions, channels last as their inputs are."""

    def convolve(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
        size = [
            (length + 2 * pad - kernel) // step + 1
            for length, pad, kernel, step in zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
        ]
        assert x.is_contiguous(memory_format=torch.channels_last), "cuDNN would copy its input"
        assert weight.is_contiguous(memory_format=torch.channels_last), "cuDNN would copy its weight"
        return x.new_empty(len(x), len(weight), *size).contiguous(memory_format=torch.channels_last)

    def convolve_relu(x: Tensor, weight: Tensor, bias: Tensor, *place: Any) -> Tensor:
        return convolve(x, weight, place[0], place[1])

    def convolve_add_relu(
        x: Tensor, weight: Tensor, side: Tensor, alpha: float, bias: Tensor, *place: Any
    ) -> Tensor:
        found = convolve(x, weight, place[0], place[1])
        assert found.shape == side.shape
        return found

    library = torch.library.Library("aten", "IMPL", "Meta")  # type: ignore[no-untyped-call]
    implementations: dict[str, Callable[..., Tensor]] = {
        "cudnn_convolution_relu": convolve_relu,
        "cudnn_convolution_add_relu": convolve_add_relu,
    }
    for name, implementation in implementations.items():
        library.impl(name, implementation)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]
