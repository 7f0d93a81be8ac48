from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.search.near_duplicates import MOMENT_SCORE, choose_near_duplicate_score
from pipeline.search.searcher import Searcher
from tests.indexes import draw_tracks, make_index


@pytest.mark.parametrize("common", [0.0, 30.0], ids=["strangers far apart", "strangers close together"])
def test_copies_are_marked_and_strangers_are_not_however_close_strangers_lie(
    tmp_path: Path, common: float
) -> None:
    random = np.random.default_rng(3)
    tracks = [track + common for track in draw_tracks(80, embed_dim=16)]
    copies = {"t0080": "t0011", "t0081": "t0042"}
    tracks += [tracks[number] + random.normal(0, 0.1, (1, 16)).astype(np.float32) for number in (11, 42)]
    searcher = Searcher(make_index(tmp_path, tracks))
    marked = {
        (f"t{query:04d}", hit.track_id)
        for query in range(82)
        for hit in searcher.search_track(f"t{query:04d}", k=81)
        if hit.near_duplicate
    }
    assert marked == set(copies.items()) | {(original, copy) for copy, original in copies.items()}


def test_a_score_that_is_given_goes_before(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(10))
    assert all(hit.near_duplicate for hit in Searcher(index, -1.0).search_track("t0001"))
    assert not any(hit.near_duplicate for hit in Searcher(index, 1.1).search_vectors(index.vectors_of(1)))


def test_a_catalog_of_one_track_marks_only_that(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(1))
    score = choose_near_duplicate_score(index)
    assert 0.9999 < score < 1
    assert Searcher(index).search_vectors(index.vectors_of(0))[0].near_duplicate


def test_moments_have_a_mark_of_their_own(tmp_path: Path) -> None:
    assert choose_near_duplicate_score(make_index(tmp_path, draw_tracks(4), resolution="0.5hz")) == MOMENT_SCORE


def test_the_space_of_moments_marks_at_more_of_the_typical_distance(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(60))
    plain = choose_near_duplicate_score(index)
    index.manifest = replace(index.manifest, distance="within-track")
    assert (1 - choose_near_duplicate_score(index)) / (1 - plain) == pytest.approx(0.4 / 0.25)
