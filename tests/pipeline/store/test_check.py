import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StorageError, StoreFormatError
from pipeline.location import StoreLocation
from pipeline.schema import TABLES
from pipeline.store import ledger
from pipeline.store.check import check_store
from pipeline.store.parts import write_part
from pipeline.store.table_commits import commit_actions
from pipeline.store.tables import FORMAT_PROPERTY, create_tables, open_table
from pipeline.store.withheld import withhold
from pipeline.store.writer import StoreWriter
from tests.stores import BAD, EMBED_DIM, KnownStore, make_recipe

SEVEN, FOUR = make_recipe(7), make_recipe(4)
CONTENTS = {track_id: f"{track_id} 1" for track_id in "abcdefgh"}
LATER = {**CONTENTS, "b": "b 2", "bad": BAD}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> KnownStore:
    known = KnownStore(StoreLocation(str(tmp_path_factory.mktemp("check") / "store")))
    known.run(CONTENTS)
    writer = StoreWriter(known.location, "takedown")
    withhold(writer, pa.table({"track_id": ["gone"], "content_hash": ["gone 1"]}), "asked to")
    writer.commit_ledger([], "delete")
    known.run(LATER, [SEVEN, FOUR], ["16hz", "8hz", "global"])
    return known


@pytest.fixture
def known(template: KnownStore, tmp_path: Path) -> KnownStore:
    """A copy to damage."""
    copy = deepcopy(template)
    copy.location = StoreLocation(str(tmp_path / "store"))
    shutil.copytree(template.location.url, copy.location.url)
    return copy


def list_problems(known: KnownStore, deep: bool = False) -> list[str]:
    problems = check_store(known.location, deep).problems
    assert not any("\n" in problem for problem in problems)
    return problems


def find_part(known: KnownStore, table_name: str, condition: str = "") -> Path:
    uris = sorted(open_table(known.location, table_name).file_uris())
    return Path(next(uri for uri in uris if condition in uri).removeprefix("file://"))


def add_rows(known: KnownStore, table_name: str, rows: pa.Table) -> None:
    """Commit rows of one partition, then name the newest ``frames`` in the ledger, as a faulty writer would."""
    first = rows.select(["recipe"] + ["resolution"] * (table_name == "frames")).to_pylist()[0]
    partition = first if table_name != "failures" else {}
    url = known.location.table_url(table_name)
    part = write_part(rows.cast(TABLES[table_name]), table_name, url, partition, "stranger")
    commit_actions(open_table(known.location, table_name), table_name, [part.as_add_action()], {})
    metadata = {"frames_version": str(open_table(known.location, "frames").version())}
    commit_actions(open_table(known.location, "tracks"), "tracks", [], metadata)


def read_rows(known: KnownStore, table_name: str, **values: str) -> pa.Table:
    rows = open_table(known.location, table_name).to_pyarrow_table().cast(TABLES[table_name])
    for name, value in values.items():
        rows = rows.filter(pc.equal(rows.column(name), value))
    return rows


def change(rows: pa.Table, **values: Any) -> pa.Table:
    """Give all rows new values in some columns."""
    for name, value in values.items():
        field = rows.schema.field(name)
        column = pa.array([value] * rows.num_rows, field.type)
        rows = rows.set_column(rows.schema.get_field_index(name), field, column)
    return rows


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_store_has_no_problems(known: KnownStore, deep: bool) -> None:
    report = check_store(known.location, deep)
    assert report.problems == []
    assert report.num_tracks == {SEVEN.recipe_id: 8, FOUR.recipe_id: 8}
    expected = {f"{recipe}/{resolution}": len(tracks) for (recipe, resolution), tracks in known.features.items()}
    assert expected[f"{SEVEN.recipe_id}/0.5hz"] == 7  # the second run changed b and did not ask for it
    assert report.num_frame_rows == expected
    assert report.num_dead_rows == 3  # b as it was, at the three resolutions of the first run
    assert report.num_failures == 2  # one bad file, two recipes
    assert report.last_run is not None
    assert (report.last_run["planned"], report.last_run["embedded"], report.last_run["failed"]) == (9, 8, 1)
    for name in TABLES:
        files = [
            path for path in Path(known.location.url, name).rglob("*.parquet") if "_delta_log" not in str(path)
        ]
        live = {Path(uri).name for uri in open_table(known.location, name).file_uris()}
        assert report.size_bytes[name] == sum(path.stat().st_size for path in files if path.name in live)


@pytest.mark.parametrize("table_name", list(TABLES))
def test_a_deleted_part_is_named(known: KnownStore, table_name: str) -> None:
    part = find_part(known, table_name)
    size_bytes = part.stat().st_size
    part.unlink()
    (problem,) = list_problems(known)
    assert problem.startswith(f"{table_name}: expected ")
    assert part.name in problem
    assert f"with {size_bytes} bytes, found no such file" in problem


@pytest.mark.parametrize("table_name", list(TABLES))
def test_a_truncated_part_is_named(known: KnownStore, table_name: str) -> None:
    part = find_part(known, table_name)
    part.write_bytes(part.read_bytes()[:-10])
    (problem,) = list_problems(known)
    assert problem.startswith(f"{table_name}: expected ")
    assert f"{part.name} with {part.stat().st_size + 10} bytes, found {part.stat().st_size}" in problem


@pytest.mark.parametrize("table_name", ["tracks", "frames", "failures"])
def test_a_part_with_another_content_of_the_same_size_is_found(known: KnownStore, table_name: str) -> None:
    part = find_part(known, table_name)
    part.write_bytes(part.read_bytes()[:-8] + bytes(8))
    (problem,) = list_problems(known)
    assert part.name in problem
    assert "Parquet error" in problem


@pytest.mark.parametrize(("table_name", "column"), [("tracks", "title"), ("failures", "error_message")])
def test_damage_in_any_column_is_found_by_a_deep_check(known: KnownStore, table_name: str, column: str) -> None:
    part = find_part(known, table_name)
    metadata = pq.ParquetFile(part).metadata
    (chunk,) = (
        metadata.row_group(0).column(index)
        for index in range(metadata.num_columns)
        if metadata.row_group(0).column(index).path_in_schema == column
    )
    data = bytearray(part.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    part.write_bytes(data)
    assert list_problems(known) == []
    assert len(list_problems(known, deep=True)) == 1
    if table_name == "tracks":
        files = ledger.list_table_files(open_table(known.location, "tracks"), "tracks")
        (damaged,) = (file for file in files if part.name in file["path"])
        with pytest.raises(StorageError, match="damaged"):
            ledger.read_rows("tracks", known.location, damaged)


def test_a_part_whose_vectors_are_damaged_is_named_by_a_deep_check(known: KnownStore) -> None:
    part = find_part(known, "frames", "resolution=8hz")
    metadata = pq.ParquetFile(part).metadata
    leaf = metadata.schema.names.index("element")
    column = metadata.row_group(0).column(leaf)
    data = bytearray(part.read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    part.write_bytes(data)
    assert list_problems(known) == []
    (problem,) = list_problems(known, deep=True)
    assert part.name in problem
    assert "cannot be read" in problem


@pytest.mark.parametrize(
    ("table_name", "values", "example"),
    [
        ("tracks", {"recipe": SEVEN.recipe_id, "track_id": "c"}, "'track_id': 'c'"),
        ("frames", {"recipe": FOUR.recipe_id, "resolution": "8hz", "track_id": "d"}, "'track_id': 'd'"),
        ("failures", {"recipe": FOUR.recipe_id, "track_id": "bad"}, "'track_id': 'bad'"),
    ],
)
def test_a_row_that_stands_twice_is_found(
    known: KnownStore, table_name: str, values: dict[str, str], example: str
) -> None:
    rows = read_rows(known, table_name, **values)
    assert rows.num_rows == 1
    add_rows(known, table_name, rows)
    (problem,) = list_problems(known)
    assert problem.startswith(f"{table_name}: 1 keys of (recipe, ")
    assert "stand more than once" in problem
    assert example in problem


def test_a_part_committed_twice_is_found(known: KnownStore) -> None:
    part = find_part(known, "tracks", SEVEN.recipe_id)
    part.with_name("again.parquet").write_bytes(part.read_bytes())
    table = open_table(known.location, "tracks")
    files = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    file = next(file for file in files if Path(file["path"]).name == part.name)
    rows = read_rows(known, "tracks", recipe=SEVEN.recipe_id)
    spans = pc.and_(
        pc.greater_equal(rows.column("track_id"), file["min.track_id"]),
        pc.less_equal(rows.column("track_id"), file["max.track_id"]),
    )
    add_rows(known, "tracks", rows.filter(spans))
    (problem,) = list_problems(known)
    assert problem.startswith(f"tracks: {file['num_records']} keys of (recipe, track_id) stand more than once")


def test_missing_frames_are_found(known: KnownStore) -> None:
    row = read_rows(known, "tracks", recipe=SEVEN.recipe_id, track_id="c")
    add_rows(known, "tracks", change(row, track_id="ghost"))
    assert list_problems(known, deep=True) == [
        f"frames: 1 tracks of {SEVEN.recipe_id} lack their {resolution} rows, such as ['ghost']"
        for resolution in ("16hz", "8hz", "0.5hz", "global")
    ]


def test_frames_of_another_content_do_not_count(known: KnownStore) -> None:
    row = read_rows(known, "tracks", recipe=FOUR.recipe_id, track_id="c")
    frames = read_rows(known, "frames", recipe=FOUR.recipe_id, resolution="8hz", track_id="c")
    add_rows(known, "frames", change(frames, track_id="x", content_hash="another"))
    add_rows(known, "tracks", change(row, track_id="x", resolutions=["8hz"]))
    assert list_problems(known) == [f"frames: 1 tracks of {FOUR.recipe_id} lack their 8hz rows, such as ['x']"]


VECTOR = [1.0] * EMBED_DIM


@pytest.mark.parametrize(
    ("num_frames", "embeddings"),
    [
        (2, [VECTOR, [*VECTOR[1:], np.nan]]),
        (2, [VECTOR, [*VECTOR[1:], -np.inf]]),
        (2, [VECTOR, [*VECTOR[1:], None]]),
        (2, [VECTOR, VECTOR[1:]]),
        (2, [VECTOR, None]),
        (2, [None, None]),
        (2, [[], []]),
        (3, [VECTOR, VECTOR]),
        (None, [VECTOR, VECTOR]),
        (0, []),
        (2, None),
    ],
)
def test_a_matrix_that_is_none_is_found_by_a_deep_check(
    known: KnownStore, num_frames: int | None, embeddings: list[Any] | None
) -> None:
    row = read_rows(known, "tracks", recipe=FOUR.recipe_id, track_id="c")
    frames = read_rows(known, "frames", recipe=FOUR.recipe_id, resolution="8hz", track_id="c")
    add_rows(known, "frames", change(frames, track_id="x", num_frames=num_frames, embeddings=embeddings))
    add_rows(known, "tracks", change(row, track_id="x", resolutions=["8hz"]))
    assert list_problems(known) == []
    expected = f"frames: {FOUR.recipe_id}/8hz of x is not a whole matrix of finite values"
    assert list_problems(known, deep=True) == [expected]


@pytest.mark.parametrize("embedding", [None, [], [*VECTOR[1:], np.nan], [*VECTOR[1:], None]])
def test_a_broken_global_vector_is_found_by_a_deep_check(known: KnownStore, embedding: list[Any] | None) -> None:
    row = read_rows(known, "tracks", recipe=FOUR.recipe_id, track_id="c")
    frames = read_rows(known, "frames", recipe=FOUR.recipe_id, resolution="global", track_id="c")
    add_rows(known, "frames", change(frames, track_id="x", embeddings=[embedding]))
    add_rows(known, "tracks", change(row, track_id="x", resolutions=["global"]))
    assert list_problems(known) == []
    expected = f"frames: {FOUR.recipe_id}/global of x is not a whole matrix of finite values"
    assert list_problems(known, deep=True) == [expected]


def test_vectors_of_another_length_are_found_by_a_deep_check(known: KnownStore) -> None:
    row = read_rows(known, "tracks", recipe=FOUR.recipe_id, track_id="c")
    resolutions = ["8hz", "global"]
    for resolution in resolutions:
        frames = read_rows(known, "frames", recipe=FOUR.recipe_id, resolution=resolution, track_id="c")
        add_rows(known, "frames", change(frames, track_id="x", num_frames=1, embeddings=[[*VECTOR, 1.0]]))
    add_rows(known, "tracks", change(row, track_id="x", resolutions=resolutions))
    problems = list_problems(known, deep=True)
    assert len(problems) == 2
    for problem, resolution in zip(problems, resolutions, strict=True):
        assert problem.startswith(f"frames: {FOUR.recipe_id}/{resolution}")
        assert re.search(r"expected vectors of one length, found 5 of [a-h], 6 of x$", problem)


def test_books_that_do_not_close_are_found(known: KnownStore) -> None:
    committer = known.run(LATER, close=False)
    committer.counts.planned += 2
    committer.close()
    (problem,) = list_problems(known)
    assert problem.startswith("tracks: the books of the last run do not close: ")
    assert '"planned": 11' in problem


def test_a_store_whose_runs_never_closed_says_so(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    create_tables(known.location)
    for _ in range(2):
        (problem,) = list_problems(known, deep=True)
        assert problem == "tracks: no run has closed yet; run the embedding command again"
        known.run(CONTENTS, close=False)
    assert check_store(known.location).last_run is None


def test_a_run_that_is_at_work_is_no_problem(known: KnownStore) -> None:
    before = check_store(known.location).last_run
    known.run({**LATER, "new": "new 1"}, close=False)
    report = check_store(known.location, deep=True)
    assert report.problems == []
    assert report.num_tracks[SEVEN.recipe_id] == 9
    assert report.last_run == before


def raise_format(location: StoreLocation) -> None:
    open_table(location, "frames").alter.set_table_properties({FORMAT_PROPERTY: "9"}, False)


def remove_table(location: StoreLocation) -> None:
    for path in sorted(Path(location.url, "recipes").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (raise_format, StoreFormatError, "has format 9, this version reads and writes format 4"),
        (remove_table, StorageError, "no feature store at .*expected a Delta table at .*/recipes, found none"),
    ],
)
def test_what_is_no_store_of_this_format_raises(
    known: KnownStore, damage: Callable[[StoreLocation], None], error: type[Exception], message: str
) -> None:
    damage(known.location)
    with pytest.raises(error, match=message):
        check_store(known.location)


def test_a_folder_that_is_no_store_raises(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no feature store at"):
        check_store(StoreLocation(str(tmp_path)))
