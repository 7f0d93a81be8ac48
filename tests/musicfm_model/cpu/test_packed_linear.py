from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from musicfm_model.checkpoint import Checkpoint
from musicfm_model.cpu import packed_linear
from musicfm_model.cpu.packed_linear import (
    PackedLinear,
    PointwiseConv,
    can_pack,
    multiply,
    pack_linears,
    pack_weight,
)
from musicfm_model.model import MusicFM25Hz
from tests.musicfm_model.oracles import relative_error

needs_packing = pytest.mark.skipif(not can_pack(), reason="this PyTorch does not multiply by oneDNN")


@given(
    batch=st.integers(1, 3),
    num_rows=st.integers(1, 70),
    in_features=st.integers(1, 70),
    out_features=st.integers(1, 70),
    packed_for=st.integers(1, 1000),
    has_bias=st.booleans(),
    packs=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=100)
def test_agrees_with_the_product_in_double_precision(
    batch: int,
    num_rows: int,
    in_features: int,
    out_features: int,
    packed_for: int,
    has_bias: bool,
    packs: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator)
    bias = torch.randn(out_features, generator=generator) if has_bias else None
    x = torch.randn(batch, in_features, num_rows, generator=generator).transpose(1, 2)  # not contiguous
    with patch.object(packed_linear, "can_pack", lambda: packs and can_pack()):
        found = multiply(x, pack_weight(weight, packed_for), bias)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_is_as_exact_as_a_plain_product_at_published_width(generator: torch.Generator) -> None:
    x = torch.randn(1, 750, 1024, generator=generator)
    weight = torch.randn(4096, 1024, generator=generator)
    expected = (x[0].double() @ weight.double().T).numpy()
    assert relative_error(multiply(x, pack_weight(weight))[0], expected) < 1e-6


def test_a_pointwise_convolution_is_the_library_s_with_channels_last(generator: torch.Generator) -> None:
    conv = PointwiseConv(6, 10)
    x = torch.randn(2, 7, 6, generator=generator)
    assert conv.state_dict().keys() == {"weight"}
    assert conv.weight.shape == (10, 6, 1)
    torch.testing.assert_close(conv(x), F.conv1d(x.transpose(1, 2), conv.weight).transpose(1, 2))


def test_large_maps_are_packed_wherever_they_lie_and_small_ones_are_left() -> None:
    model = nn.ModuleDict(
        {
            "large": nn.Linear(256, 128),
            "small": nn.Linear(256, 127),
            "inside": nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 256)),
            "pointwise": PointwiseConv(128, 256),
            "convolution": nn.Conv1d(128, 256, 1),
        }
    )
    kinds = {name: type(part) for name, part in model.named_modules()}
    pack_linears(model)
    packed = {name for name, part in model.named_modules() if isinstance(part, PackedLinear)}
    assert packed == {"large", "inside.1", "pointwise"}
    assert all(type(part) is kinds[name] for name, part in model.named_modules() if name not in packed)


@needs_packing
@torch.inference_mode()
def test_a_model_for_inference_with_all_maps_packed_holds_the_golden_figures(
    golden_checkpoint: Checkpoint, golden: dict[str, Tensor]
) -> None:
    with patch.object(packed_linear, "MIN_PACKED_VALUES", 1):
        model = MusicFM25Hz.for_inference(golden_checkpoint)
    left = [*model.conv.modules(), *model.conformer.modules()]
    assert not any(isinstance(part, nn.Linear | PointwiseConv) for part in left)
    assert sum(isinstance(part, PackedLinear) for part in left) == 1 + 10 * model.num_layers
    states = model.get_hidden_states(golden["wav"], range(model.num_layers + 1))
    for layer, found in states.items():
        assert relative_error(found, golden[f"hidden_{layer}"]) < 1e-5


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precisions_are_not_packed(golden_checkpoint: Checkpoint, precision: str) -> None:
    with patch.object(packed_linear, "MIN_PACKED_VALUES", 1):
        model = MusicFM25Hz.for_inference(golden_checkpoint, precision=precision)
    assert not any(isinstance(part, PackedLinear) for part in model.modules())
