import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.align import align_passage, score_places

Matrix = npt.NDArray[np.float32]


def draw(num_vectors: int, num_dimensions: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((num_vectors, num_dimensions)).astype(np.float32)


def naive_score(short: Matrix, run: Matrix) -> float:
    """Score a run of equal length in double precision, frame by frame."""

    def cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / lengths if lengths > 1e-12 else 0.0

    a, b = short.astype(np.float64), run.astype(np.float64)
    total: float = cosine(a.mean(0), b.mean(0))
    if len(a) > 1:
        total += (len(a) - 1) * float(
            np.mean([cosine(x - a.mean(0), y - b.mean(0)) for x, y in zip(a, b, strict=True)])
        )
    return float(total) / len(a)


@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 1000))
def test_places_score_as_a_naive_loop_says(num_frames: int, extra: int, seed: int) -> None:
    short, long = draw(num_frames, 7, seed), draw(num_frames + extra, 7, seed + 1)
    expected = [naive_score(short, long[place : place + num_frames]) for place in range(extra + 1)]
    assert score_places(short, long) == pytest.approx(np.array(expected), abs=2e-5)


@given(st.integers(1, 8), st.integers(0, 30), st.integers(0, 1000))
def test_a_passage_is_found_where_it_was_cut(num_frames: int, place: int, seed: int) -> None:
    track = draw(40, 16, seed)
    score, first, covered = align_passage(track[place : place + num_frames], track)
    assert (first, covered) == (place, num_frames)
    assert score == pytest.approx(1, abs=1e-5)


def test_a_shift_of_all_frames_does_not_hide_a_passage() -> None:
    track = draw(40, 16)
    score, first, _ = align_passage(track[11:17] + 5 * draw(1, 16, 3), track)
    assert first == 11
    assert score > 0.75  # the mean counts as one frame of six


def test_a_passage_longer_than_the_track_counts_what_is_not_covered_as_nothing() -> None:
    passage = draw(10, 16)
    score, first, covered = align_passage(passage, passage[3:7])
    assert (first, covered) == (0, 4)
    assert score == pytest.approx(0.4, abs=1e-5)


def test_a_passage_that_never_changes_is_compared_by_its_mean() -> None:
    still = np.repeat(draw(1, 16), 4, axis=0)
    score, first, _ = align_passage(still, np.concatenate([draw(6, 16, 2), still]))
    assert first == 6
    assert score == pytest.approx(1, abs=1e-5)


def test_long_tracks_are_scored_in_blocks_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = draw(4, 8), draw(100, 8, 1)
    whole = score_places(short, long)
    monkeypatch.setattr("pipeline.search.align._MAX_BLOCK_VALUES", 7 * short.size)
    assert score_places(short, long) == pytest.approx(whole, abs=1e-6)
