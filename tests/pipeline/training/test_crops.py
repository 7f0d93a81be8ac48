from pathlib import Path

import numpy as np
import pytest
import torch

from musicfm_model.log_mel import LogMel
from pipeline.training.crops import make_batch, read_crops, shift_pitch
from pipeline.training.draws import draw_batch
from pipeline.training.masking import make_noise_bank
from pipeline.training.recipe import Augmentation, Recipe
from tests.pipeline.training.corpora import RECIPE, open_train, write_corpus


def play(pitch_hz: float) -> torch.Tensor:
    """Return log-mels of a tone with overtones, (1, 100, 128) in dB."""
    time_s = torch.arange(24_000) / 24_000
    tone = sum(torch.sin(2 * torch.pi * number * pitch_hz * time_s) / number for number in range(1, 4))
    noise = torch.randn(24_000, generator=torch.Generator().manual_seed(0))
    log_mel: torch.Tensor = LogMel()((0.1 * torch.as_tensor(tone) + 1e-3 * noise)[None])
    return log_mel.transpose(1, 2)


@pytest.mark.parametrize("semitones", [-2.0, 1.0, 2.0])
def test_a_shifted_tone_peaks_where_a_played_one_does(semitones: float) -> None:
    shifted = shift_pitch(play(1500.0), torch.tensor([semitones]))
    played = play(1500.0 * 2 ** (semitones / 12))
    peaks = [int(mel[0, 50].argmax()) for mel in (shifted, played)]
    assert abs(peaks[0] - peaks[1]) <= 1
    assert peaks[0] != int(play(1500.0)[0, 50].argmax())


def test_crops_are_the_corpus_rows(tmp_path: Path) -> None:
    corpus = open_train(write_corpus(tmp_path))
    rows = torch.tensor([5, 130])
    crops = read_crops(corpus.log_mels, rows, 80, torch.ones(2))
    assert torch.equal(crops[1], corpus.log_mels[130:210].float())
    # Half a row on, and twice as fast: the mean of neighbours, and every second row.
    fast = read_crops(corpus.log_mels, rows, 80, torch.tensor([2.0, 1.5]))
    assert torch.equal(fast[0], corpus.log_mels[5:165:2].float())
    between = (corpus.log_mels[131].float() + corpus.log_mels[132].float()) / 2
    np.testing.assert_allclose(fast[1, 1], between, rtol=1e-5)


def test_a_batch_without_moves_is_clean_beside_masked(tmp_path: Path) -> None:
    corpus = open_train(write_corpus(tmp_path))
    recipe = Recipe(crop_lengths_s=(2.0,), masked_s=8.0, contrast_s=8.0, augmentation=Augmentation(prob=0.0))
    draws = draw_batch(corpus, recipe, 0, 0)
    batch = make_batch(corpus, draws, make_noise_bank(LogMel()))
    assert batch.clean.shape == batch.masked.shape == (4, 200, 128)
    first = int(draws.first_rows[0])
    rows = corpus.log_mels[first : first + 200].float()
    assert torch.allclose(batch.clean[0], rows, atol=0.01)  # pitch moved by nothing goes to mels and back
    changed = (batch.clean != batch.masked).any(dim=2)
    assert changed[draws.is_masked.repeat_interleave(40, dim=1)].all()
    assert len(batch.masked_tokens) == 10 * int(draws.is_masked.sum())


def test_moved_crops_stay_finite_and_above_silence(tmp_path: Path) -> None:
    corpus = open_train(write_corpus(tmp_path))
    bank = make_noise_bank(LogMel())
    for step in range(6):
        batch = make_batch(corpus, draw_batch(corpus, RECIPE, step, 0), bank)
        for crops in (batch.clean, batch.masked, batch.contrast):
            assert torch.isfinite(crops).all()
            assert float(crops.min()) >= -100.001
