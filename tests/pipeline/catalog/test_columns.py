"""Columns of large tables: the same rows as by the plain way, and no copy where none is needed."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog import columns
from pipeline.catalog.columns import filter_rows, repeat_value, take_rows


def build_table(chunks: list[list[int]]) -> pa.Table:
    return pa.table({"number": pa.chunked_array([pa.array(chunk, pa.int64()) for chunk in chunks], pa.int64())})


def find_addresses(table: pa.Table) -> list[int]:
    return [chunk.buffers()[1].address for chunk in table["number"].chunks if len(chunk)]


@given(st.lists(st.lists(st.integers(-3, 3), max_size=5), max_size=5))
def test_rows_are_filtered_and_whole_chunks_stay_where_they_are(chunks: list[list[int]]) -> None:
    table = build_table(chunks)
    kept = filter_rows(table, lambda rows: pc.greater(rows["number"], 0))
    assert kept.schema == table.schema
    assert kept["number"].to_pylist() == [value for chunk in chunks for value in chunk if value > 0]
    whole = [build_table([chunk]) for chunk in chunks if chunk and min(chunk) > 0]
    assert len(whole) <= len(set(find_addresses(kept)) & set(find_addresses(table)))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data())
def test_rows_are_taken_by_number_and_all_of_them_are_the_table(values: list[int], data: st.DataObject) -> None:
    table = build_table([values])
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=8))
    taken = take_rows(table, pa.array(rows, pa.int64()))
    assert taken["number"].to_pylist() == [values[row] for row in rows]
    assert take_rows(table, pa.array(range(len(values)), pa.int64())) is table


@given(st.sampled_from([None, [], ["a", "b"]]), st.integers(0, 9))
def test_a_value_is_repeated_in_pieces_that_share_their_memory(value: list[str] | None, num_rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_REPEATED_ROWS", 4)
        column = repeat_value(value, num_rows, pa.list_(pa.string()))
    assert column.type == pa.list_(pa.string())
    assert column.to_pylist() == [value] * num_rows
    assert len({chunk.values.buffers()[1].address for chunk in column.chunks if len(chunk.values)}) <= 1
