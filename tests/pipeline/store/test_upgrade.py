"""A store that version 0.1.0 wrote, by ``KnownStore.run`` over ``FIRST`` and then ``SECOND``: tests/data."""

import tarfile
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipeline.errors import StoreFormatError
from pipeline.location import StoreLocation
from pipeline.schema import TABLES, TRACKS
from pipeline.store.check import check_store
from pipeline.store.ledger import list_table_files, read_rows
from pipeline.store.parts import write_part
from pipeline.store.read import FeatureStore
from pipeline.store.segments import SEGMENT_S
from pipeline.store.table_commits import commit_actions
from pipeline.store.tables import create_tables, open_table
from pipeline.store.upgrade import ANY_FORMAT, upgrade_store
from tests.stores import BAD, EMBED_DIM, KnownStore, make_features, make_recipe

ARCHIVE = Path(__file__).parents[2] / "data" / "store_format_1.tar.gz"
FIRST = {"a": "one", "b": "long mix", "c": "two", "d": BAD, "e": "three"}
SECOND = {**FIRST, "a": "one, anew", "f": "four"}
RECIPES = tuple(replace(make_recipe(layer), maths_version=1) for layer in (7, 4))  # of the code that wrote it
RESOLUTIONS = ("8hz", "0.5hz", "global")


@pytest.fixture
def old(tmp_path: Path) -> StoreLocation:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return StoreLocation(str(tmp_path / "store"))


def assert_holds_all(store: StoreLocation) -> None:
    reader = FeatureStore(store.url)
    contents = {track_id: content for track_id, content in SECOND.items() if content != BAD}
    for recipe in (each.recipe_id for each in RECIPES):
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


def test_it_is_refused_with_what_to_do(old: StoreLocation) -> None:
    for use in (lambda: FeatureStore(old.url), lambda: create_tables(old), lambda: check_store(old)):
        with pytest.raises(StoreFormatError, match=r"has format 1.*bring it up to date with musicfm maintain"):
            use()


def test_it_is_brought_up_to_date_and_holds_what_it_held(old: StoreLocation) -> None:
    tables = [open_table(old, name, formats=ANY_FORMAT) for name in ("frames", "tracks")]
    num_parts = sum(len(table.file_uris()) for table in tables)
    assert upgrade_store(old, "up") == num_parts
    assert_holds_all(old)
    check = check_store(old, deep=True)
    assert check.problems == []
    assert check.num_dead_rows == 0
    frames = DeltaTable(old.table_url("frames")).to_pyarrow_table()
    assert max(frames.column("num_frames").to_pylist()) == SEGMENT_S * 8
    assert upgrade_store(old, "again") == 0


def test_a_run_goes_on_with_it(old: StoreLocation) -> None:
    upgrade_store(old, "up")
    committer = KnownStore(old, num_runs=2).run(SECOND, RECIPES, RESOLUTIONS)
    assert (committer.counts.embedded, committer.counts.unchanged) == (0, 5)
    assert_holds_all(old)


def test_of_the_format_before_this_one_only_columns_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_broken_off_before_its_last_commit_it_begins_anew(
    old: StoreLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("add_missing_columns", "declare_format"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pipeline.store.upgrade.{step}", die)
            with pytest.raises(KeyboardInterrupt):
                upgrade_store(old, f"dies-{step}")
        with pytest.raises(StoreFormatError, match="has format 1"):
            FeatureStore(old.url)
    assert upgrade_store(old, "up") > 0
    assert_holds_all(old)
    assert check_store(old, deep=True).problems == []


def test_a_snapshot_of_before_says_so(old: StoreLocation) -> None:
    version = open_table(old, "tracks", formats=ANY_FORMAT).version()
    upgrade_store(old, "up")
    with pytest.raises(StoreFormatError, match=rf"so it was at version {version}: .* open a later snapshot"):
        FeatureStore(old.url, version)


def test_another_format_is_left_alone(old: StoreLocation) -> None:
    table = open_table(old, "tracks", formats=ANY_FORMAT)
    table.alter.set_table_properties({"musicfm.storeFormat": "4"}, False)
    with pytest.raises(StoreFormatError, match=r"has format 4.*use the version that wrote it"):
        upgrade_store(old, "up")


def test_duckdb_reads_it_as_any_store(old: StoreLocation) -> None:
    upgrade_store(old, "up")
    files = DeltaTable(old.table_url("frames")).file_uris()
    found = duckdb.sql(
        f"""SELECT recipe, list(start_frame ORDER BY start_frame), sum(num_frames), any_value(len(embeddings[1]))
        FROM read_parquet({files}, hive_partitioning = true)
        WHERE track_id = 'b' AND resolution = '8hz' GROUP BY recipe"""
    )
    assert found is not None
    num_frames = len(make_features("long mix", RECIPES[0].recipe_id, "8hz"))
    assert [row[1:] for row in found.fetchall()] == [
        (list(range(0, num_frames, 8 * SEGMENT_S)), num_frames, EMBED_DIM) for _ in RECIPES
    ]
