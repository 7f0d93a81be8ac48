"""Writing predictions: a head's partition of the table, brought up to date in commits that are whole.

Rows of a track come and leave whole, each change in one commit; every commit of a head takes the next number of an
application transaction, so of two runs of one head the slower one fails, and no row stands twice.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from pipeline.errors import RunError
from pipeline.location import StoreLocation
from pipeline.storage import join_url, read_file, write_file
from pipeline.store.predictions import PREDICTIONS, TABLE_NAME, open_predictions
from pipeline.store.retry import commit_once
from pipeline.store.table_commits import vacuum_table
from pipeline.store.tables import describe_store_error, has_table

TARGET_FILE_BYTES = 16 * 2**20
KEPT_HOURS = 168  # a reader of replaced files has a week to finish
_STORED = pa.schema([field for field in PREDICTIONS if field.name != "head"])
File = dict[str, object]


class PredictionWriter:
    """A head's partition of the table, for one run.

    Args:
        store: Where it lies.
        head: Id of the head; None to change rows of all heads.

    Raises:
        StorageError: The table cannot be opened or made.
    """

    def __init__(self, store: StoreLocation, head: str | None) -> None:
        self.store, self.head = store, head
        self.run_id = uuid.uuid4().hex[:12]
        self.table = open_predictions(store)

    def read_held(self) -> dict[str, str]:
        """Return the content that each track was predicted for."""
        held: dict[str, str] = {}
        for file in self._list_files():
            rows = self._read(file, ["track_id", "content_hash"])
            held.update(
                zip(*(rows.column(name).to_pylist() for name in ("track_id", "content_hash")), strict=True)
            )
        return held

    def add(self, rows: pa.Table) -> None:
        """Add rows of whole tracks that have none yet, in one commit.

        Args:
            rows: Of ``PREDICTIONS``, all of this head.

        Raises:
            RunError: Another run of this head committed meanwhile.
            StorageError: The table cannot be written.
        """
        assert self.head is not None
        if rows.num_rows:
            self._commit([self._write(rows, self.head)], "predict")

    def remove(self, track_ids: Sequence[str]) -> int:
        """Take all rows of some tracks out, in one commit.

        Args:
            track_ids: Which tracks; those without rows are ignored.

        Returns:
            How many rows left.

        Raises:
            RunError: Another run of this head committed meanwhile.
            StorageError: The table cannot be read or written.
        """
        ids = pa.array(sorted(set(track_ids)), pa.string())
        actions: list[AddAction | RemoveAction] = []
        num_removed = 0
        for file in self._list_files() if len(ids) else []:
            low, high = file["min.track_id"], file["max.track_id"]
            if (
                low is not None
                and not pc.any(pc.and_(pc.greater_equal(ids, low), pc.less_equal(ids, high))).as_py()
            ):
                continue
            rows = self._read(file)
            leaves = pc.is_in(rows.column("track_id"), ids)
            if not pc.any(leaves).as_py():
                continue
            num_removed += pc.sum(leaves).as_py()
            actions.append(_build_removal(file))
            rest = rows.filter(pc.invert(leaves))
            if rest.num_rows:
                actions.append(self._write(rest, str(file["partition.head"])))
        if actions:
            self._commit(actions, "remove")
        return num_removed

    def merge(self) -> int:
        """Rewrite each head's small files as few larger ones, in one commit.

        Returns:
            How many files were replaced.

        Raises:
            RunError: Another run changed the same files meanwhile.
            StorageError: The table cannot be read or written.
        """
        actions: list[AddAction | RemoveAction] = []
        num_replaced = 0
        for group in _group_small(self._list_files()):
            rows = pa.concat_tables([self._read(file) for file in group])
            actions += [_build_removal(file) for file in group]
            actions.append(self._write(rows, str(group[0]["partition.head"])))
            num_replaced += len(group)
        if actions:
            self._commit(actions, "merge")
        return num_replaced

    def vacuum(self, kept_hours: int = KEPT_HOURS) -> None:
        """Remove files that left the table so long ago.

        Raises:
            StorageError: The table cannot be read or written.
        """
        vacuum_table(self.table, kept_hours)

    def _list_files(self) -> list[File]:
        files: list[File] = pa.table(self.table.get_add_actions(flatten=True)).to_pylist()
        return [file for file in files if self.head is None or file["partition.head"] == self.head]

    def _read(self, file: File, columns: Sequence[str] | None = None) -> pa.Table:
        data = read_file(join_url(self.store.table_url(TABLE_NAME), str(file["path"])), self.store.options)
        try:
            return pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise describe_store_error(self.table.table_uri, error) from error

    def _write(self, rows: pa.Table, head: str) -> AddAction:
        """Write rows as a file; no reader sees it before a commit adds it."""
        rows = (
            rows.select(_STORED.names).cast(_STORED).sort_by([("track_id", "ascending"), ("start_s", "ascending")])
        )
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd", store_schema=False)
        path = f"head={head}/part-{self.run_id}-{uuid.uuid4().hex}.parquet"
        write_file(join_url(self.store.table_url(TABLE_NAME), path), buffer.getvalue(), self.store.options)
        ids = rows.column("track_id")
        stats = {
            "numRecords": rows.num_rows,
            "minValues": {"track_id": ids[0].as_py()},
            "maxValues": {"track_id": ids[-1].as_py()},
            "nullCount": {"track_id": 0},
        }
        return AddAction(path, buffer.tell(), {"head": head}, int(time.time() * 1000), True, json.dumps(stats))

    def _commit(self, actions: list[AddAction | RemoveAction], event: str) -> None:
        commit: Callable[..., object] = partial(
            self.table.create_write_transaction,
            actions,
            mode="append",
            schema=self.table.schema(),
            partition_by=["head"],
        )
        # Of a change to all heads no claim is needed: a file leaves a table once.
        claim = None
        if self.head is not None:
            app_id = f"music-feature-store.predictions.{self.head}"
            claim = Transaction(app_id, (self.table.transaction_version(app_id) or 0) + 1)
        try:
            commit_once(self.table, commit, {"event": event, "run_id": self.run_id}, claim)
        except CommitFailedError as error:
            raise RunError(
                f"another run has written predictions to {self.table.table_uri} meanwhile; what this one had "
                f"committed is kept: run the same command again ({error})"
            ) from error
        except (DeltaError, OSError) as error:
            raise describe_store_error(self.table.table_uri, error) from error


def _build_removal(file: File) -> RemoveAction:
    head, size_bytes = str(file["partition.head"]), int(str(file["size_bytes"]))
    return RemoveAction(str(file["path"]), True, int(time.time() * 1000), size_bytes, {"head": head})


def _group_small(files: Sequence[File]) -> list[list[File]]:
    """Group files of one head that are to become one: small ones, in the order of their tracks."""
    groups: list[list[File]] = []
    is_small = [file for file in files if int(str(file["size_bytes"])) < TARGET_FILE_BYTES // 2]
    size_bytes = 0
    for file in sorted(is_small, key=lambda file: (str(file["partition.head"]), str(file["min.track_id"]))):
        same_head = bool(groups) and groups[-1][0]["partition.head"] == file["partition.head"]
        if not same_head or size_bytes >= TARGET_FILE_BYTES:
            groups.append([])
            size_bytes = 0
        groups[-1].append(file)
        size_bytes += int(str(file["size_bytes"]))
    return [group for group in groups if len(group) > 1]


def merge_predictions(store: StoreLocation, vacuum_hours: int | None = None) -> int:
    """Merge small files of a store's predictions, if it has any.

    Args:
        store: The store.
        vacuum_hours: Files that left the table longer ago are removed; None removes none.

    Returns:
        How many files were replaced.

    Raises:
        RunError: A run of a head changed the same files meanwhile.
        StorageError: The table cannot be read or written.
    """
    if not has_table(store, TABLE_NAME):
        return 0
    writer = PredictionWriter(store, None)
    num_replaced = writer.merge()
    if vacuum_hours is not None:
        writer.vacuum(vacuum_hours)
    return num_replaced


def remove_predictions(store: StoreLocation, track_ids: Sequence[str], vacuum: bool = False) -> int:
    """Take all that heads say of some tracks out of a store, if it has predictions.

    Args:
        store: The store.
        track_ids: Which tracks.
        vacuum: Whether files that held them go as well, and with them the table's earlier versions.

    Returns:
        How many rows left.

    Raises:
        RunError: A run of a head rewrote the same files meanwhile.
        StorageError: The table cannot be read or written.
    """
    if not has_table(store, TABLE_NAME):
        return 0
    writer = PredictionWriter(store, None)
    num_removed = writer.remove(track_ids)
    if vacuum:
        writer.vacuum(0)
    return num_removed
