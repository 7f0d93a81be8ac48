"""Against pyarrow, which writes the same rows as single pages, and against what reads a store."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, convert_to_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.Thrift import TType
from thrift.transport.TTransport import TMemoryBuffer

from pipeline.schema import FRAMES
from pipeline.store import parts
from pipeline.store.long_rows import PAGE_VALUES, encode_long_rows
from pipeline.store.parts import encode_part, list_vectors


def build_rows(lengths: list[int], embed_dim: int, seed: int = 0) -> pa.Table:
    """Return rows of ``frames`` with so many frames each."""
    generator = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "recipe": ["r"] * len(lengths),
        "resolution": ["50hz"] * len(lengths),
        "track_id": [f"Ünü {index:04d} " + "x" * (50 * index) for index in range(len(lengths))],
        "content_hash": [f"{index:064x}" for index in range(len(lengths))],
        "event_time": [datetime(2024, 2, 29, 23, 59, 59, 123456 + index, UTC) for index in range(len(lengths))],
        "num_frames": lengths,
        "frame_rate_hz": [50.0] * len(lengths),
        "embeddings": [generator.normal(size=(length, embed_dim)).tolist() for length in lengths],
    }
    return pa.table({name: pa.array(columns[name], FRAMES.field(name).type) for name in FRAMES.names}, FRAMES)


def encode(rows: pa.Table, frames_per_piece: int = 1000) -> bytes:
    def cut(vectors: np.ndarray) -> Iterator[np.ndarray]:
        return (vectors[first : first + frames_per_piece] for first in range(0, len(vectors), frames_per_piece))

    return encode_long_rows(rows.drop_columns(["embeddings"]), (cut(vectors) for vectors in list_vectors(rows)))


def encode_by_pyarrow(rows: pa.Table) -> bytes:
    """Encode the same rows as ``parts.encode_part`` has shorter ones encoded, a row a row group."""
    buffer = pa.BufferOutputStream()
    facts = [name for name in FRAMES.names if name != "embeddings"]
    pq.write_table(
        rows.drop_columns(["recipe", "resolution"]),
        buffer,
        row_group_size=1,
        compression="zstd",
        store_schema=False,
        use_dictionary=facts,
        use_byte_stream_split=["embeddings.list.element.list.element"],
        write_statistics=facts,
    )
    data: bytes = buffer.getvalue().to_pybytes()
    return data


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    embed_dim=st.integers(1, 200),
    frames_per_piece=st.integers(1, 70),
    page_values=st.sampled_from([1, 64, 1000, PAGE_VALUES]),
)
def test_any_rows_read_back_as_those_that_pyarrow_writes(
    lengths: list[int], embed_dim: int, frames_per_piece: int, page_values: int
) -> None:
    rows = build_rows(lengths, embed_dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.store.long_rows.PAGE_VALUES", page_values)
        data = encode(rows, frames_per_piece)
    ours, theirs = (pq.ParquetFile(io.BytesIO(each)) for each in (data, encode_by_pyarrow(rows)))
    ours.read().validate(full=True)
    assert ours.read().equals(theirs.read(), check_metadata=True)
    assert ours.schema.equals(theirs.schema)
    assert ours.schema_arrow.equals(theirs.schema_arrow, check_metadata=True)


def test_a_row_goes_on_over_pages_and_is_described_as_pyarrow_does() -> None:
    rows = build_rows([1500, 1400], 1024)
    data = encode(rows, 1024)
    ours = pq.ParquetFile(io.BytesIO(data)).metadata
    theirs = pq.ParquetFile(io.BytesIO(encode_by_pyarrow(rows))).metadata
    assert (ours.num_row_groups, ours.num_rows, ours.num_columns) == (2, 2, theirs.num_columns)
    for group in range(2):
        assert ours.row_group(group).num_rows == 1
        for index in range(ours.num_columns):
            mine, other = ours.row_group(group).column(index), theirs.row_group(group).column(index)
            for name in ("path_in_schema", "physical_type", "compression", "num_values"):
                assert getattr(mine, name) == getattr(other, name)
            assert (mine.statistics is None) == (other.statistics is None)
            if mine.statistics is not None:
                assert (mine.statistics.min, mine.statistics.max) == (other.statistics.min, other.statistics.max)
                assert mine.statistics.null_count == other.statistics.null_count == 0
            assert mine.total_uncompressed_size == pytest.approx(other.total_uncompressed_size, rel=0.05, abs=200)
        vectors = ours.row_group(group).column(5)
        assert "BYTE_STREAM_SPLIT" in vectors.encodings
        pages = list_pages(data, vectors)
        assert [page[2] for page in pages] == [256 * 1024] * (len(pages) - 1) + [pages[-1][2]]
        assert sum(page[2] for page in pages) == vectors.num_values
        assert len(pages) == 6
        # The sizes that the footer gives are those of the pages and their headers, to the byte.
        assert sum(page[0] + page[1] for page in pages) == vectors.total_compressed_size


def list_pages(data: bytes, chunk: Any) -> list[tuple[int, int, int]]:
    """Read a chunk's page headers by Thrift's own reader: bytes of header, bytes of page, values."""
    pages, start = [], chunk.data_page_offset
    while start < chunk.data_page_offset + chunk.total_compressed_size:
        buffer = TMemoryBuffer(data[start : start + 200])
        header = read_struct(TCompactProtocol(buffer))
        pages.append((buffer.cstringio_buf.tell(), header[3], header[5][1]))
        start += sum(pages[-1][:2])
    return pages


def read_struct(protocol: TCompactProtocol) -> dict[int, Any]:
    fields: dict[int, Any] = {}
    protocol.readStructBegin()
    while True:
        _, kind, field_id = protocol.readFieldBegin()
        if kind == TType.STOP:
            protocol.readStructEnd()
            return fields
        fields[field_id] = read_struct(protocol) if kind == TType.STRUCT else protocol.readI32()
        protocol.readFieldEnd()


@pytest.fixture(scope="module")
def long_part(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """A file of two rows of several pages, one of a page less, and its rows."""
    rows = build_rows([900, 1, 300], 1024)
    path = tmp_path_factory.mktemp("long") / "part.parquet"
    path.write_bytes(encode(rows, 333))
    return path, rows


def test_duckdb_reads_it(long_part: tuple[Path, pa.Table]) -> None:
    path, rows = long_part
    found = query(f"select track_id, event_time, embeddings from '{path}'").to_arrow_table()
    assert found.column("track_id").to_pylist() == rows.column("track_id").to_pylist()
    assert found.column("embeddings").combine_chunks().equals(rows.column("embeddings").combine_chunks())
    one = query(f"select len(embeddings) from '{path}' where track_id like '% 0001 %'").fetchall()
    assert one == [(1,)]


def query(sql: str) -> duckdb.DuckDBPyRelation:
    relation = duckdb.sql(sql)
    assert relation is not None
    return relation


def test_polars_reads_it(long_part: tuple[Path, pa.Table]) -> None:
    path, rows = long_part
    found = pl.read_parquet(path)
    assert found["num_frames"].to_list() == [900, 1, 300]
    for mine, other in zip(found["embeddings"], list_vectors(rows), strict=True):
        np.testing.assert_array_equal(np.array(mine.to_list(), np.float32), other)


def test_delta_rs_reads_it(long_part: tuple[Path, pa.Table]) -> None:
    path, rows = long_part
    convert_to_deltalake(path.parent)
    frames = QueryBuilder().register("frames", DeltaTable(path.parent))
    found = pa.table(frames.execute("select track_id, embeddings from frames order by track_id").read_all())
    assert found.column("track_id").to_pylist() == rows.column("track_id").to_pylist()
    for mine, other in zip(list_vectors(found), list_vectors(rows), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_row_group_is_found_by_its_track(long_part: tuple[Path, pa.Table]) -> None:
    path, rows = long_part
    wanted = rows.column("track_id")[2].as_py()
    found = pq.read_table(path, filters=pc.field("track_id") == wanted)
    assert found.column("num_frames").to_pylist() == [300]


def test_an_unknown_time_stays_unknown() -> None:
    rows = build_rows([3], 4)
    place = rows.schema.get_field_index("event_time")
    rows = rows.set_column(place, FRAMES.field("event_time"), pa.array([None], FRAMES.field("event_time").type))
    assert pq.read_table(io.BytesIO(encode(rows))).column("event_time").to_pylist() == [None]


def test_rows_that_fill_a_row_group_are_written_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = build_rows([20, 300], 16)
    by_pyarrow = pq.ParquetFile(io.BytesIO(encode_part("frames", rows)))
    assert by_pyarrow.metadata.created_by.startswith("parquet-cpp-arrow")
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 16 * 320)
    by_page = pq.ParquetFile(io.BytesIO(encode_part("frames", rows)))
    assert by_page.metadata.created_by.startswith("music-feature-store")
    assert by_page.read().equals(by_pyarrow.read())
