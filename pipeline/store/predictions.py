"""Predictions: what heads say of tracks, as a Delta Lake table ``predictions`` beside the store's own.

The table is a view of the features: what is lost of it is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.schema import TIMESTAMP
from pipeline.store.tables import describe_store_error, has_table, open_view

TABLE_NAME = "predictions"
PREDICTIONS = pa.schema(
    [
        pa.field("head", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("recipe", pa.string(), nullable=False),  # of the features; several are joined by a plus sign
        pa.field("track_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # null: the head found nothing, in a row that says that it looked
        pa.field("score", pa.float32()),  # a probability; of the task regression the number itself
        pa.field("start_s", pa.float64()),  # null where it is of the whole track
        pa.field("end_s", pa.float64()),  # that of a beat is its start
        pa.field("event_time", TIMESTAMP),
    ]
)
"""Table ``predictions``, partitioned by ``head``: one row a track and label, or a track and span of time."""

_WHOLE_TRACK = ("tagging", "classification", "key", "regression")


def open_predictions(store: StoreLocation) -> DeltaTable:
    """Open the table, making it where it is not there yet.

    Raises:
        StorageError: It cannot be opened or made.
    """
    return open_view(store, TABLE_NAME, PREDICTIONS, "head")


def read_predictions(store: StoreLocation, track_id: str) -> pa.Table:
    """Return what all heads say of one track: rows of ``PREDICTIONS``, in no order; none where there is no table.

    Raises:
        StorageError: The table cannot be read.
    """
    if not has_table(store, TABLE_NAME):
        return PREDICTIONS.empty_table()
    return _scan(
        open_predictions(store), PREDICTIONS.names, f"track_id = '{_quote(track_id)}' AND label IS NOT NULL"
    )


def read_scores(store: StoreLocation, label: str) -> pa.Table:
    """Return every track's score of a label of whole tracks, by the head that predicted it last.

    Args:
        store: The store.
        label: A tag, class or key.

    Returns:
        Table of track_id, content_hash and score, a row a track.

    Raises:
        UsageError: No head has predicted such a label.
        StorageError: The table cannot be read.
    """
    columns = ["track_id", "content_hash", "score", "head", "event_time"]
    rows = None
    if has_table(store, TABLE_NAME):
        tasks = ", ".join(f"'{task}'" for task in _WHOLE_TRACK)
        rows = _scan(open_predictions(store), columns, f"label = '{_quote(label)}' AND task IN ({tasks})")
    if rows is None or not rows.num_rows:
        raise UsageError(
            f"expected a label that a head has predicted for whole tracks, found {label!r}; musicfm predict "
            "--head applies a head, which musicfm probe --save trains"
        )
    newest = (
        rows.group_by("head")
        .aggregate([("event_time", "max")])
        .sort_by([("event_time_max", "descending"), ("head", "ascending")])
    )
    own = rows.filter(pc.equal(rows.column("head"), newest.column("head")[0]))
    return own.select(["track_id", "content_hash", "score"])


def sum_up_predictions(store: StoreLocation) -> pa.Table:
    """Add up what heads say, in bounded memory.

    Returns:
        Table of head, task, label, num_rows, score (the sum) and seconds (the sum, of what has a time), a row a
        head and label; empty where there is no table.

    Raises:
        StorageError: The table cannot be read.
    """
    keys, sums = ["head", "task", "label"], ["num_rows", "score", "seconds"]
    schema = pa.schema([*(PREDICTIONS.field(name) for name in keys), ("num_rows", pa.int64())])
    empty = schema.append(pa.field("score", pa.float64())).append(pa.field("seconds", pa.float64())).empty_table()
    if not has_table(store, TABLE_NAME):
        return empty
    table = open_predictions(store)
    columns = [*keys, "score", "start_s", "end_s"]
    schema = pa.schema([PREDICTIONS.field(name) for name in columns])
    parts = [empty]
    try:
        for batch in pa.RecordBatchReader.from_stream(table.scan(columns, "label IS NOT NULL")).cast(schema):
            seconds = pc.fill_null(pc.subtract(batch.column("end_s"), batch.column("start_s")), 0.0)
            rows = pa.table(
                [*(batch.column(name) for name in keys), batch.column("score"), seconds],
                [*keys, "score", "seconds"],
            )
            added = rows.group_by(keys).aggregate([([], "count_all"), ("score", "sum"), ("seconds", "sum")])
            parts.append(added.rename_columns([*keys, *sums]).cast(empty.schema))
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise describe_store_error(table.table_uri, error) from error
    total = pa.concat_tables(parts).group_by(keys).aggregate([(name, "sum") for name in sums])
    return total.rename_columns([*keys, *sums])


def _scan(table: DeltaTable, columns: Sequence[str], predicate: str) -> pa.Table:
    schema = pa.schema([PREDICTIONS.field(name) for name in columns])
    try:
        return pa.RecordBatchReader.from_stream(table.scan(list(columns), predicate)).cast(schema).read_all()
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise describe_store_error(table.table_uri, error) from error


def _quote(text: str) -> str:
    return text.replace("'", "''")
