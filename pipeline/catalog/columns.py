"""Columns of ten million rows: nothing is copied, or looked up, that need not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_REPEATED_ROWS = 2**16


def filter_rows(table: pa.Table, mark: Callable[[pa.Table], pa.ChunkedArray]) -> pa.Table:
    """Keep some rows of a table, chunk by chunk: chunks of which all rows stay are not copied.

    Args:
        table: The rows.
        mark: Says of each row of such a table whether it stays.
    """
    kept = []
    for batch in table.to_batches():
        rows = pa.Table.from_batches([batch])
        mask = mark(rows)
        kept.append(rows if pc.all(mask, skip_nulls=False).as_py() else rows.filter(mask))
    return pa.concat_tables([table.schema.empty_table(), *kept])


def take_rows(table: pa.Table, rows: pa.Array) -> pa.Table:
    """Take rows of a table by their numbers; all of them, in their order, are the table itself."""
    if len(rows) == table.num_rows and pc.all(pc.equal(pc.pairwise_diff(rows), 1)).as_py() is not False:
        return table
    return table.take(rows)


def repeat_value(value: Any, num_rows: int, kind: pa.DataType) -> pa.ChunkedArray:
    """Return as many rows of one value, in pieces that share their memory."""
    column = pa.array([value] * min(num_rows, _REPEATED_ROWS), kind)
    pieces = [column.slice(0, num_rows - start) for start in range(0, num_rows, _REPEATED_ROWS)]
    return pa.chunked_array(pieces, kind)
