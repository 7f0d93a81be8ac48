from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from musicfm_model import winograd
from musicfm_model.winograd import WinogradConv
from tests.musicfm_model.oracles import relative_error


@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 9),
    width=st.integers(1, 40),
    channels=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    tiles_per_chunk=st.integers(1, 6),
)
@settings(deadline=None, max_examples=60)
def test_agrees_with_the_direct_convolution_in_double_precision(
    batch: int, height: int, width: int, channels: int, seed: int, tiles_per_chunk: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, channels, 3, 3, generator=generator)
    bias = torch.randn(3, generator=generator)
    x = torch.randn(batch, height, width, 2 * channels, generator=generator)[..., :channels]  # not contiguous
    side = torch.randn(batch, height, width, 3, generator=generator)
    original, winograd.TILES_PER_CHUNK = winograd.TILES_PER_CHUNK, tiles_per_chunk
    try:
        found = WinogradConv(weight, bias)(x, side)
    finally:
        winograd.TILES_PER_CHUNK = original
    rectified = x.double().relu().permute(0, 3, 1, 2)
    convolved = F.conv2d(rectified, weight.double(), bias.double(), padding=1).permute(0, 2, 3, 1)
    expected = (convolved + side.double()).relu()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_is_nearly_as_exact_as_the_direct_convolution_at_published_width() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 512, 3, 3, generator=generator) / 68
    x = torch.randn(1, 8, 20, 512, generator=generator)
    side = torch.zeros(1, 8, 20, 512)
    found = WinogradConv(weight, torch.zeros(512))(x, side)
    expected = F.conv2d(x.double().relu().permute(0, 3, 1, 2), weight.double(), padding=1).relu()
    assert relative_error(found, expected.permute(0, 2, 3, 1).numpy()) < 1e-5


def test_batch_neighbours_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    conv = WinogradConv(torch.randn(4, 4, 3, 3, generator=generator), torch.zeros(4))
    x, side = torch.randn(3, 7, 11, 4, generator=generator), torch.randn(3, 7, 11, 4, generator=generator)
    together = conv(x, side)
    for item in range(3):
        torch.testing.assert_close(conv(x[item : item + 1], side[item : item + 1])[0], together[item])
