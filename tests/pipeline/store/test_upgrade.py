"""Stores that older versions wrote, by ``KnownStore.run`` over ``FIRST`` and then ``SECOND``: tests/data.

Of format 3 there is a third run, over ``g`` alone, at 8 Hz alone.
"""

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipeline.errors import RunError, StoreFormatError, UsageError
from pipeline.location import StoreLocation
from pipeline.schema import TABLES, TRACKS
from pipeline.store import retry, table_commits, upgrade
from pipeline.store.check import check_store
from pipeline.store.ledger import list_table_files, read_rows
from pipeline.store.parts import write_part
from pipeline.store.read import FeatureStore
from pipeline.store.segments import SEGMENT_S
from pipeline.store.table_commits import commit_actions
from pipeline.store.tables import create_tables, open_table
from pipeline.store.upgrade import ANY_FORMAT, upgrade_store
from tests.stores import BAD, EMBED_DIM, KnownStore, make_features, make_recipe

ARCHIVES = {number: Path(__file__).parents[2] / "data" / f"store_format_{number}.tar.gz" for number in (1, 3)}
FIRST = {"a": "one", "b": "long mix", "c": "two", "d": BAD, "e": "three"}
SECOND = {**FIRST, "a": "one, anew", "f": "four"}
RECIPES = {  # of the code that wrote them
    1: tuple(replace(make_recipe(layer), maths_version=1) for layer in (7, 4)),
    3: tuple(make_recipe(layer) for layer in (7, 4)),
}
RESOLUTIONS = ("8hz", "0.5hz", "global")


@pytest.fixture(params=[1, 3])
def number(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def old(tmp_path: Path, number: int) -> StoreLocation:
    with tarfile.open(ARCHIVES[number]) as archive:
        archive.extractall(tmp_path, filter="data")
    return StoreLocation(str(tmp_path / "store"))


def assert_holds_all(store: StoreLocation, number: int) -> None:
    reader = FeatureStore(store.url)
    contents = {track_id: content for track_id, content in SECOND.items() if content != BAD}
    for recipe in (each.recipe_id for each in RECIPES[number]):
        for resolution in ("8hz", "0.5hz"):
            rows = reader.frames(list(contents), resolution, recipe=recipe).to_pylist()
            assert [row["track_id"] for row in rows] == list(contents)
            for row in rows:
                expected = make_features(contents[row["track_id"]], recipe, resolution)
                np.testing.assert_array_equal(np.array(row["embeddings"], np.float32), expected)
        ids, vectors = reader.vectors(recipe=recipe)
        assert ids.to_pylist() == sorted(contents)
        expected = np.concatenate([make_features(contents[each], recipe, "global") for each in sorted(contents)])
        np.testing.assert_array_equal(vectors, expected)


def test_it_is_refused_with_what_to_do(old: StoreLocation, number: int) -> None:
    for use in (lambda: FeatureStore(old.url), lambda: create_tables(old), lambda: check_store(old)):
        with pytest.raises(
            StoreFormatError, match=rf"has format {number}.*bring it up to date with musicfm maintain"
        ):
            use()


def test_it_is_brought_up_to_date_and_holds_what_it_held(old: StoreLocation, number: int) -> None:
    tables = [open_table(old, name, formats=ANY_FORMAT) for name in ("frames", "tracks")]
    num_parts = sum(len(table.file_uris()) for table in (tables if number == 1 else tables[1:]))
    assert upgrade_store(old, "up") == num_parts
    assert_holds_all(old, number)
    check = check_store(old, deep=True)
    assert check.problems == []
    assert check.num_dead_rows == (0 if number == 1 else 2 * 2)  # two resolutions of what "a" was, in two recipes
    assert [field.name for field in open_table(old, "tracks").schema().fields] == TRACKS.names
    if number == 3:
        (row,) = FeatureStore(old.url).to_arrow("global", RECIPES[3][0].recipe_id).to_pylist()[-1:]
        assert (row["track_id"], row["resolutions"], row["embedding"]) == ("g", ["8hz"], None)
    frames = DeltaTable(old.table_url("frames")).to_pyarrow_table()
    assert max(frames.column("num_frames").to_pylist()) == SEGMENT_S * 8
    assert upgrade_store(old, "again") == 0


def test_a_run_goes_on_with_it(old: StoreLocation, number: int) -> None:
    upgrade_store(old, "up")
    committer = KnownStore(old, num_runs=3).run(SECOND, RECIPES[number], RESOLUTIONS)
    assert (committer.counts.embedded, committer.counts.unchanged) == (0, 5)
    assert_holds_all(old, number)


def test_format_2_gets_the_columns_that_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreLocation(str(tmp_path / "store"))
    added = ("track_number", "year")
    with monkeypatch.context() as patch:
        older = pa.schema([field for field in TRACKS if field.name not in added])
        patch.setitem(TABLES, "tracks", older)
        patch.setattr("pipeline.store.ledger.TRACKS", older)
        patch.setattr("pipeline.store.tables.STORE_FORMAT", 2)
        create_tables(store)
        rows = pa.Table.from_pylist([{"recipe": "r", "track_id": "a", "content_hash": "h"}], older)
        part = write_part(
            rows.drop_columns(["recipe"]), "tracks", store.table_url("tracks"), {"recipe": "r"}, "run", {}
        )
        commit_actions(DeltaTable(store.table_url("tracks")), "tracks", [part.as_add_action()], {"event": "close"})
    with pytest.raises(StoreFormatError, match=r"has format 2.*musicfm maintain"):
        FeatureStore(store.url)
    assert upgrade_store(store, "up") == 1
    assert duckdb.read_parquet(open_table(store, "tracks").file_uris()).columns[-1:] == ["run_id"]
    (file,) = list_table_files(open_table(store, "tracks"), "tracks", "r")
    (row,) = read_rows("tracks", store, file).to_pylist()
    assert (row["track_id"], row["track_number"], row["year"]) == ("a", None, None)
    assert FeatureStore(store.url).tracks(["track_id", "year"]).to_pylist() == [{"track_id": "a", "year": None}]
    assert upgrade_store(store, "again") == 0


def test_broken_off_between_any_two_commits_it_does_what_is_left(
    old: StoreLocation, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ["add_missing_columns", "declare_format", "replace_files", "declare_format"]
    tables = ["frames", "recipes", "tracks", "tracks"]
    for step, table_name in zip(steps, tables, strict=True):
        with monkeypatch.context() as patch:
            original = getattr(upgrade, step)

            def die(table: DeltaTable, *rest: Any, known: Any = original, name: str = table_name) -> None:
                if table.table_uri.rstrip("/").endswith(f"/{name}"):
                    raise KeyboardInterrupt
                known(table, *rest)

            patch.setattr(upgrade, step, die)
            with pytest.raises(KeyboardInterrupt):
                upgrade_store(old, f"dies-{step}-{table_name}")
        with pytest.raises(StoreFormatError, match=f"has format {number}"):
            FeatureStore(old.url)
    assert upgrade_store(old, "up") > 0
    assert_holds_all(old, number)
    assert check_store(old, deep=True).problems == []


@pytest.mark.slow
def test_killed_after_any_commit_while_its_lease_runs_out_it_doubles_nothing(
    old: StoreLocation, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.writer.LEASE_S", 0.0)  # each renewal is a commit that names ``frames``
    commits, dies_at = 0, 0
    original = retry.commit_once

    def commit(*arguments: Any) -> None:
        nonlocal commits
        original(*arguments)
        commits += 1
        if commits == dies_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(table_commits, "commit_once", commit)
    for dies_at in range(1, 200):  # each goes on with what the last one left
        commits = 0
        try:
            upgrade_store(old, f"dies-{dies_at}")
        except KeyboardInterrupt:
            continue
        break
    assert dies_at > 15
    assert_holds_all(old, number)
    assert check_store(old, deep=True).problems == []


def test_an_upgrade_that_another_writer_overtakes_publishes_nothing(
    old: StoreLocation, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = table_commits.replace_files

    def be_overtaken(*arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.store.writer.check_nobody_writes", lambda *_: None)
            patch.setattr(upgrade, "add_missing_columns", die)
            with pytest.raises(KeyboardInterrupt):
                upgrade_store(old, "rival")
        original(*arguments)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(upgrade, "replace_files", be_overtaken)
    with pytest.raises(RunError, match="another run has written"):
        upgrade_store(old, "overtaken")
    monkeypatch.undo()
    with pytest.raises(StoreFormatError, match=f"has format {number}"):
        FeatureStore(old.url)
    assert upgrade_store(old, "up") > 0
    assert_holds_all(old, number)
    assert check_store(old, deep=True).problems == []


def test_a_run_that_has_not_closed_is_left_to_the_version_that_wrote_it(old: StoreLocation, number: int) -> None:
    table = open_table(old, "tracks", formats=ANY_FORMAT)
    commit_actions(table, "tracks", [], {"event": "progress", "run_id": "open"})
    with pytest.raises(UsageError, match=rf"run open .* the version that wrote it \(store format {number}\)"):
        upgrade_store(old, "up")


def test_a_snapshot_of_before_says_so(old: StoreLocation) -> None:
    version = open_table(old, "tracks", formats=ANY_FORMAT).version()
    upgrade_store(old, "up")
    with pytest.raises(StoreFormatError, match=rf"so it was at version {version}: .* open a later snapshot"):
        FeatureStore(old.url, version)


def test_another_format_is_left_alone(old: StoreLocation) -> None:
    table = open_table(old, "tracks", formats=ANY_FORMAT)
    table.alter.set_table_properties({"musicfm.storeFormat": "99"}, False)
    with pytest.raises(StoreFormatError, match=r"has format 99.*use the version that wrote it"):
        upgrade_store(old, "up")


def test_duckdb_reads_it_as_any_store(old: StoreLocation, number: int) -> None:
    upgrade_store(old, "up")
    files = DeltaTable(old.table_url("frames")).file_uris()
    found = duckdb.sql(
        f"""SELECT recipe, list(start_frame ORDER BY start_frame), sum(num_frames), any_value(len(embeddings[1]))
        FROM read_parquet({files}, hive_partitioning = true)
        WHERE track_id = 'b' AND resolution = '8hz' GROUP BY recipe"""
    )
    assert found is not None
    num_frames = len(make_features("long mix", RECIPES[number][0].recipe_id, "8hz"))
    assert [row[1:] for row in found.fetchall()] == [
        (list(range(0, num_frames, 8 * SEGMENT_S)), num_frames, EMBED_DIM) for _ in RECIPES[number]
    ]
