from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from pipeline.service.catalog import TrackNames

ROWS = [
    ("a1", "Björk's Song", "Ólafur", 0.0, 0.0),
    ("a2", "Another song", None, 1.0, 0.0),
    ("b/1 %.mp3", None, "Bjorn", 0.0, 1.0),
    ("c9", "Zebra", "Anna", float("nan"), float("nan")),
]


def show_all(table: pa.Table) -> TrackNames:
    return TrackNames(table, lambda: np.ones(table.num_rows, np.bool_))


@pytest.fixture(scope="module")
def names() -> TrackNames:
    columns = zip(*ROWS, strict=True)
    table = pa.table(dict(zip(("track_id", "title", "artist", "map_x", "map_y"), map(list, columns), strict=True)))
    return show_all(table)


def suggest(names: TrackNames, text: str, limit: int = 10) -> list[str]:
    return [ROWS[place][0] for place in names.suggest(text, limit)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bjork", ["a1"]),
        ("BJÖ", ["a1", "b/1 %.mp3"]),
        ("song", ["a1", "a2"]),
        ("an", ["a2", "c9"]),
        ("b/1 %", ["b/1 %.mp3"]),
        (".*", []),
        ("olafur", ["a1"]),
        ("nobody", []),
    ],
)
def test_names_are_found_whatever_their_case_and_accents(
    names: TrackNames, text: str, expected: list[str]
) -> None:
    assert suggest(names, text) == expected


def test_names_that_begin_with_it_come_before_names_that_have_it(names: TrackNames) -> None:
    assert suggest(names, "a")[:2] == ["a2", "c9"]  # a title, then an artist; then the ids, then the rest
    assert suggest(names, "a", 1) == ["a2"]


@pytest.mark.parametrize("text", ["", "  "])
def test_without_text_the_first_tracks_come(names: TrackNames, text: str) -> None:
    assert suggest(names, text, 2) == ["a1", "a2"]


def test_a_track_is_found_by_exactly_its_id(names: TrackNames) -> None:
    assert [names.find(track_id) for track_id, *_ in ROWS] == [0, 1, 2, 3]
    assert [names.find(text) for text in ("", "a", "a11", "B/1 %.mp3", "z", "\0")] == [None] * 6


def test_the_map_leaves_out_what_has_no_place(names: TrackNames) -> None:
    assert names.sample_map(10) == ([0, 1, 2], 3)
    assert names.map_point(3) is None


def test_a_part_of_the_map_holds_what_lies_in_it(names: TrackNames) -> None:
    assert names.sample_map(10, (0.5, -1, 2, 2)) == ([1], 1)
    assert names.sample_map(10, (5, 5, 6, 6)) == ([], 0)


def test_a_large_map_is_thinned_out_evenly() -> None:
    table = pa.table(
        {
            "track_id": [f"{number:04}" for number in range(1000)],
            "title": pa.nulls(1000, pa.string()),
            "artist": pa.nulls(1000, pa.string()),
            "map_x": [float(number) for number in range(1000)],
            "map_y": [0.0] * 1000,
        }
    )
    places, num_tracks = show_all(table).sample_map(100)
    assert num_tracks == 1000
    assert len(set(places)) == 100
    assert (places[0], places[-1]) == (0, 999)
    assert {after - before for before, after in pairwise(places)} <= {10, 11}


def test_of_what_was_taken_down_nobody_is_told() -> None:
    columns = zip(*ROWS, strict=True)
    table = pa.table(dict(zip(("track_id", "title", "artist", "map_x", "map_y"), map(list, columns), strict=True)))
    shown = np.ones(len(ROWS), np.bool_)
    names = TrackNames(table, lambda: shown)
    assert suggest(names, "song") == ["a1", "a2"]
    shown[0] = False
    assert suggest(names, "song") == ["a2"]
    assert names.find("a1") is None
    assert names.find("a2") == 1
    assert suggest(names, "") == ["a2", "b/1 %.mp3", "c9"]
    assert names.sample_map(10) == ([1, 2], 2)
