"""Self-similarity: how alike any two moments of one track are, small enough to be drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIMILARITY_RESOLUTION = "8hz"  # what the model's authors probe for structure
MAX_BINS = 256


@dataclass(frozen=True)
class SelfSimilarity:
    """A track against itself.

    Args:
        values: Cosine similarity of bins of consecutive frames, float32 of shape (num_bins, num_bins), symmetric.
        bin_s: Seconds that a bin covers.
        duration_s: What all bins cover together; the last may be a shorter one.
    """

    values: NDArray[np.float32]
    bin_s: float
    duration_s: float

    def as_bytes(self) -> tuple[bytes, float, float]:
        """Return the values row by row as one byte each, and the cosines that 0 and 255 stand for."""
        low, high = float(self.values.min()), float(self.values.max())
        scale = 255.0 / (high - low) if high > low else 0.0
        return np.rint((self.values - low) * scale).astype(np.uint8).tobytes(), low, high


def compare_with_itself(
    frames: NDArray[np.float32], frame_rate_hz: float, max_bins: int = MAX_BINS
) -> SelfSimilarity:
    """Compare every moment of a track with every other one (Foote 1999, "Visualizing music and audio").

    Args:
        frames: float32 of shape (num_frames, embed_dim), at least one frame.
        frame_rate_hz: Frames a second.
        max_bins: Longer tracks have that many bins at most: the directions of neighbouring frames are averaged.

    Returns:
        The matrix and its time scale.
    """
    frames_per_bin = -(-len(frames) // max_bins)
    directions = _scale_to_unit(frames)
    starts = np.arange(0, len(frames), frames_per_bin)
    bins = _scale_to_unit(np.add.reduceat(directions, starts, axis=0))
    values = np.clip(bins @ bins.T, -1.0, 1.0)
    return SelfSimilarity(values, frames_per_bin / frame_rate_hz, len(frames) / frame_rate_hz)


def _scale_to_unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to unit length; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit
