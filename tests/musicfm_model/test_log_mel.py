from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musicfm_model.log_mel import LogMel
from musicfm_model.model import MusicFM25Hz
from tests.musicfm_model.oracles import log_mel_db, relative_error

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LOG_MEL = LogMel()


def make_tone(num_samples: int, generator: torch.Generator) -> Tensor:
    """A decaying tone over faint noise: loud and quiet bands in every frame."""
    time_s = torch.arange(num_samples) / 24_000
    tone = torch.sin(2 * torch.pi * 440 * time_s) * torch.exp(-3 * time_s)
    return tone + 1e-3 * torch.randn(num_samples, generator=generator)


@pytest.mark.parametrize("num_samples", [1025, 4800, 12_345])
def test_agrees_with_numpy(num_samples: int, generator: torch.Generator) -> None:
    wav = make_tone(num_samples, generator)

    found = LOG_MEL(wav[None])[0]

    assert found.shape == (128, num_samples // 240)
    # Bands far below a loud one see its float32 rounding.
    assert np.abs(found.numpy() - log_mel_db(wav.numpy(), 128)).max() < 0.01


@given(st.integers(1025, 20_000))
@settings(deadline=None, max_examples=20)
def test_there_is_a_frame_for_every_whole_hop(num_samples: int) -> None:
    assert LOG_MEL(torch.zeros(1, num_samples)).shape == (1, 128, num_samples // 240)


def test_silence_is_minus_100_db() -> None:
    assert LOG_MEL(torch.zeros(1, 4800)).unique().tolist() == [-100.0]


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (torch.zeros(1, 1024), "at least 1025 samples .* found 1024"),
        (torch.zeros(2, 0), "at least 1025 samples .* found 0"),
        (torch.zeros(4800), r"shape \(batch, samples\), found shape \(4800,\)"),
        (torch.zeros(1, 2, 4800), r"found shape \(1, 2, 4800\)"),
        (torch.zeros(1, 4800, dtype=torch.int16), "found shape .* of torch.int16"),
    ],
)
def test_unusable_input_is_named(wav: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LOG_MEL(wav)


def test_half_input_is_computed_in_float32(generator: torch.Generator) -> None:
    wav = make_tone(4800, generator)[None].half()

    found = LogMel().half()(wav)

    assert found.dtype == torch.float32
    assert torch.equal(found, LOG_MEL(wav.float()))


def test_autocast_does_not_reach_the_spectrogram(generator: torch.Generator) -> None:
    wav = make_tone(4800, generator)[None]

    with torch.autocast("cpu", torch.bfloat16):
        found = LOG_MEL(wav)

    assert torch.equal(found, LOG_MEL(wav))


def test_golden_figures(golden: dict[str, Tensor], golden_model: MusicFM25Hz) -> None:
    mel_db = golden_model.preprocessor_melspec_2048(golden["wav"])

    error_db = float((mel_db - golden["mel_db"]).abs().max())
    print({"mel_db": error_db})
    assert error_db < 2e-4


def test_mel_is_normalized_by_the_published_statistics(
    golden: dict[str, Tensor], golden_model: MusicFM25Hz
) -> None:
    stats = json.loads((GOLDEN / "checkpoint_stats.json").read_text())
    mean, std = stats["melspec_2048_mean"], stats["melspec_2048_std"]

    expected = (golden["mel_db"].double().numpy() - mean) / std

    error = relative_error(golden_model._normalize(golden["mel_db"]), expected)
    print({"normalized": error})
    assert error < 1e-6


def test_a_checkpoints_own_filter_bank_counts_on_a_processor_too(generator: torch.Generator) -> None:
    wav = make_tone(4800, generator)[None]
    mel = LogMel()
    state = mel.state_dict()
    state["mel_stft.mel_scale.fb"] = state["mel_stft.mel_scale.fb"].flip(1)  # the bands from high to low
    mel.load_state_dict(state)
    torch.testing.assert_close(mel(wav), LOG_MEL(wav).flip(1))
