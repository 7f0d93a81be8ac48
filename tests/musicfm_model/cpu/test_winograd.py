from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from musicfm_model.cpu import winograd
from musicfm_model.cpu.winograd import WinogradConv, make_algorithm
from tests.musicfm_model.oracles import relative_error


@given(
    stride=st.sampled_from([1, 2]),
    batch=st.integers(1, 2),
    height=st.integers(1, 19),
    width=st.integers(1, 40),
    channels=st.integers(1, 5),
    num_rectified=st.integers(0, 3),
    with_side=st.booleans(),
    seed=st.integers(0, 2**31),
    tiles_per_chunk=st.integers(1, 6),
)
@settings(deadline=None, max_examples=100)
def test_agrees_with_the_direct_convolution_in_double_precision(
    stride: int,
    batch: int,
    height: int,
    width: int,
    channels: int,
    num_rectified: int,
    with_side: bool,
    seed: int,
    tiles_per_chunk: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, channels, 3, 3, generator=generator)
    bias = torch.randn(3, generator=generator)
    x = torch.randn(batch, height, width, 2 * channels, generator=generator)[..., :channels]  # not contiguous
    expected = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), bias.double(), stride, padding=1)
    expected = expected.permute(0, 2, 3, 1).contiguous()
    side = torch.randn(expected.shape, generator=generator) if with_side else None
    expected += 0 if side is None else side.double()
    with patch.dict(winograd.TILES_PER_CHUNK, {stride: tiles_per_chunk}):
        found = WinogradConv(weight, bias, stride)(x, side, num_rectified)
    expected[..., :num_rectified].relu_()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_is_nearly_as_exact_as_the_direct_convolution_at_published_width(stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 512, 3, 3, generator=generator) / 68
    x = torch.randn(1, 8, 20, 512, generator=generator)
    found = WinogradConv(weight, torch.zeros(512), stride)(x)
    expected = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), stride=stride, padding=1).relu()
    assert relative_error(found, expected.permute(0, 2, 3, 1).numpy()) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_batch_neighbours_do_not_matter(stride: int) -> None:
    generator = torch.Generator().manual_seed(1)
    conv = WinogradConv(torch.randn(4, 4, 3, 3, generator=generator), torch.zeros(4), stride)
    x = torch.randn(3, 7, 11, 4, generator=generator)
    together = conv(x)
    for item in range(3):
        torch.testing.assert_close(conv(x[item : item + 1])[0], together[item])


@pytest.mark.parametrize(("stride", "num_multiplications"), [(1, 36), (2, 81)])
def test_a_tile_of_sixteen_outputs_takes_fewer_multiplications_than_144(
    stride: int, num_multiplications: int
) -> None:
    assert len(make_algorithm(stride).input) ** 2 == num_multiplications


@pytest.mark.parametrize("stride", [1, 2])
def test_threads_do_not_matter_and_are_left_as_they_were(stride: int) -> None:
    generator = torch.Generator().manual_seed(2)
    conv = WinogradConv(torch.randn(6, 5, 3, 3, generator=generator), torch.zeros(6), stride)
    x = torch.randn(2, 30, 50, 5, generator=generator)
    num_threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 3, 1):
            torch.set_num_threads(number)
            with torch.inference_mode():
                found.append(conv(x))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
