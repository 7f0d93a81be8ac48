from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.index.vector_index import VectorIndex
from pipeline.search.combine import search_tracks
from pipeline.search.searcher import Searcher
from tests.indexes import draw_tracks, make_index


@pytest.fixture
def index(tmp_path: Path) -> VectorIndex:
    return make_index(tmp_path, draw_tracks(60))


def name_hits(index: VectorIndex, *arguments: object) -> list[str]:
    return [hit.track_id for hit in search_tracks(Searcher(index), *arguments)]  # type: ignore[arg-type]


def test_several_tracks_are_asked_for_by_the_mean_of_their_directions(index: VectorIndex) -> None:
    vectors = np.concatenate(draw_tracks(60)).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    liked, disliked = [3, 17, 40], [8, 21]
    query = unit[liked].mean(axis=0) - 0.2 * unit[disliked].mean(axis=0)
    cosines = unit @ query / np.linalg.norm(query)
    expected = [number for number in np.argsort(-cosines) if number not in liked + disliked]
    names, others = ([f"t{number:04d}" for number in numbers] for numbers in (liked, disliked))
    hits = search_tracks(Searcher(index), names, others, k=55)
    assert [hit.track_id for hit in hits] == [f"t{number:04d}" for number in expected]
    assert [hit.score for hit in hits] == pytest.approx(cosines[expected], abs=1e-3)
    assert not any(hit.near_duplicate for hit in search_tracks(Searcher(index, -1.0), names, others))


def test_a_track_named_twice_counts_once(index: VectorIndex) -> None:
    assert name_hits(index, ["t0003", "t0017", "t0003"]) == name_hits(index, ["t0017", "t0003"])


def test_one_track_alone_finds_what_it_finds_by_itself(index: VectorIndex) -> None:
    alone = [hit.track_id for hit in Searcher(index).search_track("t0003")]
    assert name_hits(index, ["t0003"]) == alone


def test_filters_hold_for_several_tracks(index: VectorIndex) -> None:
    assert set(name_hits(index, ["t0003", "t0005"], [], 9, "track_id < 't0007'")) == {
        "t0000",
        "t0001",
        "t0002",
    } | {
        "t0004",
        "t0006",
    }
    assert name_hits(index, ["t0003", "t0005"], [], 9, None, "artist") == []


@pytest.mark.parametrize(
    ("tracks", "minus", "message"),
    [
        (["t0003", "nobody"], [], "no track 'nobody'"),
        (["t0003"], ["nobody"], "no track 'nobody'"),
        (["t0003", "t0004"], ["t0004"], "'t0004' in both lists"),
    ],
)
def test_a_mistake_is_told(index: VectorIndex, tracks: list[str], minus: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search_tracks(Searcher(index), tracks, minus)


def test_moments_are_not_combined(tmp_path: Path) -> None:
    moments = make_index(tmp_path, draw_tracks(5, max_vectors=9), resolution="0.5hz")
    with pytest.raises(UsageError, match="--resolution global"):
        search_tracks(Searcher(moments), ["t0001", "t0002"])


def test_tracks_that_cancel_out_are_refused(tmp_path: Path) -> None:
    vector = np.eye(4, dtype=np.float32)[:1]
    index = make_index(tmp_path, [vector, -vector, *draw_tracks(3, 4)])
    with pytest.raises(UsageError, match="cancel out"):
        search_tracks(Searcher(index), ["t0000", "t0001"])
