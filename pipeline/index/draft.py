"""A draft of an index: its files lie in their place, its manifest does not yet."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.index.codes import Matrix, write_index
from pipeline.index.files import IndexFile, IndexLocation, upload_file
from pipeline.index.manifest import IndexManifest
from pipeline.index.segments import OWNERS, mean_by_track
from pipeline.index.space import Distance
from pipeline.store.source import METADATA, Source

EXACT_VALUES = 2**27  # an exact scan of so many half-precision values takes 11 ms on one core here, 20 on others


@dataclass(frozen=True)
class IndexSettings:
    """What index to make.

    Args:
        resolution: ``global``, or a resolution with frames.
        recipe: Recipe id; may be left out where the store has only one.
        kind: ``exact`` or ``ivf``; by default what the size asks for.
        distance: In which space vectors are compared; by default what ``statistics.choose_distance`` says.
        target_recall: What recall@10 the search of an ``ivf`` index is tuned to.
        min_recall: A build that measures less is not published.
        rebuild: Start anew even where a follow-up would do.
        cache: Folder for copies of files that lie in object storage.
    """

    resolution: str = "global"
    recipe: str | None = None
    kind: str | None = None
    distance: Distance | None = None
    target_recall: float = 0.95
    min_recall: float | None = None
    rebuild: bool = False
    cache: str | None = None


@dataclass(frozen=True)
class Draft:
    """An index whose files lie in their place and whose manifest does not yet.

    Args:
        kind: ``exact`` or ``ivf``.
        embed_dim: Dimensions of a vector.
        segments: Files of rows.
        owners: ``OWNERS`` with map_x and map_y, one row a track.
        files: Map, codes, space and the list of parts, by role.
        parameters: Of search and training.
        training: Tracks at the last training, and how many changed since.
        distance: The space that the vectors were placed in.
    """

    kind: str
    embed_dim: int
    segments: tuple[IndexFile, ...]
    owners: pa.Table
    files: dict[str, IndexFile]
    parameters: dict[str, Any] = field(default_factory=dict)
    training: dict[str, int] = field(default_factory=dict)
    distance: Distance = "plain"


def describe_draft(
    draft: Draft, source: Source, location: IndexLocation, settings: IndexSettings, version: int, folder: str
) -> IndexManifest:
    """Write the table of tracks and the list of parts, and describe the draft."""
    place = pc.index_in(draft.owners.column("track_id"), source.ledger.column("track_id"))
    facts = source.ledger.take(place).select(list(METADATA))
    tracks = facts
    for name in ("first_row", "num_vectors", "map_x", "map_y"):
        tracks = tracks.append_column(name, draft.owners.column(name))
    tracks = tracks.sort_by("track_id").combine_chunks()
    files = {**draft.files, "tracks": save_file(location, folder, "tracks.arrow", tracks, settings.cache)}
    files["parts"] = save_file(location, folder, "parts.arrow", source.parts.select(["path"]), settings.cache)
    num_vectors = int(pc.sum(tracks.column("num_vectors")).as_py() or 0)
    return IndexManifest(
        recipe=source.recipe,
        definition=source.definition,
        resolution=source.resolution,
        kind=draft.kind,
        embed_dim=draft.embed_dim,
        num_vectors=num_vectors,
        num_tracks=tracks.num_rows,
        store_version=source.store_version,
        frames_version=source.frames_version,
        version=version,
        created_time=datetime.now(UTC).isoformat(timespec="seconds"),
        segments=draft.segments,
        files=files,
        parameters=draft.parameters,
        training=draft.training,
        distance=draft.distance,
        sizes={
            "disk_bytes": sum(file.size_bytes for file in (*draft.segments, *files.values())),
            "memory_bytes": (files["codes"].size_bytes if "codes" in files else 0) + _count_overhead(draft),
            "mapped_bytes": sum(file.size_bytes for file in draft.segments),
            "float32_bytes": 4 * num_vectors * draft.embed_dim,
        },
    )


def _count_overhead(draft: Draft) -> int:
    """Return what an open index holds beside its codes: a mark a row, and two numbers a track."""
    return sum(file.num_rows for file in draft.segments) + 16 * int(draft.owners.num_rows)


def add_places(owners: pa.Table, placed: Matrix, first_row: int) -> pa.Table:
    """Add each track's place on the map, and count its rows from ``first_row``."""
    first, length = owners.column("first_row").to_numpy(), owners.column("num_vectors").to_numpy()
    means = mean_by_track(placed, first, length)
    columns = [
        owners.column("track_id"),
        owners.column("content_hash"),
        pa.array(first + first_row),
        pa.array(length),
    ]
    return pa.table(
        [*columns, pa.array(means[:, 0]), pa.array(means[:, 1])], names=[*OWNERS.names, "map_x", "map_y"]
    )


def save_file(location: IndexLocation, folder: str, name: str, content: Any, cache: str | None) -> IndexFile:
    """Write a table, an array or codes as a file of the index.

    Raises:
        StorageError: It cannot be written.
    """
    path = os.path.join(folder, name)
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif not isinstance(content, pa.Table):
        write_index(content, path)
    else:
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, content.schema) as writer:
            writer.write_table(content)
    return upload_file(location, path, cache=cache)


def choose_kind(num_values: int, previous: str | None = None) -> str:
    """Choose the kind of an index by its size.

    Args:
        num_values: Vectors times dimensions.
        previous: The kind that it has: it changes only once the size is a quarter past the limit.

    Returns:
        ``exact`` while a scan answers in about 20 ms, else ``ivf``.
    """
    slack = {"exact": 1.25, "ivf": 0.75}.get(previous or "", 1.0)
    return "exact" if num_values <= slack * EXACT_VALUES else "ivf"
