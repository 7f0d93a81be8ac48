"""A model's tensors without values, for a checkpoint that is about to give them theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_)  # what the model's layers are drawn by


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
        if func in _DRAWS and kwargs["tensor"].is_meta:
            return kwargs["tensor"]
        return func(*args, **kwargs)
