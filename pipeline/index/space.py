"""Spaces: how vectors are moved and stretched before they are compared by cosine.

Vectors of self-supervised models share a direction, and few directions carry most of their variance: a plain
cosine measures those alone. What a space is made of says how much of that it takes out: a mean (``centred``), the
covariance of all vectors (``whitened``), or the covariance of a track's moments around the track's own mean
(``within-track``), by which the directions count little in which one and the same recording already moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from pipeline.index.codes import normalise_rows
from pipeline.index.files import IndexFile, IndexLocation, fetch_file

Matrix = npt.NDArray[np.float32]
Distance = Literal["plain", "centred", "whitened", "within-track"]

DISTANCES: tuple[Distance, ...] = get_args(Distance)
_BLOCK_ROWS = 4096  # bounds what double precision takes
MAX_DIMENSIONS = 128  # kept after whitening: what lies beyond is mostly noise, and costs time


@dataclass(frozen=True)
class Space:
    """An affine map of unit vectors.

    Args:
        mean: float32 of shape (embed_dim,); subtracted first.
        projection: float32 of shape (embed_dim, num_dimensions).
    """

    mean: Matrix
    projection: Matrix

    def apply(self, vectors: Matrix) -> Matrix:
        """Map unit vectors: (n, embed_dim) to (n, num_dimensions), float32, of any length."""
        return np.asarray((vectors - self.mean) @ self.projection, np.float32)

    def place(self, vectors: Matrix) -> Matrix:
        """Map vectors of any length to unit vectors of the space; one that lies on the mean becomes zero."""
        return normalise_rows(self.apply(normalise_rows(vectors)))

    def to_array(self) -> Matrix:
        """Return mean and projection as one array, shape (1 + num_dimensions, embed_dim)."""
        return np.vstack([self.mean[None], self.projection.T])

    @classmethod
    def from_array(cls, array: Matrix) -> Space:
        """Return the space that ``to_array`` wrote."""
        return cls(array[0], np.ascontiguousarray(array[1:].T))


def place_vectors(vectors: Matrix, space: Space | None) -> Matrix:
    """Return the unit vectors that an index holds of some vectors; None is the plain space."""
    return normalise_rows(vectors) if space is None else space.place(vectors)


def read_space(location: IndexLocation, files: Mapping[str, IndexFile], cache: str | None) -> Space | None:
    """Read the space of an index from its files by role; None where it is the plain one.

    Raises:
        StorageError: The file is missing or damaged.
    """
    if "space" not in files:
        return None
    return Space.from_array(np.load(fetch_file(location, files["space"], cache)))


def fit_centring(vectors: Matrix) -> Space:
    """Fit a space that only takes the mean of a sample out, float32 of shape (n, embed_dim), at least one."""
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Space(mean, np.eye(len(mean), dtype=np.float32))


def fit_whitening(vectors: Matrix, max_dimensions: int = MAX_DIMENSIONS) -> Space:
    """Fit a whitening to a sample, its covariance shrunk towards a round one.

    Args:
        vectors: Unit vectors, float32 of shape (n, embed_dim), at least one.
        max_dimensions: Most directions that are kept, those of largest variance.
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    return Space(mean.astype(np.float32), _whiten(vectors - mean, max_dimensions))


def fit_within_track(mean: Matrix, deviations: Matrix) -> Space:
    """Fit a space in which tracks' moments scatter equally in all directions.

    That is within-class covariance normalisation (Hatch, Kajarekar and Stolcke, Interspeech 2006) with a track for
    a class, and the covariance shrunk as in ``fit_whitening``.

    Args:
        mean: Of the tracks' vectors, float32 of shape (embed_dim,).
        deviations: Of unit vectors of moments from their own track's mean, float32 of shape (n, embed_dim).
    """
    return Space(mean.astype(np.float32), _whiten(deviations, len(mean)))


def _whiten(centred: npt.NDArray[np.floating], max_dimensions: int) -> Matrix:
    """Return what whitens centred vectors, float32 of shape (embed_dim, at most max_dimensions).

    How far their covariance is shrunk follows from the sample (Ledoit and Wolf, 2004, "A well-conditioned
    estimator for large-dimensional covariance matrices", their lemma 3.3 and equation 14): few vectors in many
    dimensions say little about small directions, and whitening would blow up what is chance.
    """
    num_vectors, embed_dim = centred.shape
    covariance = np.zeros((embed_dim, embed_dim))
    for first in range(0, num_vectors, _BLOCK_ROWS):
        block = centred[first : first + _BLOCK_ROWS].astype(np.float64)
        covariance += block.T @ block / num_vectors
    scale = float(np.trace(covariance)) / embed_dim
    squares = float(np.sum(covariance**2))
    spread = squares - embed_dim * scale**2
    noise = (float(np.sum(np.sum(centred**2, axis=1) ** 2)) / max(1, num_vectors) - squares) / max(1, num_vectors)
    share = min(1.0, max(0.0, noise) / spread) if spread > 0 else 1.0
    variances, directions = np.linalg.eigh(covariance)
    shrunk = (1 - share) * variances + share * scale
    kept = np.argsort(-shrunk, kind="stable")[:max_dimensions]
    floor = np.finfo(np.float32).eps * scale + 1e-12
    return np.asarray(directions[:, kept] / np.sqrt(np.maximum(shrunk[kept], floor)), np.float32)
