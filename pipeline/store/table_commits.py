"""What changes the store's Delta Lake tables, each in one atomic commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pyarrow as pa
from deltalake import DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from pipeline.location import StoreLocation
from pipeline.schema import PARTITION_COLUMNS, TABLES
from pipeline.store.parts import write_part
from pipeline.store.retry import commit_once, retry_broken
from pipeline.store.tables import FORMAT_PROPERTY, STORE_FORMAT, describe_store_error, open_table

APPENDER_APP_ID = "music-feature-store.appender"


def commit_actions(
    table: DeltaTable,
    table_name: str,
    actions: Sequence[AddAction | RemoveAction],
    metadata: Mapping[str, str],
    transaction: Transaction | None = None,
) -> int:
    """Commit file actions in one transaction and bring the table object up to date.

    Args:
        table: The table at the version that the actions were made for.
        table_name: Its key in ``schema.TABLES``.
        actions: Files to add and to remove; may be empty, for a commit that only says something.
        metadata: Keys and values that the commit carries.
        transaction: Application transaction: of two writers with the same, one fails.

    Returns:
        The version that the commit made.

    Raises:
        deltalake.exceptions.CommitFailedError: Another writer removed one of the files, or used the same
            application transaction, since this table object was opened.
        StorageError: The table cannot be written.
    """
    change = partial(
        table.create_write_transaction,
        list(actions),
        mode="append",
        schema=table.schema(),
        partition_by=PARTITION_COLUMNS[table_name],
    )
    _commit(table, change, metadata, transaction)
    return table.version()


def append_rows(
    store: StoreLocation,
    table_name: str,
    rows: pa.Table,
    metadata: Mapping[str, str],
    read: DeltaTable | None = None,
) -> None:
    """Append a few rows to a table without partitions, in a commit of their own.

    Args:
        store: The store.
        table_name: Key of ``schema.TABLES``.
        rows: Of its schema.
        metadata: Keys and values that the commit carries.
        read: The table as the rows were made for it: who else appends to it in this way must not come before.

    Raises:
        deltalake.exceptions.CommitFailedError: Another one did.
        StorageError: The table cannot be written.
    """
    # A part of our own: delta-rs's writer takes a local path for a URL, and panics where it has a ], for instance.
    run_id = metadata.get("run_id", "")
    part = write_part(rows, table_name, store.table_url(table_name), {}, run_id, store.options)
    actions = [part.as_add_action()]
    if read is None:
        commit_actions(open_table(store, table_name), table_name, actions, metadata)
        return
    claim = Transaction(APPENDER_APP_ID, (read.transaction_version(APPENDER_APP_ID) or 0) + 1)
    commit_actions(read, table_name, actions, metadata, claim)


def restore_table(
    table: DeltaTable, version: int, metadata: Mapping[str, str], transaction: Transaction | None = None
) -> None:
    """Bring a table back to the files of an earlier version, in a new commit.

    Args:
        table: The table at its newest version.
        version: An earlier one.
        metadata: Keys and values that the commit carries.
        transaction: Application transaction.

    Raises:
        deltalake.exceptions.CommitFailedError: Another writer committed since this table object was opened.
        StorageError: The table cannot be written, or files of that version are gone.
    """
    _commit(table, partial(table.restore, version), metadata, transaction)


def vacuum_table(table: DeltaTable, retention_hours: int) -> list[str]:
    """Remove files under a table's folder that are not in its newest version, if they are old enough.

    Args:
        table: The table.
        retention_hours: Files that left the table, or were written, later than so long ago stay.

    Returns:
        Paths of the removed files.

    Raises:
        StorageError: The table cannot be read or written.
    """
    try:
        retry_broken(table.update_incremental)
        # "full": parts of killed runs as well, which no commit ever named.
        clean = partial(table.vacuum, retention_hours, dry_run=False, enforce_retention_duration=False, full=True)
        return list(retry_broken(clean))
    except (DeltaError, OSError) as error:
        raise describe_store_error(table.table_uri, error) from error


def add_missing_columns(table: DeltaTable, schema: pa.Schema, metadata: Mapping[str, str]) -> None:
    """Add the columns that a table of an older format lacks; null in the files that it has.

    Args:
        table: The table at its newest version.
        schema: What its columns are to be.
        metadata: Keys and values that the commit carries.

    Raises:
        deltalake.exceptions.CommitFailedError: Another writer committed since this table object was opened.
        StorageError: The table cannot be written.
    """
    wanted = Schema.from_arrow(schema)
    known = {field.name for field in table.schema().fields}
    missing = [field for field in wanted.fields if field.name not in known]
    if missing:
        _commit(table, partial(table.alter.add_columns, missing), metadata)


def replace_files(
    table: DeltaTable,
    table_name: str,
    actions: Sequence[AddAction],
    metadata: Mapping[str, str],
    transaction: Transaction,
) -> None:
    """Let a table of an older format hold other files than it does, with the present columns and no others.

    Args:
        table: The table at its newest version.
        table_name: Its key in ``schema.TABLES``.
        actions: Its files from now on.
        metadata: Keys and values that the commit carries.
        transaction: Application transaction.

    Raises:
        deltalake.exceptions.CommitFailedError: Another writer used the same application transaction, or changed
            the table's files, since this table object was opened.
        StorageError: The table cannot be written.
    """
    change = partial(
        table.create_write_transaction,
        list(actions),
        mode="overwrite",
        schema=TABLES[table_name],
        partition_by=PARTITION_COLUMNS[table_name],
    )
    _commit(table, change, metadata, transaction)


def declare_format(table: DeltaTable, metadata: Mapping[str, str], transaction: Transaction | None = None) -> None:
    """Say of a table that it has the present format.

    Args:
        table: The table at its newest version.
        metadata: Keys and values that the commit carries.
        transaction: Application transaction.

    Raises:
        deltalake.exceptions.CommitFailedError: Another writer committed since this table object was opened.
        StorageError: The table cannot be written.
    """
    properties = {FORMAT_PROPERTY: str(STORE_FORMAT)}
    _commit(table, partial(table.alter.set_table_properties, properties, False), metadata, transaction)


def _commit(
    table: DeltaTable,
    change: Callable[..., object],
    metadata: Mapping[str, str],
    transaction: Transaction | None = None,
) -> None:
    try:
        commit_once(table, change, metadata, transaction)
    except CommitFailedError:
        raise
    except (DeltaError, OSError) as error:
        raise describe_store_error(table.table_uri, error) from error
