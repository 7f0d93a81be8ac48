"""The store's Delta Lake tables: where they are, how they are made, recognised and read."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from pipeline.errors import StorageError, StoreFormatError
from pipeline.location import StoreLocation, delta_storage_options
from pipeline.schema import PARTITION_COLUMNS, TABLES
from pipeline.store.retry import retry_broken

STORE_FORMAT = 4
OLDER_FORMATS = (1, 2, 3)  # which `upgrade` brings up to date
MAX_LISTED_IDS = 100  # more make a predicate slower than the rows that it spares
FORMAT_PROPERTY = "musicfm.storeFormat"
PUBLISHING_EVENTS = ("close", "maintain", "delete", "drop_recipe")  # commits of the ledger that readers open

# delta-rs takes these for parts of a URL even in a local path: it then loses sight of a table's files or history.
_CONFUSING_IN_URL = re.compile(r"[#?\\\x00-\x1f]|%[0-9A-Fa-f]{2}")


def create_tables(store: StoreLocation) -> None:
    """Create the tables that are not there yet, and check the format of those that are.

    The ledger is made last: where it is, all tables are.

    Raises:
        StoreFormatError: A table has another format; nothing is created beside it.
        StorageError: The store cannot be written, or has lost a table.
    """
    present = [name for name in TABLES if _is_there(store, name)]  # the ledger first
    for name in present:
        open_table(store, name)
    missing = [name for name in reversed(TABLES) if name not in present]
    if missing and "tracks" in present:
        raise StorageError(
            f"expected the tables {', '.join(TABLES)} in the store at {store.url}, found no "
            f"{' and no '.join(missing)} beside the ledger: bring the whole store back from one backup, "
            "or choose another --store"
        )
    for name in missing:
        create_table(store, name)


def create_table(store: StoreLocation, table_name: str) -> None:
    """Create one table where there is none.

    Raises:
        StorageError: The store cannot be written.
    """
    _make_table(
        store, table_name, TABLES[table_name], PARTITION_COLUMNS[table_name], _choose_properties(table_name)
    )


def open_view(store: StoreLocation, table_name: str, schema: pa.Schema, partition_by: str) -> DeltaTable:
    """Open a table that is computed from the store's own and beside them, making it where it is not there yet.

    Args:
        store: The store.
        table_name: None of ``schema.TABLES``.
        schema: Of its rows, ``track_id`` among them.
        partition_by: One of its columns.

    Raises:
        StorageError: It cannot be opened or made.
    """
    properties = {"delta.dataSkippingStatsColumns": "track_id", "delta.checkpointInterval": "10"}
    return _make_table(store, table_name, schema, [partition_by], properties)


def _make_table(
    store: StoreLocation,
    table_name: str,
    schema: pa.Schema,
    partition_by: Sequence[str],
    properties: dict[str, str],
) -> DeltaTable:
    """Open a table, making it where there is none; one that is there stays as it is."""
    url, options = _locate_table(store, table_name), delta_storage_options(store.options)
    make = partial(
        DeltaTable.create,
        url,
        schema,
        mode="ignore",
        partition_by=list(partition_by),
        configuration=properties,
        storage_options=options,
        raise_if_key_not_exists=False,
    )
    try:
        return retry_broken(make)
    except (DeltaError, OSError) as error:
        if _is_there(store, table_name):  # another run has made it at the same moment
            return retry_broken(partial(DeltaTable, url, storage_options=options))
        raise describe_store_error(store.table_url(table_name), error) from error


def _choose_properties(table_name: str) -> dict[str, str]:
    # A checkpoint every ten commits: whoever opens the table reads at most nine more files of its log.
    # No part of the log is dropped for its age, as would be after 30 days: a snapshot can be read until a vacuum.
    properties = {
        FORMAT_PROPERTY: str(STORE_FORMAT),
        "delta.checkpointInterval": "10",
        "delta.enableExpiredLogCleanup": "false",
    }
    if "track_id" in TABLES[table_name].names:
        # Our parts state the span of their track ids alone. Told so, delta-rs's pyarrow reader does not take the
        # statistics that it misses on other columns for "no row can meet this filter".
        properties["delta.dataSkippingStatsColumns"] = "track_id"
    return properties


def open_table(
    store: StoreLocation,
    table_name: str,
    version: int | None = None,
    formats: Collection[int] = (STORE_FORMAT,),
) -> DeltaTable:
    """Open one table at its newest or at a given version.

    Args:
        store: Where the tables are.
        table_name: Key of ``schema.TABLES``.
        version: A version of that table.
        formats: Formats that it may have.

    Raises:
        StorageError: There is no such table, or it cannot be read.
        StoreFormatError: It was written in another format.
    """
    url = _locate_table(store, table_name)
    try:
        options = delta_storage_options(store.options)
        table = retry_broken(partial(DeltaTable, url, version=version, storage_options=options))
    except TableNotFoundError as error:
        raise StorageError(
            f"no feature store at {store.url}: expected a Delta table at {url}, found none; "
            "make one with musicfm embed"
        ) from error
    except (DeltaError, OSError) as error:
        raise describe_store_error(url, error) from error
    stated = read_format(table)
    if stated not in formats:
        raise StoreFormatError(_explain_format(store, stated, version))
    return table


def read_format(table: DeltaTable) -> int | None:
    """Return the store's format that a table was written in; None where it does not say."""
    stated = str(table.metadata().configuration.get(FORMAT_PROPERTY))
    return int(stated) if stated.isdecimal() else None


def _explain_format(store: StoreLocation, found: int | None, version: int | None) -> str:
    reads = f"this version reads and writes format {STORE_FORMAT}"
    has = f"the store at {store.url} has format {found or 'unknown'}, {reads}"
    if found not in OLDER_FORMATS:
        return f"{has}; use the version that wrote it, or another --store"
    if version is None:
        return f"{has}; bring it up to date with musicfm maintain --store {store.url}"
    return (
        f"{has}, and so it was at version {version}: bring it up to date with musicfm maintain "
        f"--store {store.url}, unless somebody has, and open a later snapshot"
    )


def read_history(table: DeltaTable, limit: int | None = None) -> list[dict[str, Any]]:
    """Return what a table's commits say of themselves, newest first.

    Args:
        table: The table.
        limit: How many commits; all by default.

    Raises:
        StorageError: The log cannot be read.
    """
    try:
        return retry_broken(partial(table.history, limit))
    except (DeltaError, OSError) as error:
        raise describe_store_error(table.table_uri, error) from error


def has_tables(store: StoreLocation) -> bool:
    """Say whether there is a store; raises as ``has_table``."""
    return has_table(store, "tracks")


def has_table(store: StoreLocation, table_name: str) -> bool:
    """Say whether a store has a table.

    Raises:
        StorageError: The place cannot be read at all.
    """
    return _is_there(store, table_name)


def refresh(table: DeltaTable) -> None:
    """Bring a table object to the table's newest version.

    Raises:
        StorageError: The log cannot be read.
    """
    try:
        retry_broken(table.update_incremental)
    except (DeltaError, OSError) as error:
        raise describe_store_error(table.table_uri, error) from error


def read_columns(
    table: DeltaTable,
    columns: Sequence[str],
    recipe: str | None = None,
    track_ids: Sequence[str] | None = None,
) -> pa.Table:
    """Read some columns of a table, of one recipe or of all.

    Uses delta-rs's own engine: pyarrow's leaves threads behind that now and then abort the process as it exits
    (apache/arrow issue 34314).

    Args:
        table: The table.
        columns: Names of its columns.
        recipe: Only rows of this recipe.
        track_ids: Files without any of these tracks need not be read; where there are many ids, rows of others
            may come along.

    Returns:
        Arrow table with the columns asked for, in that order; the rows in none.

    Raises:
        StorageError: A file cannot be read.
    """
    conditions = [f"recipe = '{recipe}'"] if recipe is not None else []
    if track_ids:
        is_few = len(track_ids) <= MAX_LISTED_IDS
        named = sorted(track_ids) if is_few else (min(track_ids), max(track_ids))
        quoted = ["'" + track_id.replace("'", "''") + "'" for track_id in named]
        conditions.append(
            f"track_id IN ({', '.join(quoted)})" if is_few else f"track_id BETWEEN {' AND '.join(quoted)}"
        )
    predicate = " AND ".join(conditions) or None
    schema = pa.schema(table.schema().to_arrow())
    schema = pa.schema([schema.field(name) for name in columns])
    try:
        return pa.RecordBatchReader.from_stream(table.scan(list(columns), predicate)).cast(schema).read_all()
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise describe_store_error(table.table_uri, error) from error


def _locate_table(store: StoreLocation, table_name: str) -> str:
    """Return a table's URL.

    Raises:
        StorageError: delta-rs cannot work there.
    """
    url = store.table_url(table_name)
    if match := _CONFUSING_IN_URL.search(url):
        raise StorageError(
            r"a store's path may not hold '#', '?', '\', control characters or an escape such as '%20', "
            f"found {match[0]!r} in {store.url!r}; choose another --store"
        )
    return url


def _is_there(store: StoreLocation, table_name: str) -> bool:
    try:
        options = delta_storage_options(store.options)
        return retry_broken(partial(DeltaTable.is_deltatable, _locate_table(store, table_name), options))
    except (DeltaError, OSError) as error:
        raise describe_store_error(store.table_url(table_name), error) from error


def describe_store_error(url: str, error: Exception) -> StorageError:
    """Say in one line what delta-rs says in many, coloured for a terminal: its first link and its last.

    An S3 server's own words stand in XML (S3 API Reference, "Error responses"), beside others that help nobody.
    """
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    text = re.sub(r"\s+0: <unknown>.*", "", text, flags=re.DOTALL)  # a stack of delta-rs's own
    if said := re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)\.?</Message>", text, re.DOTALL):
        return StorageError(
            f"cannot use the store at {url}: {' '.join(said[2].split())} ({said[1]}); check the bucket's name, "
            "the credentials and what they permit"
        )
    links = [" ".join(link.split()) for link in text.split("↳")]
    detail = ": ".join(dict.fromkeys([links[0], links[-1]]))
    if len(detail) > 300:  # paths stand in the middle, the reason at the end
        detail = f"{detail[:100]} … {detail[-200:]}"
    return StorageError(f"cannot use the store at {url}: {detail}; musicfm check looks for damage")
