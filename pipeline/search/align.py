"""Align: where in a track a passage fits, by frames whose directions count equally.

Raw cosines between frames of a Transformer lie close together, because few directions carry most of the variance
(and a recording's codec and place in the window move a frame along those). So frames are whitened first, as in
image retrieval (Jégou and Chum, ECCV 2012), with the covariance of the index itself. And a passage is compared by
how it changes, its mean taken out, as speech recognition takes out a channel's colour (Atal, 1974): a low-pass
that an encoder adds shifts all frames alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

MAX_DIMENSIONS = 128  # kept after whitening: what lies beyond is mostly noise, and costs time
_MAX_BLOCK_VALUES = 2**22  # of the frames that are compared at once


@dataclass(frozen=True)
class Whitening:
    """A linear map after which the index's vectors vary equally in all directions.

    Args:
        mean: float32 of shape (embed_dim,).
        projection: float32 of shape (embed_dim, num_dimensions).
    """

    mean: Matrix
    projection: Matrix

    def apply(self, vectors: Matrix) -> Matrix:
        """Whiten unit vectors: (n, embed_dim) to (n, num_dimensions), float32."""
        return np.asarray((vectors - self.mean) @ self.projection, np.float32)


def fit_whitening(vectors: Matrix, max_dimensions: int = MAX_DIMENSIONS) -> Whitening:
    """Fit a whitening to a sample, its covariance shrunk towards a round one.

    How far it is shrunk follows from the sample (Ledoit and Wolf, 2004, "A well-conditioned estimator for
    large-dimensional covariance matrices", their lemma 3.3 and equation 14): few vectors in many dimensions say
    little about small directions, and whitening would blow up what is chance.

    Args:
        vectors: Unit vectors, float32 of shape (n, embed_dim), at least one.
        max_dimensions: Most directions that are kept, those of largest variance.
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    num_vectors, embed_dim = centred.shape
    covariance = centred.T @ centred / num_vectors
    scale = float(np.trace(covariance)) / embed_dim
    spread = float(np.sum(covariance**2)) - embed_dim * scale**2
    noise = (
        float(np.sum(np.sum(centred**2, axis=1) ** 2)) / num_vectors - float(np.sum(covariance**2))
    ) / num_vectors
    share = min(1.0, max(0.0, noise) / spread) if spread > 0 else 1.0
    variances, directions = np.linalg.eigh(covariance)
    shrunk = (1 - share) * variances + share * scale
    kept = np.argsort(-shrunk, kind="stable")[:max_dimensions]
    projection = directions[:, kept] / np.sqrt(np.maximum(shrunk[kept], np.finfo(np.float32).eps * scale + 1e-12))
    return Whitening(mean.astype(np.float32), projection.astype(np.float32))


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
