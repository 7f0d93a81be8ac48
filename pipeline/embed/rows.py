"""Decoded rows to tracks, and tracks to embedded rows: Arrow on both sides, facts by the block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from pipeline.config import SHARED_WINDOW_S
from pipeline.embed.track import Track
from pipeline.embed.window import plan_windows
from pipeline.schema import EMBEDDED, FAILURE_FIELDS, FEATURES

_VALUES = pa.large_list(pa.float32())
_WANTED = pa.list_(pa.string())


@dataclass(frozen=True)
class Features:
    """Some of a track's features on their way to the store: an item of ``schema.FEATURES``.

    Args:
        wanted: "recipe/resolution" names of all that is pooled from the values.
        frame_rate_hz: Of the values: 25, or where they are pooled already that of what is wanted, None if global.
        values: float32, shape (num_frames, embed_dim).
    """

    wanted: list[str]
    frame_rate_hz: float | None
    values: np.ndarray


def read_tracks(decoded: pa.Table) -> list[Track | None]:
    """Return the track of each decoded row, or None where there is nothing to embed; no sample is copied."""
    tracks: list[Track | None] = []
    failed = decoded.column("stage").to_pylist()
    wanted = decoded.column("wanted").to_pylist()
    for chunk in decoded.column("waveform").chunks:
        offsets, samples = chunk.offsets.to_numpy(), chunk.values.to_numpy(zero_copy_only=False)
        for index, is_there in enumerate(chunk.is_valid().to_pylist()):
            row = len(tracks)
            if failed[row] or not is_there:
                tracks.append(None)
            else:
                tracks.append(Track(samples[offsets[index] : offsets[index + 1]], wanted[row]))
    return tracks


def build_rows(
    decoded: pa.Table, tracks: Sequence[Track | None], features: Sequence[Sequence[Features]]
) -> pa.Table:
    """Replace the waveforms of decoded rows by features, or by the failure that the model met.

    Args:
        decoded: Rows of ``schema.DECODED``.
        tracks: Of ``read_tracks``.
        features: Of each track; none where it has none, or failed.

    Returns:
        Rows of ``schema.EMBEDDED``, the features of each in a chunk of their own: none is copied.
    """
    columns = {name: decoded.column(name) for name in decoded.column_names if name != "waveform"}
    errors = [track.error if track else None for track in tracks]
    if any(errors):
        failures = [(error.stage.value, error.reason.value, error.message) if error else None for error in errors]
        for place, field in enumerate(FAILURE_FIELDS):
            before = columns[field.name].to_pylist()
            after = [failure[place] if failure else known for failure, known in zip(failures, before, strict=True)]
            columns[field.name] = pa.chunked_array([pa.array(after, pa.string())])
    num_frames = [
        _count_frames(len(track.waveform)) if track and found else None
        for track, found in zip(tracks, features, strict=True)
    ]
    columns["num_frames_25hz"] = pa.chunked_array([pa.array(num_frames, pa.int32())])
    columns["features"] = pa.chunked_array([as_column(found) for found in features], FEATURES)
    return pa.Table.from_arrays([columns[name] for name in EMBEDDED.names], schema=EMBEDDED)


def as_column(features: Sequence[Features]) -> pa.Array:
    """Return a track's features as a one-row column of ``schema.FEATURES``; a single array is not copied."""
    flat = [each.values.reshape(-1) for each in features]
    values = flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, np.float32), *flat])
    offsets = np.cumsum([0, *(len(each) for each in flat)])
    items = pa.StructArray.from_arrays(
        [
            _list_wanted(tuple(tuple(each.wanted) for each in features)),
            pa.array([each.frame_rate_hz for each in features], pa.float64()),
            pa.array([len(each.values) for each in features], pa.int32()),
            pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values), type=_VALUES),
        ],
        fields=list(FEATURES.value_type),
    )
    return pa.ListArray.from_arrays(pa.array([0, len(features)], pa.int32()), items, type=FEATURES)


@cache
def _list_wanted(names: tuple[tuple[str, ...], ...]) -> pa.Array:
    """Return names as a column; nearly all tracks of a run have the same."""
    return pa.array([list(each) for each in names], _WANTED)


def _count_frames(num_samples: int) -> int:
    return sum(window.num_kept_frames for window in plan_windows(num_samples, SHARED_WINDOW_S))
