"""Rows of ``frames`` that hold one vector a track, for stores that benchmarks make up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import FRAMES


def build_vector_rows(ledger: pa.Table, vectors: npt.NDArray[np.float32]) -> pa.Table:
    """Return the rows of ``frames`` at ``global`` that go with rows of the ledger.

    Args:
        ledger: Rows of ``schema.TRACKS``.
        vectors: float32 of shape (num_tracks, embed_dim), as they are stored.
    """
    size, embed_dim = vectors.shape
    offsets = pa.array(np.arange(0, vectors.size + 1, embed_dim), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
    columns: dict[str, Any] = {
        **{name: ledger.column(name) for name in ("recipe", "track_id", "content_hash", "event_time")},
        "resolution": pa.repeat("global", size),
        "start_frame": np.zeros(size, np.int32),
        "num_frames": np.ones(size, np.int32),
        "frame_rate_hz": pa.nulls(size, pa.float64()),
        "embeddings": pa.ListArray.from_arrays(pa.array(np.arange(size + 1), pa.int32()), lists),
    }
    return pa.table({name: columns[name] for name in FRAMES.names}, schema=FRAMES)
