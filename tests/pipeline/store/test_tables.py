import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipeline.errors import StorageError, StoreFormatError
from pipeline.location import StoreLocation
from pipeline.schema import FAILURES, PARTITION_COLUMNS, RECIPES, TABLES, TRACKS
from pipeline.store.parts import write_part
from pipeline.store.table_commits import append_rows, commit_actions, restore_table
from pipeline.store.tables import (
    FORMAT_PROPERTY,
    create_tables,
    has_tables,
    open_table,
    read_columns,
)
from tests.rows import read_store


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    return location


def write_failure(store: StoreLocation, track_id: str, recipe: str = "r1") -> AddAction:
    rows = pa.Table.from_pylist([{"recipe": recipe, "track_id": track_id}], schema=FAILURES)
    return write_part(rows, "failures", store.table_url("failures"), {}, "run1").as_add_action()


def list_ids(store: StoreLocation) -> list[str]:
    return sorted(row["track_id"] for row in read_store(store, "failures"))


def assert_is_one_line(error: BaseException) -> None:
    text = str(error)
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 500


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_the_schema_and_the_partitions_that_are_written_down(store: StoreLocation, name: str) -> None:
    table = DeltaTable(store.table_url(name))
    found = pa.schema(table.schema().to_arrow())
    assert {field.name: field.type for field in found} == {field.name: field.type for field in TABLES[name]}
    assert table.metadata().partition_columns == PARTITION_COLUMNS[name]
    assert table.metadata().configuration == {
        FORMAT_PROPERTY: "4",
        "delta.checkpointInterval": "10",
        "delta.enableExpiredLogCleanup": "false",
        **({"delta.dataSkippingStatsColumns": "track_id"} if name != "recipes" else {}),
    }


def test_to_create_twice_is_harmless(store: StoreLocation) -> None:
    commit_actions(open_table(store, "failures"), "failures", [write_failure(store, "a")], {})
    create_tables(store)
    assert open_table(store, "failures").version() == 1
    assert list_ids(store) == ["a"]


def test_tables_that_are_missing_are_made_beside_those_that_are_there(store: StoreLocation) -> None:
    for name in ("tracks", "frames"):  # as a run leaves it that is killed while it makes them
        shutil.rmtree(store.table_url(name))
    create_tables(store)
    assert all(open_table(store, name).version() == 0 for name in TABLES)


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"tracks"}))
def test_a_table_that_was_lost_is_not_made_anew_beside_its_ledger(store: StoreLocation, name: str) -> None:
    shutil.rmtree(store.table_url(name))
    with pytest.raises(StorageError, match=f"found no {name} beside the ledger") as caught:
        create_tables(store)
    assert_is_one_line(caught.value)
    assert not Path(store.table_url(name)).exists()


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"tracks"}))
def test_a_store_is_there_only_when_all_its_tables_are(tmp_path: Path, name: str) -> None:
    store = StoreLocation(str(tmp_path))
    blocker = tmp_path / name
    blocker.write_text("not a folder")
    with pytest.raises(StorageError):
        create_tables(store)
    assert not has_tables(store)
    blocker.unlink()
    create_tables(store)
    assert has_tables(store)


@pytest.mark.parametrize(("written", "named"), [("9", "format 9"), (None, "format unknown")])
def test_a_store_of_another_format_is_refused_by_name(tmp_path: Path, written: str | None, named: str) -> None:
    store = StoreLocation(str(tmp_path))
    configuration = {FORMAT_PROPERTY: written} if written else None
    DeltaTable.create(
        store.table_url("tracks"), TRACKS, configuration=configuration, raise_if_key_not_exists=False
    )
    for use in (create_tables, lambda store: open_table(store, "tracks")):
        with pytest.raises(StoreFormatError, match=named) as caught:
            use(store)
        assert_is_one_line(caught.value)
    assert open_plain_version(store) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tracks"]  # nothing is made beside what is not ours


def open_plain_version(store: StoreLocation) -> int:
    return DeltaTable(store.table_url("tracks")).version()


def test_what_is_not_a_store_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tracks").mkdir()
    (tmp_path / "tracks" / "a.mp3").write_bytes(b"")
    with pytest.raises(StorageError, match=r"no feature store at .*make one with") as caught:
        open_table(StoreLocation(str(tmp_path)), "tracks")
    assert_is_one_line(caught.value)


def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"file/store.*Not a directory") as caught:
        create_tables(StoreLocation(str(tmp_path / "file" / "store")))
    assert_is_one_line(caught.value)


@pytest.mark.parametrize("folder", ["a#b", "a?b", "a%20b", "a\\b", "a\nb", "a\x1fb", "a\tb"])
def test_a_path_that_delta_would_take_for_a_url_is_refused_before_anything_is_written(
    tmp_path: Path, folder: str
) -> None:
    store = StoreLocation(str(tmp_path / folder))
    for use in (create_tables, has_tables, lambda store: open_table(store, "tracks")):
        with pytest.raises(StorageError, match="may not hold"):
            use(store)
    assert list(tmp_path.iterdir()) == []


PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in "#?/\\")


@pytest.mark.parametrize("folder", [f"a{PRINTABLE}b", "[x]", "^|", "100%", "Ünü 日本", "a] b[c", "{1}`<>"])
def test_every_other_printable_character_works(tmp_path: Path, folder: str) -> None:
    store = StoreLocation(str(tmp_path / folder))
    create_tables(store)
    append_rows(store, "recipes", pa.Table.from_pylist([{"recipe": "r1"}], schema=RECIPES), {})
    assert read_columns(open_table(store, "recipes"), ["recipe"]).to_pylist() == [{"recipe": "r1"}]
    table = open_table(store, "failures")
    commit_actions(table, "failures", [write_failure(store, "a")], {"said": "so"})
    assert open_table(store, "failures").history(1)[0]["said"] == "so"
    assert list_ids(store) == ["a"]


def test_neither_the_location_nor_an_error_shows_a_secret() -> None:
    options = {
        "key": "an access key",
        "secret": "hunter2",
        "endpoint_url": "http://127.0.0.1:9",
        "max_retries": "0",
    }
    store = StoreLocation("s3://bucket/store", options)
    assert repr(store) == "StoreLocation('s3://bucket/store')"
    for use in (create_tables, has_tables, lambda store: open_table(store, "tracks")):
        with pytest.raises(StorageError, match=r"s3://bucket/store.*Connection refused") as caught:
            use(store)
        assert_is_one_line(caught.value)
        assert "hunter2" not in str(caught.value)
        assert "access key" not in str(caught.value)


def test_a_damaged_log_is_an_error_in_one_line(store: StoreLocation) -> None:
    table = open_table(store, "failures")
    log = Path(store.table_url("failures")) / "_delta_log"
    (log / f"{1:020d}.json").write_text("not JSON")
    for use in (
        lambda: open_table(store, "failures"),
        lambda: commit_actions(table, "failures", [write_failure(store, "a")], {}),
        lambda: append_rows(store, "failures", FAILURES.empty_table(), {}),
    ):
        with pytest.raises(StorageError, match=r"cannot use the store at .*/failures") as caught:
            use()
        assert_is_one_line(caught.value)
        assert "<unknown>" not in str(caught.value)


def test_a_commit_carries_its_metadata_and_moves_the_table_on(store: StoreLocation) -> None:
    table = open_table(store, "failures")
    assert commit_actions(table, "failures", [write_failure(store, "a")], {"run_id": "run1"}) == 1
    assert commit_actions(table, "failures", [], {"event": "nothing"}, Transaction("app", 7)) == 2
    assert (table.version(), table.transaction_version("app")) == (2, 7)
    first, second = open_table(store, "failures").history(2)
    assert (first["event"], second["run_id"]) == ("nothing", "run1")
    assert list_ids(store) == ["a"]


def test_rows_are_appended_to_those_that_are_there(store: StoreLocation) -> None:
    for track_id in "ab":
        rows = pa.Table.from_pylist([{"recipe": "r1", "track_id": track_id}], schema=FAILURES)
        append_rows(store, "failures", rows, {})
    assert list_ids(store) == ["a", "b"]


def test_of_two_writers_with_the_same_transaction_one_fails(store: StoreLocation) -> None:
    first, second = open_table(store, "failures"), open_table(store, "failures")
    commit_actions(first, "failures", [write_failure(store, "a")], {}, Transaction("app", 1))
    with pytest.raises(CommitFailedError):
        commit_actions(second, "failures", [write_failure(store, "b")], {}, Transaction("app", 1))
    assert list_ids(store) == ["a"]


def test_restoring_brings_back_the_files_of_a_version_as_a_new_commit(store: StoreLocation) -> None:
    table = open_table(store, "failures")
    for track_id in "abc":
        commit_actions(table, "failures", [write_failure(store, track_id)], {})
    table.optimize.compact()
    restore_table(table, 1, {"event": "undo"}, Transaction("app", 1))
    assert list_ids(store) == ["a"]
    table = open_table(store, "failures")
    assert (table.version(), table.history(1)[0]["event"]) == (5, "undo")
    assert table.transaction_version("app") == 1


def test_restoring_loses_to_a_writer_who_was_faster(store: StoreLocation) -> None:
    table = open_table(store, "failures")
    commit_actions(table, "failures", [write_failure(store, "a")], {})
    stale = open_table(store, "failures")
    commit_actions(table, "failures", [write_failure(store, "b")], {})
    with pytest.raises(CommitFailedError):
        restore_table(stale, 0, {})
    assert list_ids(store) == ["a", "b"]


def test_columns_are_read_as_asked_with_the_types_of_the_schema(store: StoreLocation) -> None:
    rows = [
        {"recipe": "r1", "track_id": "a", "resolutions": ["8hz", "global"], "rms": 0.5, "size_bytes": 3},
        {"recipe": "r1", "track_id": "b", "resolutions": [], "rms": None, "size_bytes": None},
    ]
    table = open_table(store, "tracks")
    parts = []
    for recipe, some in (("r1", rows), ("r2", [{"recipe": "r2", "track_id": "c"}])):
        part_rows = pa.Table.from_pylist(some, schema=TRACKS)
        parts.append(write_part(part_rows, "tracks", store.table_url("tracks"), {"recipe": recipe}, "run1"))
    commit_actions(table, "tracks", [part.as_add_action() for part in parts], {})

    columns = ["resolutions", "track_id", "rms", "size_bytes", "recipe"]
    found = read_columns(table, columns, "r1")
    assert found.column_names == columns
    assert [field.type for field in found.schema] == [TRACKS.field(name).type for name in columns]
    assert sorted(found.to_pylist(), key=lambda row: str(row["track_id"])) == rows
    assert sorted(read_columns(table, ["track_id"]).column("track_id").to_pylist()) == ["a", "b", "c"]
    assert read_columns(table, ["track_id"], "r3").num_rows == 0


def test_one_recipe_is_read_of_a_table_without_partitions_too(store: StoreLocation) -> None:
    table = open_table(store, "failures")
    commit_actions(table, "failures", [write_failure(store, "a"), write_failure(store, "b", "r2")], {})
    assert read_columns(table, ["track_id"], "r2").to_pylist() == [{"track_id": "b"}]


def test_a_file_that_is_gone_is_a_storage_error(store: StoreLocation) -> None:
    table = open_table(store, "failures")
    commit_actions(table, "failures", [write_failure(store, "a")], {})
    (path,) = [Path(store.table_url("failures")) / action["path"] for action in read_added(store)]
    path.unlink()
    with pytest.raises(StorageError, match="failures") as caught:
        read_columns(table, ["track_id"])
    assert_is_one_line(caught.value)


def read_added(store: StoreLocation) -> list[dict[str, str]]:
    """Read the files that the first commit added from the log itself."""
    log = Path(store.table_url("failures")) / "_delta_log" / f"{1:020d}.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["add"] for line in lines if "add" in line]
