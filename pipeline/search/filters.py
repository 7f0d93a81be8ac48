"""Filters: an SQL expression over tracks' metadata, from people who may be anyone."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Timer

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UsageError

MAX_SECONDS = 5.0
_ROW = "__row"
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "lock_configuration": "true",
    "memory_limit": "2GB",
}


def filter_tracks(tracks: pa.Table, where: str, columns: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Mark the rows of a table for which an expression is true; where it is unknown (null) is no.

    DuckDB takes one expression here, never a statement, and may reach nothing but the table: no file, no network,
    no setting.

    Args:
        tracks: Table.
        where: The expression, such as ``artist IS DISTINCT FROM 'X' AND duration_s > 60``.
        columns: Names that it may use.

    Returns:
        bool of shape (num_rows,).

    Raises:
        UsageError: It is no expression, names another column, is no condition, or takes too long.
    """
    numbered = tracks.select(list(columns)).append_column(_ROW, pa.array(np.arange(tracks.num_rows)))
    with duckdb.connect(":memory:", config=_SETTINGS) as connection:
        clock = Timer(MAX_SECONDS, connection.interrupt)
        clock.start()
        try:
            found = connection.from_arrow(numbered).filter(where).project(_ROW).to_arrow_table()
        except duckdb.InterruptException:
            raise UsageError(f"expected a filter that takes under {MAX_SECONDS:g} s, found {where!r}") from None
        except duckdb.Error as error:
            said = str(error).split("\n")[0]
            raise UsageError(
                f"expected one SQL condition over {', '.join(columns)}, found {where!r}: {said}"
            ) from error
        finally:
            clock.cancel()
    mask = np.zeros(tracks.num_rows, np.bool_)
    mask[found.column(_ROW).to_numpy()] = True
    return mask
