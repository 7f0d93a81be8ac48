"""Bring a store that an older version wrote up to date.

Both older formats are of before any release. Format 1 had a whole track in each row of ``frames``, however long,
no ``start_frame``, and no table of what was taken down. Format 2 had neither track numbers nor years, which files
tell when they are read again. Stored values and recipes are the same.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import CommitFailedError

from pipeline.errors import RunError
from pipeline.location import StoreLocation
from pipeline.schema import FRAMES, TRACKS
from pipeline.store.ledger import Actions, build_removal, join_keys, list_table_files, read_live_keys, read_rows
from pipeline.store.maintain import check_closed
from pipeline.store.parts import write_part
from pipeline.store.segments import TRACK_ORDER, cut_rows
from pipeline.store.table_commits import add_missing_columns, declare_format
from pipeline.store.tables import OLDER_FORMATS, STORE_FORMAT, create_table, open_table, read_format
from pipeline.store.usage import list_partitions
from pipeline.store.writer import StoreWriter

ANY_FORMAT = (*OLDER_FORMATS, STORE_FORMAT)


def upgrade_store(store: StoreLocation, run_id: str) -> int:
    """Rewrite the live rows of ``frames`` in the present format and publish the result, where it is not in it.

    What readers see changes in a single commit of the ledger, the last one. Broken off before, the store has the
    older format still, and the next call begins anew. Snapshots of before can be read by the older version alone.

    Args:
        store: The store.
        run_id: Identifier of this run.

    Returns:
        How many parts were rewritten.

    Raises:
        UsageError: Another run is at work, or the last one has not closed.
        RunError: Another run has claimed the store.
        StoreFormatError: It has a format that this version does not know.
        StorageError: The store cannot be read or written.
    """
    found = read_format(open_table(store, "tracks", formats=ANY_FORMAT))
    if found == STORE_FORMAT:
        return 0
    writer = StoreWriter(store, run_id, ANY_FORMAT)
    check_closed(writer)
    actions: Actions = []
    num_parts = 0
    for recipe, resolution in list_partitions(writer.frames) if found == 1 else ():
        live = read_live_keys(writer.tracks, recipe)
        for file in list_table_files(writer.frames, "frames", recipe):
            if file["partition.resolution"] == resolution:
                writer.renew_lease()
                actions += [build_removal("frames", file), *_rewrite_part(writer, file, live)]
                num_parts += 1
    said = {"run_id": run_id, "event": "upgrade"}
    create_table(store, "withheld")
    try:
        add_missing_columns(writer.frames, FRAMES, said)
        add_missing_columns(writer.tracks, TRACKS, said)
        writer.commit("frames", actions, "upgrade")
        num_parts += _widen_ledger(writer)
        for table in (open_table(store, "recipes", formats=ANY_FORMAT), writer.failures, writer.frames):
            declare_format(table, said)
        version = str(writer.frames.version())
        declare_format(writer.tracks, {"run_id": run_id, "event": "maintain", "frames_version": version})
    except CommitFailedError as error:
        raise RunError(f"another run has written to the store at {store.url} meanwhile; try again") from error
    return num_parts


def _widen_ledger(writer: StoreWriter) -> int:
    """Write the parts of the ledger with all present columns, so that readers of plain files find them alike."""
    actions: Actions = []
    for file in list_table_files(writer.tracks, "tracks"):
        writer.renew_lease()
        rows = read_rows("tracks", writer.store, file)
        partition = {"recipe": file["partition.recipe"]}
        url = writer.store.table_url("tracks")
        part = write_part(rows, "tracks", url, partition, writer.run_id, writer.store.options)
        actions += [build_removal("tracks", file), part.as_add_action()]
    if actions:
        writer.commit("tracks", actions, "upgrade")  # naming no version of frames: nothing is published yet
    return len(actions) // 2


def _rewrite_part(writer: StoreWriter, file: dict[str, Any], live: pa.Array) -> Actions:
    """Write the live rows of a part of format 1 as a part of the present one."""
    partition = {name: file[f"partition.{name}"] for name in ("recipe", "resolution")}
    rows = read_rows("frames", writer.store, file, [name for name in FRAMES.names if name != "start_frame"])
    rows = rows.filter(pc.is_in(join_keys(rows), live))
    if rows.num_rows == 0:
        return []
    starts = pa.repeat(pa.scalar(0, pa.int32()), rows.num_rows)
    rows = cut_rows(rows.append_column(FRAMES.field("start_frame"), starts).select(FRAMES.names))
    url, options = writer.store.table_url("frames"), writer.store.options
    part = write_part(rows.sort_by(TRACK_ORDER), "frames", url, partition, writer.run_id, options)
    return [part.as_add_action()]
