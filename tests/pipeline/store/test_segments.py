"""Long tracks, against the whole matrices that they were made of."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.location import StoreLocation
from pipeline.schema import FRAMES
from pipeline.store.check import check_store
from pipeline.store.export import iter_tracks
from pipeline.store.maintain import compact_store, delete_tracks
from pipeline.store.read import FeatureStore
from pipeline.store.segments import cut_rows, find_frames, join_rows, plan_segments
from pipeline.store.source import open_source, read_vectors
from pipeline.store.torch_dataset import FrameDataset
from pipeline.store.writer import StoreWriter
from tests.stores import EMBED_DIM, KnownStore, Matrix, make_recipe

RECIPE = make_recipe().recipe_id
CONTENTS = {f"t{index:02d}": f"content {index}" for index in range(14)} | {"long": "long mix", "mid": "mid"}


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownStore:
    """A store whose rows hold half a second; its tracks are up to four seconds long, and one eleven minutes."""
    monkeypatch.setattr("pipeline.store.segments.SEGMENT_S", 0.5)
    store = KnownStore(StoreLocation(str(tmp_path / "store")))
    store.run({**CONTENTS, "t03": "older"}, resolutions=("16hz", "8hz"))
    store.run(CONTENTS, resolutions=("16hz", "8hz"))
    return store


def read_by_frames(store: FeatureStore) -> dict[str, Matrix]:
    rows = store.frames(sorted(CONTENTS), "16hz")
    assert set(rows.column("start_frame").to_pylist()) == {0}
    return {row["track_id"]: np.array(row["embeddings"], np.float32) for row in rows.to_pylist()}


def read_whole(store: FeatureStore) -> dict[str, Matrix]:
    rows = store.to_arrow("16hz").to_pylist()
    assert [row["track_id"] for row in rows] == sorted(CONTENTS)
    assert all(row["num_frames"] == len(row["embeddings"]) for row in rows)
    return {row["track_id"]: np.array(row["embeddings"], np.float32) for row in rows}


def read_as_vectors(store: FeatureStore) -> dict[str, Matrix]:
    ids, vectors = store.vectors("16hz")
    return {track_id: vectors[np.array(ids) == track_id] for track_id in dict.fromkeys(ids.to_pylist())}


def read_data_set(store: FeatureStore) -> dict[str, Matrix]:
    items = list(FrameDataset(store, "16hz"))
    assert len(items) == len(CONTENTS)
    return {item["track_id"]: item["embeddings"].numpy() for item in items}


def read_source(store: FeatureStore) -> dict[str, Matrix]:
    source = open_source(store.location, "16hz")
    found: dict[str, Matrix] = {}
    for batch in read_vectors(source, source.parts.column("path").to_pylist(), source.ledger):
        ids = batch.keys.column("track_id").to_pylist()
        assert not set(ids) & set(found)
        found |= dict(zip(ids, np.split(batch.vectors, np.cumsum(batch.lengths)[:-1]), strict=True))
    return found


def read_export(store: FeatureStore) -> dict[str, Matrix]:
    tracks = list(iter_tracks(open_source(store.location, "16hz")))
    assert len(tracks) == len(CONTENTS)
    return {str(track.facts["track_id"]): track.vectors for track in tracks}


READERS = [read_by_frames, read_whole, read_as_vectors, read_data_set, read_source, read_export]


def assert_all_read(known: KnownStore, readers: Sequence[Callable[[FeatureStore], dict[str, Matrix]]]) -> None:
    expected = known.features[RECIPE, "16hz"]
    for read in readers:
        found = read(FeatureStore(known.location.url))
        assert set(found) == set(expected), read.__name__
        for track_id, matrix in expected.items():
            np.testing.assert_array_equal(found[track_id], matrix, err_msg=read.__name__)


def test_every_reader_gives_whole_tracks(known: KnownStore) -> None:
    assert_all_read(known, READERS)
    assert check_store(known.location, deep=True).problems == []
    rows = DeltaTable(known.location.table_url("frames")).to_pyarrow_table().to_pydict()
    assert max(rows["num_frames"]) == 8
    assert len(rows["track_id"]) > 1000


def test_compacting_and_deleting_keep_whole_tracks(known: KnownStore) -> None:
    compact_store(StoreWriter(known.location, "compact"))
    assert_all_read(known, READERS)
    delete_tracks(StoreWriter(known.location, "delete"), ["t05"])
    del known.features[RECIPE, "16hz"]["t05"]
    assert_all_read(known, [read_by_frames, read_source])
    assert check_store(known.location, deep=True).problems == []


def test_a_span_is_that_of_the_whole_matrix(known: KnownStore) -> None:
    store = FeatureStore(known.location.url)
    ids = sorted(CONTENTS)
    for start_s, end_s in [(0.7, 0.9), (0.5, 1.0), (1.0, None), (None, 2.51), (600.3, 602.0), (0.2, 0.2)]:
        first, stop = find_frames(16.0, start_s, end_s)
        rows = store.frames(ids, "16hz", start_s, end_s).to_pylist()
        assert [row["track_id"] for row in rows] == ids
        for row in rows:
            expected = known.features[RECIPE, "16hz"][row["track_id"]][first:stop]
            assert (row["start_frame"], row["num_frames"]) == (first, len(expected))
            np.testing.assert_array_equal(np.array(row["embeddings"], np.float32).reshape(-1, EMBED_DIM), expected)


def test_what_lies_outside_the_span_is_not_read(known: KnownStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are overwritten: who reads them breaks."""
    monkeypatch.setattr("pipeline.store.parts.ROW_GROUP_VALUES", 1)
    known.run({**CONTENTS, "new": "long and new"}, resolutions=("16hz",))
    for path in map(Path, DeltaTable(known.location.table_url("frames")).file_uris()):
        groups = pq.ParquetFile(path).metadata
        for group in (groups.row_group(index) for index in range(groups.num_row_groups)):
            facts = {group.column(index).path_in_schema: group.column(index) for index in range(6)}
            if facts["track_id"].statistics.min == "new" and facts["start_frame"].statistics.max < 16 * 600:
                chunk = group.column(6)
                with path.open("r+b") as file:
                    file.seek(chunk.data_page_offset)
                    file.write(b"\xff" * chunk.total_compressed_size)
    store = FeatureStore(known.location.url)
    found = store.frames(["new"], "16hz", 601.0, 603.0).column("embeddings")[0].as_py()
    np.testing.assert_array_equal(found, known.features[RECIPE, "16hz"]["new"][601 * 16 : 603 * 16])
    with pytest.raises(StorageError):
        store.frames(["new"], "16hz")


def test_a_track_with_a_gap_is_found(known: KnownStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave_one_out(num_frames: int, frame_rate_hz: float) -> list[range]:
        planned = plan_segments(num_frames, frame_rate_hz)
        return planned[:1] + planned[2:]

    monkeypatch.setattr("pipeline.store.write.plan_segments", leave_one_out)
    known.run({**CONTENTS, "torn": "long and torn"}, resolutions=("16hz",))
    problems = check_store(known.location).problems
    assert problems == [f"frames: 1 tracks of {RECIPE} lack some of their 16hz rows, such as ['torn']"]


def test_a_changed_track_comes_back_without_being_written_twice(known: KnownStore) -> None:
    before = len(DeltaTable(known.location.table_url("frames")).to_pyarrow_table())
    known.run({**CONTENTS, "long": "short"}, resolutions=("16hz", "8hz"))
    known.run(CONTENTS, resolutions=("16hz", "8hz"))
    added = len(DeltaTable(known.location.table_url("frames")).to_pyarrow_table()) - before
    assert 0 < added < 40, "the rows of eleven minutes are there already"
    assert_all_read(known, [read_by_frames])


def read_plainly(known: KnownStore) -> Iterator[tuple[str, list[tuple[int, Matrix]]]]:
    """Read a long track's rows as DuckDB, Polars and pandas do."""
    table = DeltaTable(known.location.table_url("frames"))
    duck = duckdb.sql(
        f"""SELECT start_frame, embeddings FROM read_parquet({table.file_uris()}, hive_partitioning = true)
        WHERE resolution = '16hz' AND track_id = 'long' ORDER BY start_frame"""
    )
    assert duck is not None
    yield "duckdb", [(start, np.array(rows, np.float32)) for start, rows in duck.fetchall()]
    polars = pl.scan_delta(known.location.table_url("frames"))
    polars = polars.filter((pl.col("resolution") == "16hz") & (pl.col("track_id") == "long"))
    rows = polars.sort("start_frame").select("start_frame", "embeddings").collect().rows()
    yield "polars", [(start, np.array(vectors, np.float32)) for start, vectors in rows]
    frame: pd.DataFrame = table.to_pandas(filters=[("resolution", "=", "16hz")])
    frame = frame[frame["track_id"] == "long"].sort_values("start_frame")
    pairs = zip(frame["start_frame"], frame["embeddings"], strict=True)
    yield "pandas", [(start, np.stack(list(vectors))) for start, vectors in pairs]


def test_other_programs_read_the_rows(known: KnownStore) -> None:
    expected = known.features[RECIPE, "16hz"]["long"]
    for name, rows in read_plainly(known):
        assert [start for start, _ in rows] == list(range(0, len(expected), 8)), name
        np.testing.assert_array_equal(np.concatenate([vectors for _, vectors in rows]), expected, err_msg=name)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    segment_s=st.integers(1, 50),
    first=st.integers(0, 45),
    length=st.none() | st.integers(0, 50),
)
def test_joining_what_was_cut_gives_every_span_of_the_whole(
    lengths: list[int], segment_s: int, first: int, length: int | None
) -> None:
    stop = None if length is None else first + length
    matrices = [
        np.arange(3 * count, dtype=np.float32).reshape(count, 3) + index for index, count in enumerate(lengths)
    ]
    rows = pa.Table.from_pylist(
        [
            {
                "recipe": "r",
                "resolution": "1hz",
                "track_id": f"{index:02d}",
                "content_hash": "h",
                "start_frame": 0,
                "num_frames": len(matrix),
                "frame_rate_hz": 1.0,
                "embeddings": matrix.tolist(),
            }
            for index, matrix in enumerate(matrices)
        ],
        schema=FRAMES,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.store.segments.SEGMENT_S", segment_s)
        cut = cut_rows(rows)
    assert cut.num_rows == sum(-(-count // segment_s) for count in lengths)
    assert max(cut.column("num_frames").to_pylist()) <= segment_s
    joined = join_rows(cut, first, stop)
    assert joined.schema == rows.schema
    for row, matrix in zip(joined.to_pylist(), matrices, strict=True):
        assert row["num_frames"] == len(row["embeddings"])
        np.testing.assert_array_equal(np.array(row["embeddings"]).reshape(-1, 3), matrix[first:stop])
