import numpy as np
import pytest

pytest.importorskip("mir_eval", reason="mir_eval is not installed: pip install '.[probe]'")

from benchmarks.alignment import Alignment
from benchmarks.real_beats import FOLDS, NUM_FOLDS, annotate_piece, make_rows, name_folds
from benchmarks.real_music import Piece

LENGTH_S = 24.0


def make_piece(place: int) -> Piece:
    beats_s = tuple(np.arange(0.3, LENGTH_S, 0.4 + 0.02 * place).tolist())
    waveform = np.zeros(1, np.float32)
    return Piece(f"piece {place}", place % 3 > 0, waveform, beats_s, Alignment(0.0, 1.0, 9))


def test_each_piece_is_tested_once_by_a_head_that_neither_met_it_nor_was_stopped_by_it() -> None:
    folds = [name_folds(14, fold) for fold in range(NUM_FOLDS)]
    for place in range(14):
        splits = [fold[place] for fold in folds]
        assert (splits.count("test"), splits.count("valid"), splits.count("train")) == (1, 1, NUM_FOLDS - 2)
    assert all({"train", "valid", "test"} == set(fold) for fold in folds)


def test_figures_are_means_over_all_pieces_and_over_those_not_heard() -> None:
    pieces = [make_piece(place) for place in range(4)]
    readings = [{"beat_f": [0.1, 0.2, 0.3, 0.4]}, {"dbn_beat_f": [1.0, 0.0, 0.0, 0.0]}]
    every, not_heard = make_rows(FOLDS, "nano", pieces, readings)
    assert (every["pieces"], every["num_pieces"], every["beat_f"]["value"]) == ("all", 4, 0.25)
    assert every["dbn_beat_f"]["value"] == 0.25
    assert (not_heard["pieces"], not_heard["num_pieces"], not_heard["beat_f"]["value"]) == ("not heard", 2, 0.25)
    assert not_heard["dbn_beat_f"]["value"] == 0.5


def test_where_bars_begin_nobody_says() -> None:
    assert {place for _, place in annotate_piece(make_piece(0)).beats} == {0}
