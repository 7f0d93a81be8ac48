"""A PyTorch dataset over a store's frames, streamed part by part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.store.read import FeatureStore


class FrameDataset(IterableDataset[dict[str, Any]]):
    """All live tracks of one resolution; each item is ``{"track_id", "embeddings"}``.

    ``embeddings`` is float32 of shape (num_frames, embed_dim). Parts are shared out among the workers of a
    ``DataLoader``, and no worker holds more than some tracks of one.

    Args:
        store: The snapshot to read; pinned, so that all workers and all epochs see the same rows.
        resolution: Name of a resolution.
        recipe: Recipe id; may be left out where the store has only one.
    """

    def __init__(self, store: FeatureStore, resolution: str, recipe: str | None = None) -> None:
        self.parts = store.list_parts(resolution, recipe)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the tracks of this worker's share of the parts."""
        worker = get_worker_info()
        shard, num_shards = (worker.id, worker.num_workers) if worker else (0, 1)
        for path in self.parts.paths[shard::num_shards]:
            for tracks in self.parts.stream(path):
                for row in range(tracks.num_rows):
                    vectors = tracks.column("embeddings")[row].values
                    matrix = np.array(pc.list_flatten(vectors), np.float32).reshape(len(vectors), -1)
                    track_id = tracks.column("track_id")[row].as_py()
                    yield {"track_id": track_id, "embeddings": torch.from_numpy(matrix)}
