import io
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.schema import FRAMES, TRACKS
from pipeline.store import parts
from pipeline.store.parts import from_ipc, plan_row_groups, round_mantissa, to_ipc, write_part

finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=finite), st.integers(1, 23))
def test_rounding_is_to_nearest_even_at_every_width(values: np.ndarray, mantissa_bits: int) -> None:
    mantissa, exponent = np.frexp(values.astype(np.float64))
    scale = 2.0 ** (mantissa_bits + 1)
    normal = np.abs(values) >= np.finfo(np.float32).tiny  # frexp does not know subnormal spacing
    expected = np.ldexp(np.rint(mantissa * scale) / scale, exponent).astype(np.float32)
    np.testing.assert_array_equal(round_mantissa(values, mantissa_bits)[normal], expected[normal])


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=finite), st.integers(1, 23))
def test_rounding_twice_changes_nothing(values: np.ndarray, mantissa_bits: int) -> None:
    once = round_mantissa(values, mantissa_bits)
    np.testing.assert_array_equal(round_mantissa(once, mantissa_bits), once)


def test_ten_bits_are_half_precision_where_half_precision_reaches() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    values = values[np.abs(values) > 1e-4]
    np.testing.assert_array_equal(round_mantissa(values, 10), values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("mantissa_bits", [0, 24])
def test_rounding_refuses_widths_that_float32_has_not(mantissa_bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 23"):
        round_mantissa(np.zeros(1, np.float32), mantissa_bits)


def build_frames(num_tracks: int, num_frames: int, embed_dim: int) -> pa.Table:
    values = np.random.default_rng(0).normal(size=num_tracks * num_frames * embed_dim).astype(np.float32)
    matrix = round_mantissa(values, 10).reshape(num_tracks, num_frames, embed_dim)
    columns: dict[str, Any] = {
        "recipe": ["musicfm-l7-test"] * num_tracks,
        "resolution": ["8hz"] * num_tracks,
        "track_id": [f"track{i:04d}" for i in range(num_tracks)],
        "content_hash": ["00"] * num_tracks,
        "start_frame": [0] * num_tracks,
        "event_time": [0] * num_tracks,
        "num_frames": [num_frames] * num_tracks,
        "frame_rate_hz": [8.0] * num_tracks,
        "embeddings": [list(map(list, track)) for track in matrix],
    }
    return pa.table({name: pa.array(columns[name], FRAMES.field(name).type) for name in FRAMES.names})


def encode_part(rows: pa.Table) -> bytes:
    """Write rows as a part; return the file."""
    with tempfile.TemporaryDirectory() as folder:
        part = write_part(rows, "frames", folder, {}, "run1")
        return (Path(folder) / part.path).read_bytes()


def test_a_part_reads_back_as_plain_lists_without_partition_columns() -> None:
    rows = build_frames(5, 7, 8)
    read = pq.read_table(io.BytesIO(encode_part(rows)))
    assert read.schema.names == [name for name in FRAMES.names if name not in ("recipe", "resolution")]
    assert read.column("embeddings").to_pylist() == rows.column("embeddings").to_pylist()
    assert b"ARROW:schema" not in (read.schema.metadata or {})


def test_a_row_group_holds_one_read_of_tracks() -> None:
    one_each = pq.ParquetFile(io.BytesIO(encode_part(build_frames(3, 1500, 1024))))
    assert one_each.num_row_groups == 3
    many = pq.ParquetFile(io.BytesIO(encode_part(build_frames(40, 15, 1024))))
    assert many.num_row_groups == 1


@given(
    num_values=st.lists(st.integers(0, 12), max_size=40), at_once=st.integers(1, 30), max_rows=st.integers(1, 9)
)
def test_row_groups_are_as_full_as_they_may_be(num_values: list[int], at_once: int, max_rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "ROW_GROUP_VALUES", at_once)
        patch.setattr(parts, "MAX_ROWS_PER_GROUP", max_rows)
        groups = [num_values[group] for group in plan_row_groups(num_values)]
    assert [row for group in groups for row in group] == num_values
    for group in groups:
        assert 1 <= len(group) <= max_rows
        assert len(group) == 1 or sum(group) <= at_once
    for group, following in itertools.pairwise(groups):
        assert len(group) == max_rows or sum(group) + following[0] > at_once


def test_vectors_are_split_by_byte_and_compressed() -> None:
    rows = build_frames(2, 200, 256)
    data = encode_part(rows)
    chunk = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(6)
    assert chunk.path_in_schema == "embeddings.list.element.list.element"
    assert "BYTE_STREAM_SPLIT" in chunk.encodings
    assert chunk.compression == "ZSTD"
    assert len(data) / (2 * 200 * 256) < 2.0  # bytes a value


def test_only_what_finds_a_track_has_statistics() -> None:
    group = pq.ParquetFile(io.BytesIO(encode_part(build_frames(3, 4, 8)))).metadata.row_group(0)
    statistics = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}
    assert (statistics["track_id"].min, statistics["track_id"].max) == ("track0000", "track0002")
    assert (statistics["start_frame"].min, statistics["start_frame"].max) == (0, 0)
    assert statistics["embeddings.list.element.list.element"] is None


def test_rounding_into_an_array_gives_what_rounding_gives() -> None:
    values = np.random.default_rng(0).uniform(0.1, 9.0, 100_000).astype(np.float32)  # several blocks
    into = np.zeros(100_002, np.float32)
    rounded = round_mantissa(values, 10, out=into[1:-1])
    np.testing.assert_array_equal(rounded, values.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(into[1:-1], rounded)
    assert into[0] == into[-1] == 0


def test_a_written_part_knows_its_span_and_its_partition(tmp_path: Any) -> None:
    rows = build_frames(4, 2, 2)
    part = write_part(rows, "frames", str(tmp_path), {"recipe": "r", "resolution": "8hz"}, "run1")
    assert (part.min_track_id, part.max_track_id, part.num_rows) == ("track0000", "track0003", 4)
    assert (tmp_path / part.path).stat().st_size == part.size_bytes
    assert part.path.startswith("recipe=r/resolution=8hz/part-run1-")
    action = part.as_add_action()
    assert action.partition_values == {"recipe": "r", "resolution": "8hz"}


def test_tables_survive_the_way_to_the_driver() -> None:
    table = TRACKS.empty_table()
    assert from_ipc(to_ipc(table)).equals(table)
    rows = build_frames(2, 3, 4)
    assert from_ipc(to_ipc(rows)).equals(rows)
