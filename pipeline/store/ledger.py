"""The ledger's arithmetic: replacing, relabelling and removing rows of the small tables, file by file.

Delta Lake files never change. Rows leave a table by removing the files that hold them and adding copies
without them, in the same transaction that adds the new rows; only files whose span of track ids meets the
affected ids are read.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from pipeline.errors import StorageError
from pipeline.location import StoreLocation
from pipeline.schema import CATALOG, LABELS, PARTITION_COLUMNS, TABLES, TRACKS
from pipeline.storage import join_url, read_file
from pipeline.store.parts import write_part
from pipeline.store.tables import read_columns

Actions = list[AddAction | RemoveAction]

MAX_PARTS_PER_COMMIT = 16  # of a recipe: a few late blocks lie apart, rows from all over the catalog do not


@dataclass(frozen=True)
class Extraction:
    """Rows taken out of a table, and the actions that take them out.

    Args:
        rows: The rows, of the table's schema.
        actions: Removals of the files that held them and additions of their rewritten rest.
    """

    rows: pa.Table
    actions: Actions


def extract_rows(
    table: DeltaTable,
    table_name: str,
    store: StoreLocation,
    recipe: str | None,
    track_ids: Sequence[str],
    run_id: str,
) -> Extraction:
    """Take the rows of some tracks out of a table.

    Args:
        table: The table at the version to be changed.
        table_name: Its key in ``schema.TABLES``.
        store: Where it lies.
        recipe: Only rows of this recipe; None for all.
        track_ids: Whose rows to take out; those without any are ignored.
        run_id: The run that rewrites.

    Returns:
        The rows, and the actions that have to be committed for them to be gone.

    Raises:
        StorageError: A file cannot be read or written.
    """
    ids = np.sort(np.array(track_ids, dtype=object))
    taken: list[pa.Table] = []
    actions: Actions = []
    for file in list_table_files(table, table_name, recipe):
        if not _meets(ids, file.get("min.track_id"), file.get("max.track_id")):
            continue
        rows = read_rows(table_name, store, file)
        leaves = pc.is_in(rows.column("track_id"), pa.array(ids, pa.string()))
        if recipe is not None:
            leaves = pc.and_(leaves, pc.equal(rows.column("recipe"), recipe))
        if not pc.any(leaves).as_py():
            continue
        taken.append(rows.filter(leaves))
        actions.append(build_removal(table_name, file))
        rest = rows.filter(pc.invert(leaves))
        if rest.num_rows:
            partition = {name: file[f"partition.{name}"] for name in PARTITION_COLUMNS[table_name]}
            part = write_part(rest, table_name, store.table_url(table_name), partition, run_id, store.options)
            actions.append(part.as_add_action())
    return Extraction(pa.concat_tables(taken) if taken else TABLES[table_name].empty_table(), actions)


def merge_track_rows(new_rows: pa.Table, old_rows: pa.Table) -> pa.Table:
    """Let new ledger rows keep what the old ones of the same content held.

    A run that adds a resolution writes that one alone; the ledger row lists both.

    Args:
        new_rows: Rows of ``schema.TRACKS`` of one recipe.
        old_rows: The rows that they replace.

    Returns:
        The new rows, completed.
    """
    if old_rows.num_rows == 0:
        return new_rows
    old = old_rows.take(pc.index_in(new_rows.column("track_id"), old_rows.column("track_id")))
    same = pc.fill_null(pc.equal(old.column("content_hash"), new_rows.column("content_hash")), False)
    resolutions = [
        [*kept, *(name for name in added if name not in kept)] if is_same else added
        for is_same, kept, added in zip(
            same.to_pylist(),
            old.column("resolutions").to_pylist(),
            new_rows.column("resolutions").to_pylist(),
            strict=True,
        )
    ]
    field = TRACKS.field("resolutions")
    return new_rows.set_column(TRACKS.get_field_index(field.name), field, pa.array(resolutions, field.type))


def relabel_track_rows(rows: pa.Table, catalog: pa.Table) -> pa.Table:
    """Give ledger rows the catalog's present facts and metadata; their features stay as they are.

    Titles and the like of which the catalog says nothing stay: they are the file's own.

    Args:
        rows: Rows of ``schema.TRACKS`` whose tracks are all in the catalog.
        catalog: Rows of ``schema.CATALOG``.

    Returns:
        The rows, relabelled.
    """
    facts = catalog.take(pc.index_in(rows.column("track_id"), catalog.column("track_id")))
    columns = {name: facts.column(name) if name in CATALOG.names else rows.column(name) for name in TRACKS.names}
    columns |= {name: pc.coalesce(facts.column(name), rows.column(name)) for name in LABELS}
    return pa.table(columns, schema=TRACKS)


def cut_between_parts(sorted_ids: Sequence[str], spans: Iterable[tuple[str, str]]) -> list[slice]:
    """Cut rows so that none of the parts that they become reaches over a whole other one.

    Blocks are done in any order. A slow one that is committed beside much later ones would make a part that spans
    all that was written meanwhile, and every point read would open it too.

    Args:
        sorted_ids: Ids of the rows.
        spans: First and last id of the other parts.

    Returns:
        The rows of each part: all in one where nothing lies between them, or where they are so scattered that they
        would come to more than ``MAX_PARTS_PER_COMMIT``.
    """
    cuts = {0, len(sorted_ids)}
    for first, last in spans:
        position = bisect_left(sorted_ids, first)
        if position == bisect_right(sorted_ids, last):
            cuts.add(position)
    if len(cuts) > MAX_PARTS_PER_COMMIT + 1:
        cuts = {0, len(sorted_ids)}
    return [slice(*pair) for pair in pairwise(sorted(cuts))]


def list_table_files(table: DeltaTable, table_name: str, recipe: str | None = None) -> list[dict[str, Any]]:
    """List a table's files that may hold rows of a recipe, or all: path, size, partition, span of track ids."""
    files = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    if recipe is None or "recipe" not in PARTITION_COLUMNS[table_name]:
        return list(files)
    return [file for file in files if file["partition.recipe"] == recipe]


def _meets(sorted_ids: np.ndarray, first: str | None, last: str | None) -> bool:
    """Say whether any of the ids lies in a file's span; a file without statistics may hold anything."""
    if first is None or last is None:
        return len(sorted_ids) > 0
    position = int(np.searchsorted(sorted_ids, first))
    return position < len(sorted_ids) and bool(sorted_ids[position] <= last)


def read_rows(
    table_name: str, store: StoreLocation, file: dict[str, Any], columns: Sequence[str] | None = None
) -> pa.Table:
    """Read one file of a table whole, with its partition columns.

    Args:
        table_name: Key of ``schema.TABLES``.
        store: Where it lies.
        file: From ``list_table_files``.
        columns: Of the table's schema, partition columns included; all by default.

    Raises:
        StorageError: The file cannot be read.
    """
    names = list(columns or TABLES[table_name].names)
    partition = [name for name in PARTITION_COLUMNS[table_name] if name in names]
    data = read_file(join_url(store.table_url(table_name), file["path"]), store.options)
    # Without threads: pyarrow's now and then abort the process as it exits (apache/arrow issue 34314).
    try:
        rows = pq.ParquetFile(pa.BufferReader(data)).read(
            [name for name in names if name not in partition], use_threads=False
        )
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{file['path']} of {store.table_url(table_name)} is damaged: {' '.join(str(error).split())}; bring "
            "it back from a backup"
        ) from error
    for name in partition:
        rows = rows.append_column(name, pa.repeat(file[f"partition.{name}"], rows.num_rows))
    for name in set(names) - set(rows.column_names):  # of a part that is older than the column
        rows = rows.append_column(name, pa.nulls(rows.num_rows, TABLES[table_name].field(name).type))
    return rows.select(names).cast(pa.schema([TABLES[table_name].field(name) for name in names]))


def join_keys(rows: pa.Table) -> pa.Array:
    """Return each row's track and content as one text with a line break between."""
    keys = pc.binary_join_element_wise(rows.column("track_id"), rows.column("content_hash"), "\n")
    return keys.combine_chunks()


def read_live_keys(tracks: DeltaTable, recipe: str) -> pa.Array:
    """Return the tracks and contents of a recipe that the ledger names, as ``join_keys`` gives them."""
    return join_keys(read_columns(tracks, ["track_id", "content_hash"], recipe))


def build_removal(table_name: str, file: dict[str, Any]) -> RemoveAction:
    """Build the action that takes a file of ``list_table_files`` out of its table."""
    partition = {name: file[f"partition.{name}"] for name in PARTITION_COLUMNS[table_name]}
    return RemoveAction(file["path"], True, int(time.time() * 1000), file["size_bytes"], partition)
