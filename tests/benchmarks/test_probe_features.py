import numpy as np
import torch

from benchmarks.probe_features import NANO, average, cut_windows, draw_weights, use_log_mel
from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.model import MusicFM25Hz


def test_means_of_rows_have_no_rest() -> None:
    rows = np.arange(14, dtype=np.float32).reshape(7, 2)
    assert average(rows, 3).tolist() == [[2, 3], [8, 9]]
    assert average(rows, 50).tolist() == [[6, 7]]


def test_untrained_weights_have_the_sizes_of_the_trained_and_other_values() -> None:
    trained = load_checkpoint(str(NANO))
    untrained = draw_weights(trained)
    assert untrained.config == trained.config
    wav = torch.randn(1, 24_000)
    first, second = (
        MusicFM25Hz.from_checkpoint(own).get_hidden_states(wav, [0])[0] for own in (trained, untrained)
    )
    assert first.shape == second.shape
    assert not torch.allclose(first, second)


def test_log_mels_stand_beside_their_surroundings() -> None:
    found = use_log_mel()(torch.randn(1, 24_000))
    (matrix,) = found.values()
    assert matrix.shape == (25, 9 * 128)
    np.testing.assert_array_equal(matrix[3].reshape(128, 9)[:, 5], matrix[4].reshape(128, 9)[:, 4])


def test_pieces_are_cut_into_windows_of_30_s_but_for_less_than_a_second() -> None:
    waveform = np.arange(62 * 24_000, dtype=np.float32)
    assert [len(window) / 24_000 for window in cut_windows(waveform)] == [30, 30, 2]
    np.testing.assert_array_equal(np.concatenate(cut_windows(waveform)), waveform)
    assert [len(window) / 24_000 for window in cut_windows(waveform[: 60 * 24_000 + 23_999])] == [30, 30]
