import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pipeline.service.similarity import MAX_BINS, compare_with_itself


def make_frames(num_frames: int, embed_dim: int = 6) -> np.ndarray:
    return np.random.default_rng(num_frames).normal(size=(num_frames, embed_dim)).astype(np.float32)


@pytest.mark.parametrize("num_frames", [1, 2, 255, 256])
def test_a_short_track_is_compared_frame_by_frame(num_frames: int) -> None:
    frames = make_frames(num_frames)
    matrix = compare_with_itself(frames, 8.0)
    np.testing.assert_allclose(matrix.values, 1 - cdist(frames, frames, "cosine"), atol=1e-6)
    assert (matrix.bin_s, matrix.duration_s) == (0.125, num_frames / 8)


@pytest.mark.parametrize("num_frames", [257, 512, 1000, 57_600])
def test_a_long_track_has_at_most_256_bins_that_cover_it(num_frames: int) -> None:
    matrix = compare_with_itself(make_frames(num_frames), 8.0)
    num_bins = len(matrix.values)
    assert num_bins <= MAX_BINS
    assert (num_bins - 1) * matrix.bin_s < matrix.duration_s <= num_bins * matrix.bin_s
    np.testing.assert_allclose(np.diag(matrix.values), 1, atol=1e-6)
    np.testing.assert_array_equal(matrix.values, matrix.values.T)


def test_a_bin_is_the_mean_direction_of_its_frames() -> None:
    frames = make_frames(1000)
    directions = frames / np.linalg.norm(frames, axis=1, keepdims=True)
    bins = np.stack([directions[start : start + 4].mean(axis=0) for start in range(0, 1000, 4)])
    np.testing.assert_allclose(compare_with_itself(frames, 8.0).values, 1 - cdist(bins, bins, "cosine"), atol=1e-5)


def test_a_part_that_comes_back_is_bright_where_it_does() -> None:
    verse, chorus = make_frames(40), make_frames(41)
    matrix = compare_with_itself(np.concatenate([verse, chorus, verse]), 8.0).values
    assert np.all(np.diag(matrix[:40, 81:]) > 0.999)
    assert np.diag(matrix[:40, 40:80]).max() < 0.999


def test_silence_is_like_nothing() -> None:
    matrix = compare_with_itself(np.vstack([np.zeros((1, 6), np.float32), make_frames(2)]), 8.0).values
    assert np.all(matrix[0] == 0)
    assert np.isfinite(matrix).all()


def test_bytes_give_the_cosines_back_to_half_a_step() -> None:
    matrix = compare_with_itself(make_frames(100), 8.0)
    values, low, high = matrix.as_bytes()
    restored = low + np.frombuffer(values, np.uint8).reshape(100, 100) / 255 * (high - low)
    np.testing.assert_allclose(restored, matrix.values, atol=(high - low) / 255 / 2 + 1e-6)


def test_bytes_of_one_value_are_finite() -> None:
    values, low, high = compare_with_itself(np.ones((3, 4), np.float32), 8.0).as_bytes()
    assert values == bytes(9)
    assert low == pytest.approx(high)
