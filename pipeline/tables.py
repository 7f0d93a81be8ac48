"""The store's Delta Lake tables: where they are, how they are made and recognised, and one atomic commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from pipeline.errors import StorageError, StoreFormatError
from pipeline.schema import PARTITION_COLUMNS, TABLES
from pipeline.storage import StoreLocation, delta_storage_options

STORE_FORMAT = 1
FORMAT_PROPERTY = "musicfm.storeFormat"


def create_tables(store: StoreLocation) -> None:
    """Create the tables that are not there yet, and check the format of those that are.

    Raises:
        StoreFormatError: A table has another format.
        StorageError: The store cannot be written.
    """
    for name, schema in TABLES.items():
        try:
            if DeltaTable.is_deltatable(store.table_url(name), delta_storage_options(store.options)):
                open_table(store, name)
                continue
            DeltaTable.create(
                store.table_url(name),
                schema,
                mode="ignore",
                partition_by=PARTITION_COLUMNS[name],
                configuration={FORMAT_PROPERTY: str(STORE_FORMAT)},
                storage_options=delta_storage_options(store.options),
                raise_if_key_not_exists=False,
            )
        except (DeltaError, OSError) as error:
            raise _describe_store_error(store, error) from error


def open_table(store: StoreLocation, table_name: str, version: int | None = None) -> DeltaTable:
    """Open one table at its newest or at a given version.

    Raises:
        StorageError: There is no such table, or it cannot be read.
        StoreFormatError: It was written in another format.
    """
    url = store.table_url(table_name)
    try:
        table = DeltaTable(url, version=version, storage_options=delta_storage_options(store.options))
    except TableNotFoundError as error:
        raise StorageError(
            f"no feature store at {store.url}: expected a Delta table at {url}; make one with jobs/embed_catalog.py"
        ) from error
    except (DeltaError, OSError) as error:
        raise _describe_store_error(store, error) from error
    found = table.metadata().configuration.get(FORMAT_PROPERTY)
    if found != str(STORE_FORMAT):
        raise StoreFormatError(
            f"the store at {store.url} has format {found or 'unknown'}, this version reads and writes format "
            f"{STORE_FORMAT}; use the version that wrote it, or another --store"
        )
    return table


def has_tables(store: StoreLocation) -> bool:
    """Say whether there is a store: its ledger is made before any other commit.

    Raises:
        StorageError: The place cannot be read at all.
    """
    try:
        return DeltaTable.is_deltatable(store.table_url("tracks"), delta_storage_options(store.options))
    except (DeltaError, OSError) as error:
        raise _describe_store_error(store, error) from error


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
    """
    table.create_write_transaction(
        list(actions),
        mode="append",
        schema=table.schema(),
        partition_by=PARTITION_COLUMNS[table_name],
        commit_properties=CommitProperties(
            custom_metadata=dict(metadata), app_transactions=[transaction] if transaction else None
        ),
    )
    table.update_incremental()
    return table.version()


def read_columns(table: DeltaTable, columns: Sequence[str], recipe: str | None = None) -> pa.Table:
    """Read some columns of a table, of one recipe or of all.

    Returns:
        Arrow table with the columns asked for, in that order.
    """
    partitions = [("recipe", "=", recipe)] if recipe is not None else None
    return table.to_pyarrow_table(partitions=partitions, columns=list(columns)).select(list(columns))


def _describe_store_error(store: StoreLocation, error: Exception) -> StorageError:
    detail = " ".join(str(error).split())[:300]
    return StorageError(f"cannot use the store at {store.url}: {type(error).__name__}: {detail}")
