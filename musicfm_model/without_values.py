"""A model's tensors without values, for a checkpoint that is about to give them theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# The layers of PyTorch call the first, which would call the second where no mode looks.
_DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_)


@contextmanager
def without_values() -> Iterator[None]:
    """Make tensors without values inside the block.

    To draw values for them PyTorch would load nine hundred modules, which takes every process a second or two.
    """
    with torch.device("meta"), _DrawsNothing():
        yield


class _DrawsNothing(TorchFunctionMode):
    """Leaves tensors without values as they are where they are to be filled by chance."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
