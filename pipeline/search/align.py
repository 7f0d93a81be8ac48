"""Align: where in a track a passage fits, by frames whose directions count equally.

Raw cosines between frames of a Transformer lie close together, because few directions carry most of the variance
(and a recording's codec and place in the window move a frame along those). So frames are whitened first, as in
image retrieval (Jégou and Chum, ECCV 2012; ``index.space`` fits it), with the covariance of the index itself. And
a passage is compared by how it changes, its mean taken out, as speech recognition takes out a channel's colour
(Atal, 1974): a low-pass that an encoder adds shifts all frames alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

_MAX_BLOCK_VALUES = 2**22  # of the frames that are compared at once


def align_passage(passage: Matrix, track: Matrix) -> tuple[float, int, int]:
    """Find where a passage fits best in a track.

    Of a passage of n frames, its mean counts as one and the changes of its frames around it as the other n - 1,
    each by cosine. Where the passage is the longer of the two, the track is moved along it, and frames for which
    there is no room count as 0.

    Args:
        passage: Whitened frames, float32 of shape (n, d).
        track: Whitened frames, float32 of shape (m, d).

    Returns:
        The score, at most 1; the first frame of the track that is covered; how many are.
    """
    if len(passage) <= len(track):
        scores = score_places(passage, track)
        best = int(np.argmax(scores))
        return float(scores[best]), best, len(passage)
    scores = score_places(track, passage)
    return float(scores.max()) * len(track) / len(passage), 0, len(track)


def score_places(short: Matrix, long: Matrix) -> npt.NDArray[np.float32]:
    """Score every place of a short run of frames within a long one.

    Args:
        short: float32 of shape (n, d).
        long: float32 of shape (m, d), m at least n.

    Returns:
        float32 of shape (m - n + 1,).
    """
    mean = short.mean(axis=0)
    changes = _normalise(short - mean)
    weight = (len(short) - 1) / len(short) if changes.any() else 0.0
    runs = np.lib.stride_tricks.sliding_window_view(long, len(short), axis=0).transpose(0, 2, 1)
    places_per_block = max(1, _MAX_BLOCK_VALUES // short.size)
    blocks = []
    for start in range(0, len(runs), places_per_block):
        block = runs[start : start + places_per_block]
        means = block.mean(axis=1)
        by_mean = _normalise(means) @ _normalise(mean)
        by_change = np.einsum("pnd,nd->p", _normalise(block - means[:, None]), changes) / len(short)
        blocks.append((1 - weight) * by_mean + weight * by_change)
    return np.concatenate(blocks).astype(np.float32)


def _normalise(vectors: Matrix) -> Matrix:
    """Scale vectors to unit length; those that are zero, to rounding, become zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), 0), np.float32)
