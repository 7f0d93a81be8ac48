from __future__ import annotations

import pytest
import torch
from torch import nn

from musicfm_model.conformer import ConvModule
from musicfm_model.folded_conformer import FoldedConvModule
from tests.musicfm_model.oracles import relative_error


def make_module(generator: torch.Generator) -> ConvModule:
    """A module whose norm has statistics that bfloat16 rounds by much."""
    module = ConvModule(16, 7).eval()
    norm = module.batch_norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(100.0, 1.0, generator=generator)
    norm.running_var.uniform_(0.3, 3.0, generator=generator)
    nn.init.uniform_(norm.weight, -1.5, 1.5, generator)
    nn.init.normal_(norm.bias, 30.0, generator=generator)
    return module


@torch.inference_mode()
@pytest.mark.parametrize("few_shapes", [False, True])
@pytest.mark.parametrize("num_frames", [1, 3, 50, 149, 150, 151])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_is_the_same_function(
    batch_size: int, num_frames: int, few_shapes: bool, generator: torch.Generator
) -> None:
    module = make_module(generator)
    x = torch.randn(batch_size, num_frames, 16, generator=generator)
    assert relative_error(FoldedConvModule(module, torch.float32, few_shapes)(x), module(x)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_a_norm_are_not_rounded_to_half_types(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    module = make_module(generator)
    x = torch.randn(2, 50, 16, generator=generator)
    expected = module(x)
    module.batch_norm.to(dtype)
    assert module.batch_norm.running_mean is not None
    assert module.batch_norm.running_var is not None
    assert module.batch_norm.running_mean.dtype == torch.float32
    assert relative_error(module(x), expected) == 0.0
    folded = FoldedConvModule(module, dtype)
    mean = module.batch_norm.running_mean.double()
    scale = module.batch_norm.weight.double() / (module.batch_norm.running_var + module.batch_norm.eps).sqrt()
    shift = module.batch_norm.bias.double() - mean * scale
    assert torch.equal(folded.depthwise_bias, shift.to(dtype))
