"""Blocks of planned rows: as many as a task should take, by whether their files are likely known."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.passes import MAX_TRACKS_LOOKED_AT, MIN_BLOCKS, plan_blocks

KNOWN = pa.array([7, None, 9], pa.int64())


def column(sizes: list[int | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(sizes, pa.int64())])


@given(st.lists(st.sampled_from([7, 8, 9, None]), max_size=600), st.integers(1, 70))
def test_every_row_is_in_one_block_which_is_no_longer_than_it_should_be(
    sizes: list[int | None], tracks_per_block: int
) -> None:
    blocks = list(plan_blocks(column(sizes), tracks_per_block, KNOWN))
    assert [row for block in blocks for row in block] == list(range(len(sizes)))
    for block in blocks:
        num_new = sum(sizes[row] not in (7, 9) for row in block)
        assert num_new <= tracks_per_block
        assert 0 < len(block) <= max(MAX_TRACKS_LOOKED_AT, tracks_per_block)


@given(st.integers(0, 300), st.integers(1, 70))
def test_new_files_come_in_equal_blocks(num_rows: int, tracks_per_block: int) -> None:
    blocks = list(plan_blocks(column([8] * num_rows), tracks_per_block, KNOWN))
    assert [block.start for block in blocks] == list(range(0, num_rows, tracks_per_block))


def test_known_files_come_in_large_blocks_but_in_several() -> None:
    assert len(list(plan_blocks(column([7, 9] * 50_000), 8, KNOWN))) == -(-100_000 // MAX_TRACKS_LOOKED_AT)
    assert len(list(plan_blocks(column([7, 9] * 500), 8, KNOWN))) in range(MIN_BLOCKS, MIN_BLOCKS + 2)
    assert len(list(plan_blocks(column([7, 9] * 20), 8, KNOWN))) == 5
