"""Bring a store that an older version wrote up to date.

All older formats are of before any release. Format 1 had a whole track in each row of ``frames``, however long, no
``start_frame``, and no table of what was taken down. Format 2 had neither track numbers nor years, which files
tell when they are read again. Up to format 3 the global vectors stood in ``tracks``, in a column ``embedding``.
Stored values and recipes are the same.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipeline.errors import RunError, UsageError
from pipeline.location import StoreLocation
from pipeline.schema import FRAMES
from pipeline.storage import join_url, read_file
from pipeline.store.ledger import Actions, build_removal, join_keys, list_table_files, read_live_keys, read_rows
from pipeline.store.parts import write_part
from pipeline.store.segments import TRACK_ORDER, cut_rows
from pipeline.store.table_commits import add_missing_columns, declare_format, replace_files
from pipeline.store.tables import OLDER_FORMATS, STORE_FORMAT, create_table, open_table, read_format
from pipeline.store.usage import list_partitions
from pipeline.store.writer import StoreWriter

ANY_FORMAT = (*OLDER_FORMATS, STORE_FORMAT)


def upgrade_store(store: StoreLocation, run_id: str) -> int:
    """Write a store's tables in the present format and publish the result, where they are not in it.

    What readers see changes in a single commit of the ledger, the last one. Broken off before, the store has the
    older format still, and the next call does what is left. Snapshots of before can be read by the older version
    alone.

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
    if writer.unclosed_run is not None:
        raise UsageError(
            f"run {writer.unclosed_run} has committed to the store at {store.url} and has not closed: run the "
            f"embedding command again with the version that wrote it (store format {found}), so that it can"
        )
    said = {"run_id": run_id, "event": "upgrade"}
    create_table(store, "withheld")
    try:
        add_missing_columns(writer.frames, FRAMES, said)
        actions = [*(_cut_whole_tracks(writer) if found == 1 else ()), *_move_vectors(writer)]
        writer.commit("frames", actions, "upgrade")
        others = [open_table(store, name, formats=ANY_FORMAT) for name in ("recipes", "withheld")]
        for table in (*others, writer.failures, writer.frames):
            declare_format(table, said)
        # It names what the vectors went to: broken off after it, nothing of that is taken back.
        named = {"frames_version": str(writer.frames.version())}
        num_ledger_parts = len(writer.tracks.file_uris())
        parts = _write_ledger_anew(writer)
        replace_files(writer.tracks, "tracks", parts, {**said, **named}, writer.claim_next("tracks"))
        published = {"run_id": run_id, "event": "maintain", **named}
        declare_format(writer.tracks, published, writer.claim_next("tracks"))
    except CommitFailedError as error:
        raise RunError(f"another run has written to the store at {store.url} meanwhile; try again") from error
    return num_ledger_parts + sum(not isinstance(action, AddAction) for action in actions)


def _cut_whole_tracks(writer: StoreWriter) -> Actions:
    """Write the live rows of parts of format 1 as parts of the present one."""
    actions: Actions = []
    for recipe, resolution in list_partitions(writer.frames):
        live = read_live_keys(writer.tracks, recipe)
        for file in list_table_files(writer.frames, "frames", recipe):
            if file["partition.resolution"] == resolution:
                writer.renew_lease()
                actions += _rewrite_part(writer, file, live)
    return actions


def _rewrite_part(writer: StoreWriter, file: dict[str, Any], live: pa.Array) -> Actions:
    if "start_frame" in _open_file(writer, "frames", file).schema_arrow.names:
        return []  # an upgrade that was broken off has been here
    partition = {name: file[f"partition.{name}"] for name in ("recipe", "resolution")}
    rows = read_rows("frames", writer.store, file, [name for name in FRAMES.names if name != "start_frame"])
    rows = rows.filter(pc.is_in(join_keys(rows), live))
    removal = build_removal("frames", file)
    if rows.num_rows == 0:
        return [removal]
    starts = pa.repeat(pa.scalar(0, pa.int32()), rows.num_rows)
    rows = cut_rows(rows.append_column(FRAMES.field("start_frame"), starts).select(FRAMES.names))
    url, options = writer.store.table_url("frames"), writer.store.options
    part = write_part(rows.sort_by(TRACK_ORDER), "frames", url, partition, writer.run_id, options)
    return [removal, part.as_add_action()]


def _move_vectors(writer: StoreWriter) -> Actions:
    """Write the vectors that stand in the ledger as parts of ``frames``, one of each of its parts.

    They replace those that an upgrade wrote which was broken off: as long as the ledger has vectors, it has all.
    """
    actions: Actions = []
    for file in list_table_files(writer.tracks, "tracks"):
        writer.renew_lease()
        opened = _open_file(writer, "tracks", file)
        if "embedding" not in opened.schema_arrow.names:
            continue  # an upgrade that was broken off has moved them
        rows = opened.read(["track_id", "content_hash", "event_time", "embedding"], use_threads=False)
        rows = rows.filter(pc.is_valid(rows.column("embedding"))).sort_by("track_id").combine_chunks()
        if rows.num_rows == 0:
            continue
        partition = {"recipe": file["partition.recipe"], "resolution": "global"}
        rows = rows.append_column("recipe", pa.repeat(partition["recipe"], rows.num_rows))
        frames = build_vector_rows(rows, rows.column("embedding").combine_chunks())
        url, options = writer.store.table_url("frames"), writer.store.options
        actions.append(write_part(frames, "frames", url, partition, writer.run_id, options).as_add_action())
    if actions:
        written = list_table_files(writer.frames, "frames")
        actions += [build_removal("frames", file) for file in written if file["partition.resolution"] == "global"]
    return actions


def build_vector_rows(ledger: pa.Table, vectors: pa.ListArray) -> pa.Table:
    """Return the rows of ``frames`` at ``global`` that go with rows of the ledger.

    Args:
        ledger: recipe, track_id, content_hash and event_time, as in ``schema.TRACKS``.
        vectors: Of each row, (embed_dim,), as it is stored.
    """
    size = ledger.num_rows
    columns = {
        **{name: ledger.column(name) for name in ("recipe", "track_id", "content_hash", "event_time")},
        "resolution": pa.repeat("global", size),
        "start_frame": pa.repeat(pa.scalar(0, pa.int32()), size),
        "num_frames": pa.repeat(pa.scalar(1, pa.int32()), size),
        "frame_rate_hz": pa.nulls(size, pa.float64()),
        "embeddings": pa.ListArray.from_arrays(pa.array(range(size + 1), pa.int32()), vectors),
    }
    return pa.table({name: columns[name] for name in FRAMES.names}).cast(FRAMES)


def _write_ledger_anew(writer: StoreWriter) -> list[AddAction]:
    """Write the parts of the ledger with the present columns alone."""
    actions = []
    for file in list_table_files(writer.tracks, "tracks"):
        writer.renew_lease()
        partition = {"recipe": file["partition.recipe"]}
        rows = read_rows("tracks", writer.store, file)
        url, options = writer.store.table_url("tracks"), writer.store.options
        actions.append(write_part(rows, "tracks", url, partition, writer.run_id, options).as_add_action())
    return actions


def _open_file(writer: StoreWriter, table_name: str, file: dict[str, Any]) -> pq.ParquetFile:
    data = read_file(join_url(writer.store.table_url(table_name), file["path"]), writer.store.options)
    return pq.ParquetFile(pa.BufferReader(data))
