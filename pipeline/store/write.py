"""Write: embedded rows, pooled to each resolution, to Parquet parts, and one small row for the driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.config import RESOLUTIONS, Recipe
from pipeline.embed.pool import count_pooled, count_repeats, pool_in_chunks
from pipeline.schema import EMBEDDED, FAILURES, FRAMES, RESULTS, TRACKS, UNCHANGED
from pipeline.storage import Options
from pipeline.store.parts import plan_row_groups, round_mantissa, to_ipc, write_row_groups
from pipeline.store.segments import plan_segments


@dataclass(frozen=True)
class WriteSettings:
    """Where parts go and what stands in their rows.

    Args:
        frames_url: URL of the ``frames`` table.
        mantissa_bits: Mantissa bits kept, by recipe id.
        run_id: The run that writes.
        options: File system options of the store; never logged.
    """

    frames_url: str
    mantissa_bits: Mapping[str, int]
    run_id: str
    options: Options | None = field(default=None, repr=False)


def keep_mantissa_bits(recipes: Mapping[str, Recipe]) -> dict[str, int]:
    """Return the mantissa bits that each recipe keeps, by its id."""
    return {recipe_id: recipe.mantissa_bits for recipe_id, recipe in recipes.items()}


def write_parts(embedded: pa.Table, settings: WriteSettings) -> pa.Table:
    """Write the features of some tracks: one part per recipe and resolution.

    Nothing is committed: until the driver does, no reader sees the parts.

    Args:
        embedded: Rows of ``schema.EMBEDDED``.
        settings: Where to, and how.

    Returns:
        One row of ``schema.RESULTS``.

    Raises:
        StorageError: A part cannot be written; the run cannot go on.
    """
    event_time = datetime.now(UTC)
    order = pc.sort_indices(embedded.column("track_id"))
    facts = embedded.drop_columns(["features"]).take(order)  # the features are large: they are not moved about
    failed = pc.is_valid(facts.column("stage"))
    wants_nothing = pc.equal(pc.list_value_length(facts.column("wanted")), 0)
    unchanged = pc.and_(pc.invert(failed), wants_nothing)
    is_done = pc.invert(pc.or_(failed, unchanged))
    done = facts.filter(is_done)
    kept = [embedded.column("features")[row] for row in order.filter(is_done.combine_chunks()).to_pylist()]
    features = _list_features(kept, done.column("wanted").to_pylist(), settings.mantissa_bits)
    parts = [
        write_row_groups(
            _pool_row_groups(rows),
            rows.facts.column("track_id"),
            "frames",
            settings.frames_url,
            {"recipe": rows.recipe, "resolution": rows.resolution},
            settings.run_id,
            settings.options,
        )
        for rows in _plan_frame_rows(done, features, event_time)
    ]
    result = {
        "parts": [part.as_row() for part in parts],
        "tracks": to_ipc(_build_track_rows(done, features, event_time, settings.run_id)),
        "failures": to_ipc(_build_failure_rows(facts.filter(failed), event_time, settings.run_id)),
        "unchanged": to_ipc(facts.filter(unchanged).select(UNCHANGED.names).cast(UNCHANGED)),
    }
    return pa.Table.from_pylist([result], schema=RESULTS)


@dataclass(frozen=True)
class _Feature:
    """One track's features at one recipe and resolution, neither pooled nor rounded before they are wanted.

    Args:
        row: The track's row.
        recipe: Recipe id.
        resolution: Name of the resolution.
        values: float32, shape (num_frames, embed_dim): the track's frames, or these features, pooled already.
        frame_rate_hz: Of the values; it says which of the two they are.
        mantissa_bits: Mantissa bits that are stored.
    """

    row: int
    recipe: str
    resolution: str
    values: Tensor
    frame_rate_hz: float | None
    mantissa_bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """Number of vectors at the resolution, and their width."""
        num_frames, embed_dim = self.values.shape
        return count_pooled(num_frames, RESOLUTIONS[self.resolution], self.frame_rate_hz), embed_dim

    def round_into(self, place: np.ndarray, start_frame: int = 0) -> None:
        """Pool and round some vectors, chunk by chunk: nothing of a long track is there twice.

        Args:
            place: float32, shape (num_vectors, embed_dim): where they go.
            start_frame: Which of the vectors is the first.
        """
        resolution, frame_rate_hz = RESOLUTIONS[self.resolution], self.frame_rate_hz
        repeats = count_repeats(resolution, frame_rate_hz)
        if repeats > 1:  # each frame is rounded once, and then stands there several times
            resolution = RESOLUTIONS["25hz"]
        first, stop = start_frame // repeats, -(-(start_frame + len(place)) // repeats)
        done = 0
        for chunk in pool_in_chunks(self.values, resolution, frame_rate_hz, first, stop):
            into = place[done : done + repeats * len(chunk)]
            done += len(into)
            if repeats == 1:
                round_mantissa(chunk.numpy(), self.mantissa_bits, out=into)
            else:  # segments begin and end with whole frames
                rounded = round_mantissa(chunk.numpy(), self.mantissa_bits)
                into.reshape(len(chunk), repeats, -1)[...] = rounded[:, np.newaxis]


@dataclass(frozen=True)
class _FrameRows:
    """Rows of ``frames`` that become one part.

    Args:
        recipe: Recipe id.
        resolution: Name of the resolution.
        facts: The rows as they are stored, but for their embeddings.
        sources: For each row, what it is pooled from and which frames of that it holds.
    """

    recipe: str
    resolution: str
    facts: pa.Table
    sources: list[tuple[_Feature, range]]


def _list_features(
    rows: Sequence[pa.ListScalar], wanted: Sequence[Sequence[str]], mantissa_bits: Mapping[str, int]
) -> list[_Feature]:
    """List what is to be written, track by track, in the order in which it is wanted."""
    features = []
    for row, items in enumerate(rows):
        by_name = {}
        for item in items.values:
            rate_hz, num_frames = item["frame_rate_hz"].as_py(), item["num_frames"].as_py()
            values = from_dlpack(item["values"].values).view(num_frames, -1)
            for name in item["wanted"].as_py():
                recipe, resolution = name.split("/")
                by_name[name] = _Feature(row, recipe, resolution, values, rate_hz, mantissa_bits[recipe])
        features += [by_name[name] for name in dict.fromkeys(wanted[row])]
    return features


def _plan_frame_rows(done: pa.Table, features: list[_Feature], event_time: datetime) -> Iterator[_FrameRows]:
    """Yield the rows of ``frames`` that are to be written, by recipe and resolution."""
    grouped: dict[tuple[str, str], list[_Feature]] = {}
    stored, hashes = done.column("stored").to_pylist(), done.column("content_hash").to_pylist()
    for feature in features:
        fact = f"{feature.recipe}/{feature.resolution}@{hashes[feature.row]}"
        if fact not in (stored[feature.row] or ()):
            grouped.setdefault((feature.recipe, feature.resolution), []).append(feature)
    for (recipe, resolution), group in grouped.items():
        rate_hz = RESOLUTIONS[resolution].frame_rate_hz
        sources = [(feature, frames) for feature in group for frames in plan_segments(feature.shape[0], rate_hz)]
        tracks = done.take([feature.row for feature, _ in sources])
        columns: dict[str, Any] = {
            "track_id": tracks.column("track_id"),
            "content_hash": tracks.column("content_hash"),
            "start_frame": np.array([frames.start for _, frames in sources], np.int32),
            "event_time": pa.repeat(pa.scalar(event_time, FRAMES.field("event_time").type), len(sources)),
            "num_frames": np.array([len(frames) for _, frames in sources], np.int32),
            "frame_rate_hz": pa.repeat(pa.scalar(rate_hz, pa.float64()), len(sources)),
        }
        facts = pa.table(columns, schema=pa.schema([FRAMES.field(name) for name in columns]))
        yield _FrameRows(recipe, resolution, facts, sources)


def _pool_row_groups(rows: _FrameRows) -> Iterator[pa.Table]:
    """Pool, round and yield one row group after the other."""
    for group in plan_row_groups(len(frames) * feature.shape[1] for feature, frames in rows.sources):
        yield rows.facts[group].append_column(FRAMES.field("embeddings"), _as_nested_lists(rows.sources[group]))


def _as_nested_lists(sources: Sequence[tuple[_Feature, range]]) -> pa.Array:
    """Return pooled and rounded frames as a list<list<float>> column."""
    embed_dim = sources[0][0].shape[1]
    ends = np.cumsum([0, *(len(frames) for _, frames in sources)])
    vectors = np.empty((ends[-1], embed_dim), np.float32)
    for (feature, frames), start, end in zip(sources, ends[:-1], ends[1:], strict=True):
        feature.round_into(vectors[start:end], frames.start)
    offsets = np.arange(0, vectors.size + 1, embed_dim)  # Arrow refuses those that are no int32
    values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(vectors.reshape(-1)))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)


def _build_track_rows(done: pa.Table, features: list[_Feature], event_time: datetime, run_id: str) -> pa.Table:
    """Build one ledger row per track and recipe."""
    by_key: dict[tuple[int, str], list[_Feature]] = {}
    for feature in features:
        by_key.setdefault((feature.row, feature.recipe), []).append(feature)
    rows = done.take(pa.array([row for row, _ in by_key], pa.int64()))
    columns: dict[str, Any] = {name: rows.column(name) for name in TRACKS.names if name in EMBEDDED.names}
    columns |= {
        "recipe": pa.array([recipe for _, recipe in by_key], pa.string()),
        "resolutions": [[feature.resolution for feature in group] for group in by_key.values()],
        "event_time": pa.repeat(pa.scalar(event_time, TRACKS.field("event_time").type), len(by_key)),
        "run_id": pa.repeat(run_id, len(by_key)),
    }
    return pa.table({name: columns[name] for name in TRACKS.names}, schema=TRACKS)


def _build_failure_rows(failed: pa.Table, event_time: datetime, run_id: str) -> pa.Table:
    """Build one failure row per track and recipe that was wanted of it."""
    rows = []
    for row in failed.to_pylist():
        recipes = dict.fromkeys(name.split("/")[0] for name in row["wanted"])
        kept = {name: row[name] for name in FAILURES.names if name in row}
        rows += [{**kept, "recipe": recipe, "event_time": event_time, "run_id": run_id} for recipe in recipes]
    return pa.Table.from_pylist(rows, schema=FAILURES)
