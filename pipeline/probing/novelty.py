"""Novelty: how far what follows a moment differs from what came before it, by which sections are told apart.

What makes a boundary is a change, and what changes differs from song to song: a head that sees single frames
cannot learn it. So boundaries are found in the features without training (J. Foote, "Automatic audio segmentation
using a measure of audio novelty", ICME 2000), here by the distance between two means in place of a checkerboard
kernel over all pairs of frames: in time and memory that grow with the track's length alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NOVELTY_S = 8.0
"""Seconds before and behind a moment that are compared. Of 4, 6, 8, 10 and 12 the best with all features of the
benchmark's training and validation songs."""

_DIMS_AT_ONCE = 64  # whose running sums are there at once, in double precision


def measure_novelty(features: npt.NDArray[np.float32], frame_rate_hz: float) -> npt.NDArray[np.float32]:
    """Return how new each moment of a track is.

    Args:
        features: float32 of shape (num_frames, embed_dim), scaled so that all values count alike.
        frame_rate_hz: Of the features.

    Returns:
        float32 of shape (num_frames,), in standard deviations from the track's mean: the distance between the
        means of up to ``NOVELTY_S`` from the beginning of a frame on, and before it. Near the ends, where one
        side is short, it counts less, as the difference of two means varies more. 0 for the first frame, which
        nothing came before, and throughout where nothing ever changes.
    """
    num_frames = len(features)
    if num_frames < 2:
        return np.zeros(num_frames, np.float32)
    reach = max(1, round(NOVELTY_S * frame_rate_hz))
    place = np.arange(num_frames)
    first, stop = np.maximum(0, place - reach), np.minimum(num_frames, place + reach)
    before, after = np.maximum(place - first, 1)[:, None], (stop - place)[:, None]
    squares = np.zeros(num_frames)
    for start in range(0, features.shape[1], _DIMS_AT_ONCE):
        values = features[:, start : start + _DIMS_AT_ONCE]
        sums = np.zeros((num_frames + 1, values.shape[1]))
        np.cumsum(values, axis=0, dtype=np.float64, out=sums[1:])
        change = (sums[stop] - sums[place]) / after - (sums[place] - sums[first]) / before
        squares += np.einsum("ij,ij->i", change, change)
    weight = (before * after / (before + after))[:, 0]
    novelty = np.sqrt(squares * weight)[1:]
    scaled, spread = np.zeros(num_frames, np.float32), novelty.std()
    if spread > 1e-9 * max(1.0, float(novelty.max())):
        scaled[1:] = (novelty - novelty.mean()) / spread
    return scaled
