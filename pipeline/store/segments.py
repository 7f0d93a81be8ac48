"""Segments: how a long track lies in rows of ``frames``, and how its rows become one track again.

pyarrow holds a row several times while it encodes it, so a row has an end (docs/decisions/0021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError

SEGMENT_S = 300
"""Seconds of a track in one row at most. What is written with more needs another format of the store: readers
look for a frame no further back than this."""

TRACK_ORDER = [("track_id", "ascending"), ("start_frame", "ascending")]
MAX_VALUES = 2**31 - 1  # of a list in Arrow
_MAX_FRAMES = 2**31 - 1  # of a track: Arrow's lists hold no more


def count_segment_frames(frame_rate_hz: float) -> int:
    """Return how many frames a row holds at most."""
    return round(SEGMENT_S * frame_rate_hz)


def plan_segments(num_frames: int, frame_rate_hz: float | None) -> list[range]:
    """Return the frames of each row of a track, in order of time; a vector of no rate is a row of its own."""
    length = 1 if frame_rate_hz is None else count_segment_frames(frame_rate_hz)
    return [range(start, min(start + length, num_frames)) for start in range(0, num_frames, length)]


def find_frames(frame_rate_hz: float | None, start_s: float | None, end_s: float | None) -> tuple[int, int | None]:
    """Return the first frame of a span of time and the one after its last; None is the end, however far.

    Raises:
        UsageError: A time is not a number, or asked of vectors of whole tracks.
    """
    if frame_rate_hz is None:
        if start_s is None and end_s is None:
            return 0, None
        raise UsageError(f"expected no times beside 'global', one vector a track, found {start_s} to {end_s}")
    for time_s in (start_s, end_s):
        if time_s is not None and math.isnan(time_s):
            raise UsageError(f"expected times in seconds, found {start_s} to {end_s}")
    # Rounded, because 1.1 s · 50 Hz comes to a little over 55 frames in binary.
    first, stop = (
        round(min(max(time_s or 0.0, 0.0) * frame_rate_hz, _MAX_FRAMES), 6) for time_s in (start_s, end_s)
    )
    first_frame = math.floor(first)
    return first_frame, None if end_s is None else max(first_frame, math.ceil(stop))


def match_span(frame_rate_hz: float, first_frame: int, stop_frame: int | None) -> pc.Expression:
    """Return the condition on a row's ``start_frame`` under which it may hold frames of a span.

    Args:
        frame_rate_hz: Rate of the frames.
        first_frame: First frame of the span.
        stop_frame: The frame after its last; None for the end of the track.
    """
    start = pc.field("start_frame")
    condition = start > first_frame - count_segment_frames(frame_rate_hz)
    return condition if stop_frame is None else condition & (start < stop_frame)


def sort_rows(rows: pa.Table) -> pa.Table:
    """Return rows of ``frames`` in ``TRACK_ORDER``."""
    return take_rows(rows, pc.sort_indices(rows.select([name for name, _ in TRACK_ORDER]), sort_keys=TRACK_ORDER))


def take_rows(table: pa.Table, rows: pa.Array | Sequence[int]) -> pa.Table:
    """Return some rows in some order, as slices: Arrow's own ``take`` gathers at most 2^31 values of a column."""
    indices = np.asarray(rows, np.int64)
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    return pa.concat_tables([table.slice(0, 0), *(table.slice(int(run[0]), len(run)) for run in runs if len(run))])


def join_rows(rows: pa.Table, first_frame: int = 0, stop_frame: int | None = None) -> pa.Table:
    """Make one row of the rows of a track that follow one another without a gap.

    A track of more values than Arrow's lists count (11 hours of 50 Hz at 1024 dimensions) stays in several rows.

    Args:
        rows: Rows of ``frames`` with track_id, content_hash, start_frame, num_frames and embeddings, in
            ``TRACK_ORDER``.
        first_frame: Leave out the frames of each track before this one.
        stop_frame: Leave out this frame of each track and all after it; None for none.

    Returns:
        The same columns; ``start_frame`` and ``num_frames`` are those of what is left.
    """
    starts = rows.column("start_frame").to_numpy()
    if first_frame == 0 and stop_frame is None and not starts.any():
        return rows
    vectors = [
        _cut(row.values, start, first_frame, stop_frame)
        for row, start in zip(rows.column("embeddings"), starts.tolist(), strict=True)
    ]
    starts = np.clip(starts, first_frame, stop_frame)
    runs = _find_runs(rows, starts, vectors)
    joined = [pa.concat_arrays(vectors[run.start : run.stop]) for run in runs]
    offsets = [pa.array([0, len(matrix)], pa.int32()) for matrix in joined]
    lists = [pa.ListArray.from_arrays(*each) for each in zip(offsets, joined, strict=True)]
    first_rows = pa.array([run.start for run in runs], pa.int64())
    columns = {
        "start_frame": pa.array(starts[first_rows.to_numpy()], pa.int32()),
        "num_frames": pa.array([len(matrix) for matrix in joined], pa.int32()),
        "embeddings": pa.chunked_array(lists, rows.schema.field("embeddings").type),
    }
    facts = rows.drop_columns(list(columns)).take(first_rows)
    return pa.table(
        [columns[name] if name in columns else facts.column(name) for name in rows.column_names],
        schema=rows.schema,
    )


def cut_rows(rows: pa.Table) -> pa.Table:
    """Cut rows of whole tracks into segments.

    Args:
        rows: Rows of ``frames`` as its schema has them; a row holds a whole track, however long.
    """
    cut = []
    for index, (num_frames, rate_hz) in enumerate(
        zip(rows.column("num_frames").to_pylist(), rows.column("frame_rate_hz").to_pylist(), strict=True)
    ):
        whole = rows.slice(index, 1)
        for frames in plan_segments(num_frames, rate_hz):
            vectors = whole.column("embeddings")[0].values[frames.start : frames.stop]
            offsets = pa.array([0, len(vectors)], pa.int32())
            columns = {
                "start_frame": pa.array([frames.start], pa.int32()),
                "num_frames": pa.array([len(frames)], pa.int32()),
                "embeddings": pa.ListArray.from_arrays(offsets, vectors),
            }
            cut.append(
                pa.table(
                    [columns[name] if name in columns else whole.column(name) for name in rows.column_names],
                    schema=rows.schema,
                )
            )
    return pa.concat_tables([rows.slice(0, 0), *cut])


def _cut(vectors: pa.ListArray, start: int, first_frame: int, stop_frame: int | None) -> pa.ListArray:
    """Return the vectors of a row that lie in a span of the track."""
    first = max(first_frame - start, 0)
    stop = len(vectors) if stop_frame is None else min(stop_frame - start, len(vectors))
    return vectors[first : max(first, stop)]


def _find_runs(rows: pa.Table, starts: np.ndarray, vectors: Sequence[pa.ListArray]) -> list[range]:
    """Find the rows that become one: of one track and content, each going on where the last one ended."""
    keys = list(zip(*(rows.column(name).to_pylist() for name in ("track_id", "content_hash")), strict=True))
    runs: list[range] = []
    num_values = 0
    for index, matrix in enumerate(vectors):
        own_values = len(matrix.flatten())
        if (
            runs
            and keys[index] == keys[index - 1]
            and starts[index] == starts[index - 1] + len(vectors[index - 1])
            and num_values + own_values <= MAX_VALUES
        ):
            runs[-1] = range(runs[-1].start, index + 1)
            num_values += own_values
        else:
            runs.append(range(index, index + 1))
            num_values = own_values
    return runs
