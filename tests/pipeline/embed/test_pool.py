import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.config import RESOLUTIONS
from pipeline.embed.pool import FRAMES_PER_CHUNK, count_bins, count_repeats, pool_frames, pool_in_chunks

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FRAME_RESOLUTIONS = [resolution for resolution in RESOLUTIONS.values() if resolution.frame_rate_hz]


def pool_naively(frames: np.ndarray, frame_rate_hz: float) -> np.ndarray:
    """The specification's sentence as a loop over bins, in exact arithmetic."""
    num_frames, ratio = len(frames), Fraction(25) / Fraction(frame_rate_hz)
    bins = []
    for i in range(math.ceil(num_frames / ratio)):
        start, stop = math.floor(i * ratio), min(math.ceil((i + 1) * ratio), num_frames)
        bins.append(frames[start:stop].astype(np.float64).mean(axis=0))
    return np.array(bins)


@settings(deadline=None)
@given(num_frames=st.integers(1, 400), resolution=st.sampled_from(FRAME_RESOLUTIONS), seed=st.integers(0, 9))
def test_equals_the_naive_loop_at_every_length(num_frames: int, resolution, seed: int) -> None:  # type: ignore[no-untyped-def]
    frames = torch.randn(num_frames, 3, generator=torch.Generator().manual_seed(seed))
    pooled = pool_frames(frames, resolution)
    expected = pool_naively(frames.numpy(), resolution.frame_rate_hz)
    assert pooled.shape == expected.shape
    assert count_bins(num_frames, resolution.frame_rate_hz) == len(expected)
    np.testing.assert_allclose(pooled.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("resolution", FRAME_RESOLUTIONS, ids=lambda resolution: resolution.name)
@pytest.mark.parametrize("num_frames", [50, 150, 750, 1000])
def test_equals_adaptive_average_pooling_where_the_grid_is_whole(num_frames: int, resolution) -> None:  # type: ignore[no-untyped-def]
    frames = torch.randn(num_frames, 5, generator=torch.Generator().manual_seed(1))
    num_bins = num_frames * Fraction(resolution.frame_rate_hz) / 25
    assert num_bins.denominator == 1
    expected = torch.nn.functional.adaptive_avg_pool1d(frames.T[None], int(num_bins))[0].T
    torch.testing.assert_close(pool_frames(frames, resolution), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "key"), [("50hz", "200"), ("16hz", "64"), ("8hz", "32"), ("0.5hz", "2")])
def test_equals_the_golden_figures(name: str, key: str) -> None:
    expected = load_file(GOLDEN / "expected.safetensors")
    for item in range(2):
        pooled = pool_frames(expected["hidden_2"][item], RESOLUTIONS[name])
        torch.testing.assert_close(pooled, expected[f"adaptive_avg_{key}"][item], rtol=1e-5, atol=1e-6)


def test_global_is_the_mean_over_time() -> None:
    frames = torch.randn(727, 4)
    expected = frames.numpy().astype(np.float64).mean(axis=0, keepdims=True)
    np.testing.assert_allclose(pool_frames(frames, RESOLUTIONS["global"]).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", RESOLUTIONS)
def test_half_precision_frames_are_averaged_in_float32(name: str) -> None:
    frames = torch.full((50, 2), 2049.0).half()  # 2048 in half precision; sums of it overflow there
    pooled = pool_frames(frames * 30, RESOLUTIONS[name])
    assert pooled.dtype == torch.float32
    assert torch.all(pooled == 61_440.0)


@pytest.mark.parametrize("resolution", FRAME_RESOLUTIONS, ids=lambda resolution: resolution.name)
def test_chunks_join_without_a_seam(resolution) -> None:  # type: ignore[no-untyped-def]
    frames = torch.arange(9000.0)[:, None]
    chunks = list(pool_in_chunks(frames, resolution))
    assert len(chunks) > 1
    assert max(map(len, chunks)) <= FRAMES_PER_CHUNK
    expected = pool_naively(frames.numpy(), resolution.frame_rate_hz)
    np.testing.assert_allclose(torch.cat(chunks).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "rate_hz", "expected"), [("50hz", 25.0, 2), ("50hz", 50.0, 1), ("16hz", 25.0, 1)]
)
def test_bins_that_are_single_frames_repeat_them(name: str, rate_hz: float, expected: int) -> None:
    assert count_repeats(RESOLUTIONS[name], rate_hz) == expected
    assert count_repeats(RESOLUTIONS["global"], rate_hz) == count_repeats(RESOLUTIONS["25hz"], rate_hz) == 1
    frames = torch.arange(12.0).reshape(6, 2)
    repeated = frames.repeat_interleave(2, dim=0)
    assert torch.equal(pool_frames(frames, RESOLUTIONS["50hz"]), repeated)
