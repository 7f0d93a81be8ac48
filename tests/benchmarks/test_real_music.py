from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("pretty_midi", reason="pretty_midi is not installed: pip install '.[dev]'")

import pretty_midi

from benchmarks.real_music import BLUPI, EXCERPT_S, MULDJORD, SCORES, SECTOID, add_scores, cut_piece, find_score
from pipeline.errors import UsageError
from tests.benchmarks.test_alignment import BEAT_S, draw_onsets, play_clicks
from training.corpus import REVIEW
from training.review import read_review


def write_score(path: Path, late_s: float = 0.0) -> None:
    midi = pretty_midi.PrettyMIDI(initial_tempo=60 / BEAT_S)
    piano = pretty_midi.Instrument(0)
    for onset_s in draw_onsets(0):
        piano.notes.append(pretty_midi.Note(100, 60, onset_s + late_s, onset_s + late_s + 0.1))
    midi.instruments.append(piano)
    midi.write(str(path))


@pytest.mark.parametrize("late_s", [0.0, 0.05])
def test_beats_of_a_piece_are_where_they_sound(late_s: float, tmp_path: Path) -> None:
    write_score(tmp_path / "piece.mid", late_s)
    waveform = play_clicks(draw_onsets(0), 0.1)
    soundfile.write(tmp_path / "piece.flac", waveform, 24_000)
    piece = cut_piece("piece", True, tmp_path / "piece.flac", tmp_path / "piece.mid")
    assert piece.alignment.is_sure
    assert piece.alignment.offset_s == pytest.approx(0.1 - late_s, abs=0.01)
    assert len(piece.waveform) == EXCERPT_S * 24_000
    first_s = (len(waveform) / 24_000 - EXCERPT_S) / 2
    expected_s = np.arange(400) * BEAT_S + 0.1 - first_s
    expected_s = expected_s[(expected_s >= 0) & (expected_s < EXCERPT_S)]
    assert len(piece.beats_s) == len(expected_s)
    np.testing.assert_allclose(piece.beats_s, expected_s, atol=0.01)


def test_scores_are_beside_the_recording_or_in_the_other_package() -> None:
    files = [Path(name) for name in ("a/song.ogg", "a/notes.mid", "b/song.ogg", "m/x.ogg", "s/x.mid", "s/y.mid")]
    assert find_score(files[0], files) == files[1]
    assert find_score(files[3], files) == files[4]
    with pytest.raises(UsageError, match="expected a score to b/song"):
        find_score(files[2], files)


def test_recordings_are_what_the_corpus_was_reviewed_as_and_one_package_was_not_heard() -> None:
    review = add_scores(read_review(REVIEW))
    assert review.packages == [BLUPI, SCORES[BLUPI], MULDJORD, SECTOID]
    assert {package: review.name_split(package) for package in SCORES} == {
        BLUPI: "train",
        MULDJORD: "held_out",
        SECTOID: "train",
    }
    folder = "usr/share/games/fretsonfire/data/songs/muldjord/chaos_god"
    (terms,) = review.choose_paragraphs(MULDJORD)
    assert [name for name in ("song.ogg", "notes.mid", "guitar.ogg") if terms.covers(f"{folder}/{name}")] == [
        "song.ogg",
        "notes.mid",
    ]
