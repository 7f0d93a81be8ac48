"""What a store weighs: every recipe and resolution, and how much of each part of ``frames`` is alive."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipeline.location import StoreLocation
from pipeline.schema import FRAMES, KEYS
from pipeline.store.ledger import join_keys, list_table_files, read_live_keys
from pipeline.store.parts import Part
from pipeline.store.read_parts import stream_rows
from pipeline.store.tables import open_table, read_columns

_NUM_READERS = 8


@dataclass(frozen=True)
class PartitionReport:
    """What one recipe's features at one resolution weigh.

    Args:
        recipe: Recipe id.
        resolution: Resolution.
        num_parts: Files.
        num_rows: Rows in them.
        num_dead_rows: Rows that no ledger row names.
        size_bytes: Bytes of the files.
        num_values: Stored float32 values.
    """

    recipe: str
    resolution: str
    num_parts: int
    num_rows: int
    num_dead_rows: int
    size_bytes: int
    num_values: int

    @property
    def bytes_per_value(self) -> float:
        """Bytes on disk per stored float32 value."""
        return self.size_bytes / max(1, self.num_values)


@dataclass(frozen=True)
class PartState:
    """A file of ``frames`` and how much of it is alive."""

    file: dict[str, Any]
    num_rows: int
    num_live_rows: int

    @property
    def dead_share(self) -> float:
        """Share of its rows that no ledger row names."""
        return 1 - self.num_live_rows / max(1, self.num_rows)

    def as_part(self) -> Part:
        """Return the file as the part that it was written as."""
        file = self.file
        partition = file["partition.recipe"], file["partition.resolution"]
        span = file.get("min.track_id"), file.get("max.track_id")
        return Part(*partition, file["path"], int(file["size_bytes"]), self.num_rows, *span)


def report_store(store: StoreLocation) -> list[PartitionReport]:
    """Measure every recipe and resolution of ``frames``, as committed last.

    Args:
        store: The store; nothing is claimed or written.

    Returns:
        One report per partition, sorted by recipe and resolution.

    Raises:
        StorageError: There is no store, or it cannot be read.
    """
    tracks, frames = open_table(store, "tracks"), open_table(store, "frames")
    reports = []
    for recipe, partitions in groupby(list_partitions(frames), itemgetter(0)):
        live = read_live_keys(tracks, recipe)
        counts = read_columns(frames, ["resolution", "num_frames"], recipe)
        for _, resolution in partitions:
            states = inspect_parts(store, frames, recipe, resolution, live)
            num_frames = counts.filter(pc.equal(counts.column("resolution"), resolution)).column("num_frames")
            num_rows = sum(state.num_rows for state in states)
            reports.append(
                PartitionReport(
                    recipe,
                    resolution,
                    len(states),
                    num_rows,
                    num_rows - sum(state.num_live_rows for state in states),
                    sum(int(state.file["size_bytes"]) for state in states),
                    pc.sum(num_frames).as_py() * _read_embed_dim(store, states[0].file),
                )
            )
    return reports


def list_partitions(frames: DeltaTable) -> list[tuple[str, str]]:
    """List the recipes and resolutions of ``frames``, sorted."""
    files = list_table_files(frames, "frames")
    return sorted({(file["partition.recipe"], file["partition.resolution"]) for file in files})


def inspect_parts(
    store: StoreLocation, frames: DeltaTable, recipe: str, resolution: str, live: pa.Array
) -> list[PartState]:
    """Count the live rows of each part, reading ids and hashes alone; sorted by track id."""
    empty = FRAMES.empty_table().select(list(KEYS))

    def inspect(file: dict[str, Any]) -> PartState:
        rows = pa.concat_tables([empty, *stream_rows(store, "frames", file["path"], KEYS, False)])
        num_live = pc.sum(pc.is_in(join_keys(rows), live)).as_py() or 0
        return PartState(file, rows.num_rows, num_live)

    files = [
        file for file in list_table_files(frames, "frames", recipe) if file["partition.resolution"] == resolution
    ]
    with ThreadPoolExecutor(_NUM_READERS) as readers:  # over S3 a part is mostly waited for
        states = list(readers.map(inspect, files))
    return sorted(states, key=lambda state: str(state.file["min.track_id"]))


def _read_embed_dim(store: StoreLocation, file: dict[str, Any]) -> int:
    rows = next(stream_rows(store, "frames", file["path"], ["embeddings"], False), None)
    return len(rows.column("embeddings")[0].values[0]) if rows is not None and rows.num_rows else 0
