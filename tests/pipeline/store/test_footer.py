import io
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.footer import MAGIC, join_footers, split_file

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC")),
        pa.field("count", pa.int32()),
        pa.field("sure", pa.bool_()),
        pa.field("share", pa.float64()),
        pa.field("vectors", pa.list_(pa.list_(pa.float32()))),
    ]
)
vectors = st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=3), max_size=3)
rows = st.fixed_dictionaries(
    {
        "name": st.text(max_size=5),
        "time": st.none() | st.integers(0, 2**50),
        "count": st.none() | st.integers(-(2**31), 2**31 - 1),
        "sure": st.none() | st.booleans(),
        "share": st.none() | st.floats(allow_nan=False),
        "vectors": st.none() | vectors,
    }
)
tables = st.lists(rows, max_size=12).map(lambda found: pa.Table.from_pylist(found, SCHEMA))
written = st.fixed_dictionaries(
    {
        "row_group_size": st.integers(1, 15),
        "compression": st.sampled_from(["none", "zstd", "snappy"]),
        "write_page_index": st.booleans(),
        "use_dictionary": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
    }
)


def encode(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, store_schema=False, **options)
    return sink.getvalue()


def join(files: list[bytes]) -> bytes:
    bodies, footers = zip(*(split_file(file) for file in files), strict=True)
    shifts = [sum(map(len, bodies[:number])) for number in range(len(bodies))]
    end = join_footers(footers, shifts)
    assert end is not None
    return MAGIC + b"".join(bodies) + end


@settings(deadline=None, max_examples=20)
@given(tables, written)
def test_a_footer_is_written_as_it_was_found(table: pa.Table, options: dict[str, Any]) -> None:
    file = encode(table, **options)
    assert join([file]) == file


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(tables, written), min_size=2, max_size=3))
def test_a_joined_file_holds_the_rows_of_all_in_order(drawn: list[tuple[pa.Table, dict[str, Any]]]) -> None:
    files = [encode(table, **options) for table, options in drawn]
    joined = join(files)
    expected = pa.concat_tables([pq.read_table(io.BytesIO(file)) for file in files])
    assert pq.read_table(io.BytesIO(joined)).equals(expected)
    assert pl.read_parquet(io.BytesIO(joined)).equals(pl.concat(pl.read_parquet(io.BytesIO(f)) for f in files))
    found, ends = pq.read_metadata(io.BytesIO(joined)), [pq.read_metadata(io.BytesIO(file)) for file in files]
    groups = [end.row_group(number) for end in ends for number in range(end.num_row_groups)]
    assert found.num_rows == expected.num_rows
    for number, group in enumerate(groups):
        for column in range(group.num_columns):
            then, now = (each.column(column) for each in (group, found.row_group(number)))
            assert now.statistics == then.statistics
            assert (now.encodings, now.total_compressed_size) == (then.encodings, then.total_compressed_size)


def test_row_groups_are_found_by_their_statistics(tmp_path: Any) -> None:
    """DuckDB and Polars skip row groups by the footer, and look up the others' pages where it says."""
    names = [f"{number:04d}" for number in range(400)]
    files = [
        encode(pa.table({"name": names[start : start + 100]}), row_group_size=7, write_page_index=True)
        for start in range(0, 400, 100)
    ]
    path = tmp_path / "joined.parquet"
    path.write_bytes(join(files))
    where = "name BETWEEN '0098' AND '0102' OR name = '0399'"
    expected = ["0098", "0099", "0100", "0101", "0102", "0399"]
    found = duckdb.execute(f"SELECT name FROM '{path}' WHERE {where} ORDER BY name").fetchall()
    assert [name for (name,) in found] == expected
    chosen = pl.scan_parquet(path).filter(pl.sql_expr(where)).collect()
    assert chosen["name"].to_list() == expected


def test_files_of_two_schemas_are_not_joined() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), sink, store_schema=True)  # Arrow's schema stands beside
    files = [*(encode(pa.table({name: [1]})) for name in "ab"), sink.getvalue()]
    footers = [split_file(file)[1] for file in files]
    assert join_footers(footers[:1] * 2, [0, 9]) is not None
    assert join_footers(footers[:2], [0, 9]) is None
    assert join_footers(footers[::2], [0, 9]) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file[:0],
        lambda file: file[:-1],
        lambda file: file[4:],
        lambda file: file[:-4] + b"PARE",  # its footer is encrypted
        lambda file: file[:-8] + (2**31).to_bytes(4, "little") + MAGIC,
        lambda file: file[:-8] + (2).to_bytes(4, "little") + MAGIC,
    ],
)
def test_what_is_no_whole_file_is_refused(damage: Any) -> None:
    with pytest.raises(ValueError, match="expected a"):
        split_file(damage(encode(pa.table({"a": [1]}))))
