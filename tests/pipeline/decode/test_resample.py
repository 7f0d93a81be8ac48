import math

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.decode import resample as resample_module
from pipeline.decode.resample import Resampler


def make_noise(num_samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(-1, 1, num_samples).astype(np.float32)


def resample(waveform: NDArray[np.float32], rate: int, block_samples: int = 1_000) -> NDArray[np.float32]:
    resampler = Resampler(rate)
    for start in range(0, waveform.size, block_samples):
        resampler.add(waveform[start : start + block_samples])
    return resampler.finish()


def resample_in_torchaudio(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    resampled: NDArray[np.float32] = torchaudio.transforms.Resample(rate, 24_000)(
        torch.from_numpy(waveform)
    ).numpy()
    return resampled


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 44_125])
def test_values_are_torchaudios(rate: int) -> None:
    waveform = make_noise(rate + 123)
    np.testing.assert_allclose(resample(waveform, rate), resample_in_torchaudio(waveform, rate), atol=1e-6)


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("piece_samples", [700, 5_000])
def test_pieces_have_no_seams(rate: int, piece_samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample_module, "_PIECE_SAMPLES", piece_samples)
    waveform = make_noise(rate // 4 + 123)
    np.testing.assert_allclose(resample(waveform, rate), resample_in_torchaudio(waveform, rate), atol=1e-6)


@pytest.mark.parametrize("rate", [11_024, 22_048, 44_100, 44_160])
def test_without_a_kernel_the_filter_is_the_same(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample_module, "_MAX_KERNEL_BYTES", 0)
    waveform = make_noise(rate // 2 + 7)
    expected = torchaudio.functional.resample(torch.from_numpy(waveform).double(), rate, 24_000)
    np.testing.assert_allclose(resample(waveform, rate), expected, atol=1e-6)


@pytest.mark.parametrize("rate", [11_127, 44_056, 44_101, 47_999])
def test_odd_rates_keep_a_tone_and_build_no_kernel(rate: int) -> None:
    resample_module._load_bands.cache_clear()
    tone = np.sin(2 * np.pi * 997 * np.arange(rate) / rate).astype(np.float32)
    expected = np.sin(2 * np.pi * 997 * np.arange(24_000) / 24_000)
    np.testing.assert_allclose(resample(tone, rate)[500:-500], expected[500:-500], atol=2e-3)
    assert resample_module._load_bands.cache_info().currsize == 0


@settings(max_examples=60, deadline=None)
@given(num_samples=st.integers(0, 3_000), rate=st.sampled_from([8_000, 22_050, 44_100, 44_101, 48_000, 768_000]))
def test_length_is_the_exact_share_rounded_up(num_samples: int, rate: int) -> None:
    resampled = resample(make_noise(num_samples), rate)
    assert resampled.size == math.ceil(num_samples * 24_000 / rate)
    assert resampled.dtype == np.float32


def test_the_models_own_rate_is_left_alone() -> None:
    waveform = make_noise(100)
    np.testing.assert_array_equal(resample(waveform, 24_000), waveform)


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 9_000),
    rate=st.sampled_from([8_000, 22_050, 24_000, 44_100, 44_101, 96_000]),
    block_samples=st.integers(1, 9_000),
    piece_samples=st.integers(8, 5_000),
)
def test_the_bits_do_not_depend_on_the_blocks(
    num_samples: int, rate: int, block_samples: int, piece_samples: int
) -> None:
    waveform = make_noise(num_samples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample_module, "_PIECE_SAMPLES", piece_samples)
        whole, by_blocks = (resample(waveform, rate, length) for length in (num_samples or 1, block_samples))
    np.testing.assert_array_equal(by_blocks, whole)


def test_what_is_resampled_is_not_kept() -> None:
    resampler = Resampler(44_100)
    for _ in range(100):
        resampler.add(make_noise(65_536))
    assert len(resampler._waiting) < 4 * 400_000


def test_kernels_are_kept_for_the_next_track() -> None:
    resample(make_noise(100), 44_100)
    hits = resample_module._load_bands.cache_info().hits
    resample(make_noise(100), 44_100)
    assert resample_module._load_bands.cache_info().hits == hits + 1
