import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.transaction import AddAction, RemoveAction
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.location import StoreLocation
from pipeline.schema import CATALOG, TABLES, TRACKS
from pipeline.store.ledger import (
    MAX_PARTS_PER_COMMIT,
    cut_between_parts,
    extract_rows,
    merge_track_rows,
    relabel_track_rows,
)
from pipeline.store.parts import write_part
from pipeline.store.table_commits import commit_actions
from pipeline.store.tables import create_tables, open_table
from tests.rows import at_second, build_catalog, read_store

Row = dict[str, Any]

IDS = ["Z", "a", "b", "c", "é", "ü/1", "ü/2", "日本"]


def build_track(track_id: str, recipe: str = "r1", **others: Any) -> Row:
    row = {"recipe": recipe, "track_id": track_id, "uri": f"/{track_id}", "size_bytes": 1, "content_hash": "h"}
    return row | {"resolutions": ["8hz"]} | others


def add_part(store: StoreLocation, table_name: str, rows: list[Row], table: DeltaTable) -> str:
    """Commit rows of one partition as one file; return its path."""
    partition = {"recipe": rows[0]["recipe"]} if table_name == "tracks" else {}
    part = write_part(
        pa.Table.from_pylist(rows, schema=TABLES[table_name]).sort_by("track_id"),
        table_name,
        store.table_url(table_name),
        partition,
        "run1",
    )
    commit_actions(table, table_name, [part.as_add_action()], {})
    return part.path


def read_keys(store: StoreLocation, table_name: str) -> list[tuple[str, str]]:
    return keys_of(read_store(store, table_name))


def keys_of(rows: Iterable[Row]) -> list[tuple[str, str]]:
    return sorted((row["recipe"], row["track_id"]) for row in rows)


def removed_paths(actions: list[AddAction | RemoveAction]) -> set[str]:
    return {action.path for action in actions if isinstance(action, RemoveAction)}


@settings(deadline=None, max_examples=10)
@given(
    st.sampled_from(["tracks", "failures"]),
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "extract"]),
            st.sampled_from(["r1", "r2"]),
            st.sets(st.sampled_from(IDS), min_size=1),
        ),
        max_size=8,
    ),
)
def test_rows_leave_as_they_would_leave_a_dict(
    table_name: str, operations: list[tuple[str, str, set[str]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = StoreLocation(folder)
        create_tables(store)
        table = open_table(store, table_name)
        expected: dict[tuple[str, str], int] = {}
        for number, (operation, recipe, ids) in enumerate(operations):
            if operation == "add":
                new_ids = {track_id for track_id in ids if (recipe, track_id) not in expected}
                if new_ids:
                    rows = [build_track(track_id, recipe, size_bytes=number) for track_id in new_ids]
                    add_part(store, table_name, rows, table)
                expected |= {(recipe, track_id): number for track_id in new_ids}
                continue
            taken = extract_rows(table, table_name, store, recipe, list(ids), "run2")
            gone = {(recipe, track_id): expected.pop((recipe, track_id), None) for track_id in ids}
            assert taken.rows.schema == TABLES[table_name]
            assert {(row["recipe"], row["track_id"]): row["size_bytes"] for row in taken.rows.to_pylist()} == {
                key: size for key, size in gone.items() if size is not None
            }
            commit_actions(table, table_name, taken.actions, {})
        rows = read_store(store, table_name)
        assert {(row["recipe"], row["track_id"]): row["size_bytes"] for row in rows} == expected
        assert len(rows) == len(expected)


ranges = st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda ends: (min(ends), max(ends)))


@given(st.sets(st.integers(0, 99)), st.lists(ranges, max_size=12))
def test_a_part_reaches_over_no_whole_other_part(numbers: set[int], others: list[tuple[int, int]]) -> None:
    ids = [f"{number:02d}" for number in sorted(numbers)]
    spans = [(f"{first:02d}", f"{last:02d}") for first, last in others]
    pieces = [ids[cut] for cut in cut_between_parts(ids, spans)]
    assert [track_id for piece in pieces for track_id in piece] == ids
    assert all(pieces)
    for piece in pieces:
        for before, after in pairwise(piece):
            assert not any(before < first and last < after for first, last in spans)
    for left, right in pairwise(pieces):
        assert any(left[-1] < first and last < right[0] for first, last in spans), "cut for nothing"


def test_rows_from_all_over_the_catalog_stay_together() -> None:
    ids = [f"{number:04d}" for number in range(0, 1000, 10)]
    spans = [(f"{number:04d}", f"{number + 2:04d}") for number in range(5, 1000, 10)]
    few = MAX_PARTS_PER_COMMIT - 1
    assert len(cut_between_parts(ids, spans[:few])) == MAX_PARTS_PER_COMMIT
    assert cut_between_parts(ids, spans) == [slice(0, len(ids))]


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    return location


def test_only_files_that_hold_such_rows_are_rewritten(store: StoreLocation) -> None:
    table = open_table(store, "tracks")
    paths = {
        ids: add_part(store, "tracks", [build_track(track_id, recipe) for track_id in ids], table)
        for ids, recipe in [("bd", "r1"), ("eg", "r1"), ("hh", "r1"), ("zz", "r2")]
    }

    def rewrites(*ids: str) -> set[str]:
        return removed_paths(extract_rows(table, "tracks", store, "r1", ids, "run2").actions)

    assert rewrites("d") == {paths["bd"]}
    assert rewrites("b", "g") == {paths["bd"], paths["eg"]}
    assert rewrites("a", "i", "z") == set()
    assert rewrites("f") == set(), "within a file's span, but not in the file"
    assert rewrites() == set()


def test_a_file_outside_the_span_is_not_even_read(store: StoreLocation, tmp_path: Path) -> None:
    table = open_table(store, "tracks")
    near = add_part(store, "tracks", [build_track("a"), build_track("c")], table)
    far = add_part(store, "tracks", [build_track("x")], table)
    (tmp_path / "store" / "tracks" / far).unlink()
    assert removed_paths(extract_rows(table, "tracks", store, "r1", ["c"], "run2").actions) == {near}


def test_what_stays_of_a_file_is_written_anew_and_nothing_where_nothing_stays(store: StoreLocation) -> None:
    table = open_table(store, "tracks")
    add_part(store, "tracks", [build_track("a"), build_track("b")], table)
    some = extract_rows(table, "tracks", store, "r1", ["a"], "run2").actions
    assert [type(action) for action in some] == [RemoveAction, AddAction]
    everything = extract_rows(table, "tracks", store, "r1", ["a", "b"], "run2").actions
    assert [type(action) for action in everything] == [RemoveAction]


def test_rows_keep_every_value_through_a_rewrite(store: StoreLocation) -> None:
    table = open_table(store, "tracks")
    kept = build_track("b", title="Ü", modified_time=at_second(5), rms=0.125, embedding=None, resolutions=[])
    add_part(store, "tracks", [build_track("a"), kept], table)
    taken = extract_rows(table, "tracks", store, "r1", ["a"], "run2")
    commit_actions(table, "tracks", taken.actions, {})
    (row,) = read_store(store, "tracks")
    assert row == {name: kept.get(name) for name in TRACKS.names}


def test_files_that_another_tool_wrote_are_read_as_well(store: StoreLocation) -> None:
    rows = pa.Table.from_pylist([build_track(track_id) for track_id in "abc"], schema=TRACKS)
    write_deltalake(open_table(store, "tracks"), rows, mode="append")
    table = open_table(store, "tracks")
    table.optimize.compact()
    taken = extract_rows(table, "tracks", store, "r1", ["b"], "run2")
    assert keys_of(taken.rows.to_pylist()) == [("r1", "b")]
    commit_actions(table, "tracks", taken.actions, {})
    assert read_keys(store, "tracks") == [("r1", "a"), ("r1", "c")]


def test_a_file_without_statistics_may_hold_anything(store: StoreLocation) -> None:
    table = open_table(store, "tracks")
    rows = pa.Table.from_pylist([build_track("a")], schema=TRACKS)
    part = write_part(rows, "tracks", store.table_url("tracks"), {"recipe": "r1"}, "run1")
    bare = AddAction(part.path, part.size_bytes, {"recipe": "r1"}, 0, True, "{}")
    commit_actions(table, "tracks", [bare], {})
    assert extract_rows(table, "tracks", store, "r1", ["a"], "run2").rows.num_rows == 1


track_rows = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.fixed_dictionaries(
        {
            "content_hash": st.sampled_from(["h1", "h2"]),
            "resolutions": st.lists(st.sampled_from(["50hz", "8hz", "global"]), min_size=1, unique=True),
            "run_id": st.sampled_from(["run1", "run2"]),
        }
    ),
)


def build_track_rows(by_id: dict[str, Row]) -> list[Row]:
    """Complete drawn rows."""
    return [build_track(track_id, **row) for track_id, row in by_id.items()]


@settings(deadline=None)
@given(track_rows, track_rows)
def test_a_new_row_keeps_what_was_held_of_the_same_content_and_nothing_of_another(
    new: dict[str, Row], old: dict[str, Row]
) -> None:
    new_rows, old_rows = build_track_rows(new), build_track_rows(old)
    merged = merge_track_rows(
        pa.Table.from_pylist(new_rows, schema=TRACKS), pa.Table.from_pylist(old_rows, schema=TRACKS)
    )
    assert merged.schema == TRACKS
    old_by_id = {row["track_id"]: row for row in old_rows}
    for row, found in zip(new_rows, merged.to_pylist(), strict=True):
        before = old_by_id.get(row["track_id"])
        resolutions = list(row["resolutions"])
        if before is not None and before["content_hash"] == row["content_hash"]:
            resolutions = sorted({*before["resolutions"], *resolutions})
        assert sorted(found["resolutions"]) == sorted(resolutions)
        assert {name: found[name] for name in TRACKS.names if name != "resolutions"} == {
            name: row.get(name) for name in TRACKS.names if name != "resolutions"
        }


@given(st.permutations(["a", "b", "c", "d"]))
def test_relabelling_takes_all_the_catalog_says_and_leaves_the_features(order: list[str]) -> None:
    rows = [build_track(track_id, title="old", etag="old", num_channels=2) for track_id in "abc"]
    catalog = [
        {"track_id": track_id, "uri": f"/new/{track_id}", "title": None, "artist": track_id.upper()}
        for track_id in order
    ]
    found = relabel_track_rows(pa.Table.from_pylist(rows, schema=TRACKS), build_catalog(catalog))
    # What the catalog says nothing of came from the file's tags, and stays.
    facts = {
        row["track_id"]: {name: row.get(name) for name in CATALOG.names} | {"title": "old"} for row in catalog
    }
    assert found.schema == TRACKS
    assert found.to_pylist() == [
        {name: row.get(name) for name in TRACKS.names} | facts[row["track_id"]] for row in rows
    ]
