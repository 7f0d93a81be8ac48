"""How planned rows are cut into blocks, and how tables travel between stages."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.blocks import cut_between_chunks, cut_by_bytes, join_tables, share_plan
from pipeline.run.ray_private import map_blocks
from pipeline.schema import DECODED, PLAN

sizes = st.lists(st.integers(0, 100), min_size=1, max_size=40)


@given(sizes, st.data(), st.integers(1, 300))
def test_a_block_is_cut_where_its_files_are_too_large(
    read_bytes: list[int], data: st.DataObject, max_bytes: int
) -> None:
    first = data.draw(st.integers(0, len(read_bytes) - 1))
    whole = range(first, len(read_bytes))
    blocks = cut_by_bytes(whole, read_bytes, max_bytes)
    assert [row for block in blocks for row in block] == list(whole)
    totals = [sum(read_bytes[row] for row in block) for block in blocks]
    for block, total in zip(blocks, totals, strict=True):
        assert total <= max_bytes or not any(read_bytes[row] for row in block[1:])
    for total, after in zip(totals, blocks[1:], strict=False):
        assert total + read_bytes[after.start] > max_bytes, "there was room for one more"
        assert read_bytes[after.start], "what comes with the row before stays with it"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 12))
def test_blocks_end_where_row_groups_do(num_rows: list[int], tracks_per_block: int) -> None:
    chunks = np.repeat(np.arange(len(num_rows), dtype=np.int32), num_rows)
    blocks = list(cut_between_chunks(chunks, tracks_per_block))
    assert [row for block in blocks for row in block] == list(range(len(chunks)))
    for block in blocks:
        inside = set(chunks[block.start : block.stop])
        assert not inside & set(chunks[block.stop :])
        assert len(block) < tracks_per_block + max(num_rows)
    assert all(len(block) >= tracks_per_block for block in blocks[:-1])


def build_decoded(track_id: str, waveform: np.ndarray | None) -> pa.Table:
    known: dict[str, Any] = {"track_id": track_id, "wanted": ["r/8hz"], "held": [], "waveform": waveform}
    return pa.table(
        {field.name: pa.array([known.get(field.name)], field.type) for field in DECODED}, schema=DECODED
    )


def count_rows_by_bytes(tables: list[pa.Table], max_bytes: int) -> list[int]:
    counts = [0]
    size_bytes = 0
    for table in tables:
        counts[-1] += 1
        size_bytes += table.nbytes
        if size_bytes >= max_bytes:
            counts.append(0)
            size_bytes = 0
    return counts if counts[-1] else counts[:-1]


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 2000))
def test_joined_tables_are_the_same_rows_and_no_waveform_moves(lengths: list[int], max_bytes: int) -> None:
    random = np.random.default_rng(0)
    tables = [
        build_decoded(f"t{number}", random.random(length, np.float32) if length else None)
        for number, length in enumerate(lengths)
    ]
    joined = list(join_tables(iter(tables), max_bytes))
    assert [table.num_rows for table in joined] == count_rows_by_bytes(tables, max_bytes)
    for table in joined:
        assert {table.column(name).num_chunks for name in DECODED.names if name != "waveform"} == {1}
    places = [chunk.values.buffers()[1] for table in joined for chunk in table.column("waveform").chunks]
    expected = [table.column("waveform").chunk(0).values.buffers()[1] for table in tables]
    assert [place and place.address for place in places] == [place and place.address for place in expected]
    if tables:
        assert pa.concat_tables(joined).equals(pa.concat_tables(tables))


@pytest.mark.ray
def test_planned_rows_arrive_block_by_block_as_they_were(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run.blocks.SHARED_ROWS", 70)  # several objects, each of several blocks
    rows = [
        {
            "track_id": f"{number:03d}",
            "uri": None if number % 7 == 0 else f"/{number}.mp3",
            "size_bytes": number,
            "title": "é" * (number % 3),
            "wanted": ["r4/8hz", "r7/8hz"][: 1 + number % 2],
            "held": [f"r4/8hz@{number}"] * (number % 3),
            "stored": None if number % 5 == 0 else [],
        }
        for number in range(150)
    ]
    many = pa.Table.from_pylist(rows, schema=PLAN)
    arrived: Any = map_blocks(share_plan(many, 30), count_rows).iter_batches(
        batch_size=None, batch_format="pyarrow"
    )
    found = sorted(arrived, key=lambda table: str(table.column("track_id")[0]))  # blocks come in any order
    assert [table.column("num_rows").to_pylist()[0] for table in found] == [30] * 5
    assert pa.concat_tables(found).drop_columns("num_rows").cast(PLAN).equals(many)


def count_rows(rows: pa.Table) -> pa.Table:
    """Return the rows of a block, each with their number."""
    return rows.append_column("num_rows", pa.array([rows.num_rows] * rows.num_rows))
