"""The convolutions for CUDA, on a processor: the same code but for cuDNN's fused kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from musicfm_model.frontend import ConvFrontend
from musicfm_model.gpu.float32_conv import PatchConv, TileConv
from musicfm_model.gpu.fused_frontend import FusedFrontend
from musicfm_model.model import MusicFM25Hz
from tests.musicfm_model.oracles import relative_error
from tests.musicfm_model.test_folded_frontend import make_frontend


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 37, 59, 60, 61, 119, 121])
@torch.inference_mode()
def test_is_the_same_function(exact: bool, num_frames: int, generator: torch.Generator) -> None:
    frontend = make_frontend(8, generator)
    mel = torch.randn(2, 16, num_frames, generator=generator)
    torch.testing.assert_close(FusedFrontend(frontend, exact)(mel), frontend(mel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exact", [False, True])
@torch.inference_mode()
def test_golden_figures(golden: dict[str, Tensor], golden_model: MusicFM25Hz, exact: bool) -> None:
    assert isinstance(golden_model.conv, ConvFrontend)
    fused = FusedFrontend(golden_model.conv, exact)
    error = relative_error(fused(golden_model._normalize(golden["mel_db"])), golden["subsampled"])
    print({"subsampled": error, "exact": exact})
    assert error < 1e-5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (4, 4), (9, 13)])
@torch.inference_mode()
def test_convolutions_in_float32_agree_with_float64(height: int, width: int, generator: torch.Generator) -> None:
    x = torch.randn(2, 5, height, width, generator=generator).contiguous(memory_format=torch.channels_last)
    weight, other = torch.randn(2, 6, 5, 3, 3, generator=generator)
    bias, other_bias = torch.randn(2, 6, generator=generator)
    main, side = PatchConv((weight, other), (bias, other_bias))(x)
    for found, expected in (
        (main, F.conv2d(x.double(), weight.double(), bias.double(), stride=2, padding=1).relu()),
        (side, F.conv2d(x.double(), other.double(), other_bias.double(), stride=2, padding=1)),
    ):
        assert relative_error(found, expected) < 1e-6
    beside = torch.randn(2, 6, height, width, generator=generator)
    expected = (F.conv2d(x.double(), weight.double(), bias.double(), padding=1) + beside.double()).relu()
    assert relative_error(TileConv(weight, bias)(x, beside), expected) < 3e-6
