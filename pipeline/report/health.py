"""Embedding health: figures that show whether a recipe's vectors are fit to be searched and learnt from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

DEAD_SHARE = 1e-3  # of the median spread: a dimension that moves less says nothing
EXPLODING_SHARE = 30.0  # of the median spread or offset: one dimension that drowns the others
NEAR_SHARE = 0.25  # of the typical distance to the nearest neighbour, as near_duplicates has it
MIN_DISTANCE = 1e-5  # to about this, equal vectors have cosine 1
MAX_COMPARED = 4000  # vectors compared each with each
MAX_CLUSTERS = 6
DRIFT = 0.25  # mean shift in standard deviations that is told as drift
BLOCK_ROWS = 500
MAX_BINS = 24


def measure_health(vectors: Matrix) -> dict[str, Any]:
    """Measure a sample of vectors.

    Args:
        vectors: (num_vectors, embed_dim); may hold values that are not finite.

    Returns:
        num_vectors, embed_dim, num_non_finite (vectors with any such value), norms (of the finite ones, as
        ``summarise`` has it), dead and exploding (positions of such dimensions), spreads (decimal logarithms of
        the standard deviations by dimension, summarised), effective_dimensions (participation ratio of the
        covariance's eigenvalues), mean_cosine (of a vector with the mean of all).
    """
    finite = np.isfinite(vectors).all(axis=1)
    sound = vectors[finite].astype(np.float64)
    facts: dict[str, Any] = {
        "num_vectors": len(vectors),
        "embed_dim": int(vectors.shape[1]),
        "num_non_finite": int((~finite).sum()),
    }
    if len(sound) < 2:
        return facts
    norms = np.linalg.norm(sound, axis=1)
    mean, spread = sound.mean(axis=0), sound.std(axis=0)
    typical = max(float(np.median(spread)), 1e-12)
    offset = max(float(np.median(np.abs(mean))), typical)
    variances = np.maximum(np.linalg.eigvalsh((sound - mean).T @ (sound - mean)), 0.0)
    return {
        **facts,
        "norms": summarise(norms),
        "dead": np.flatnonzero(spread <= DEAD_SHARE * typical).tolist(),
        "exploding": np.flatnonzero(
            (spread >= EXPLODING_SHARE * typical) | (np.abs(mean) >= EXPLODING_SHARE * offset)
        ).tolist(),
        "spreads": summarise(np.log10(spread[spread > 0])),
        "effective_dimensions": float(variances.sum() ** 2 / max(float((variances**2).sum()), 1e-30)),
        "mean_cosine": float(np.mean(sound @ mean / np.maximum(norms * np.linalg.norm(mean), 1e-30))),
    }


def summarise(values: npt.ArrayLike) -> dict[str, Any] | None:
    """Reduce values to what a histogram and a line of text need; None where no value is finite.

    Args:
        values: Numbers; those that are not finite are left out and not counted.

    Returns:
        number, minimum, p05, median, p95, maximum, edges (one more than counts) and counts.
    """
    numbers = np.asarray(values, np.float64).reshape(-1)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return None
    low, p05, median, p95, high = (float(value) for value in np.percentile(numbers, [0, 5, 50, 95, 100]))
    margin = 0.5 * max(abs(high), 1.0) if high - low <= 1e-6 * max(1.0, abs(high)) else 0.0
    num_bins = int(np.clip(np.sqrt(len(numbers)) * 1.3, 5, MAX_BINS))
    counts, edges = np.histogram(numbers, bins=num_bins, range=(low - margin, high + margin))
    spans = {"minimum": low, "p05": p05, "median": median, "p95": p95, "maximum": high}
    return {"number": len(numbers), **spans, "edges": edges.tolist(), "counts": counts.tolist()}


def find_clusters(vectors: Matrix) -> dict[str, Any]:
    """Find groups of vectors so near each other that they are likely one recording.

    Near is within a quarter of the typical distance (1 - cosine) between a vector and its nearest other.

    Args:
        vectors: (num_vectors, embed_dim), finite.

    Returns:
        num_compared, score (from which cosine on a pair counts), num_clusters, num_members, and clusters: the
        rows of the largest ones.
    """
    places = np.linspace(0, len(vectors) - 1, min(len(vectors), MAX_COMPARED)).astype(np.int64)
    sample = vectors[places].astype(np.float32)
    none: dict[str, Any] = {
        "num_compared": len(sample),
        "score": None,
        "num_clusters": 0,
        "num_members": 0,
        "clusters": [],
    }
    if len(sample) < 3:
        return none
    unit = sample / np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-30)
    nearest = np.concatenate([_score(unit, start).max(axis=1) for start in range(0, len(unit), BLOCK_ROWS)])
    score = 1 - max(NEAR_SHARE * float(np.median(1 - nearest)), MIN_DISTANCE)
    parent = list(range(len(unit)))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for start in range(0, len(unit), BLOCK_ROWS):
        for left, right in np.argwhere(_score(unit, start) >= score):
            parent[find(start + int(left))] = find(int(right))
    groups: dict[int, list[int]] = {}
    for row in range(len(unit)):
        groups.setdefault(find(row), []).append(row)
    clusters = [places[rows].tolist() for rows in groups.values() if len(rows) > 1]
    clusters.sort(key=lambda rows: (-len(rows), rows))
    return {
        "num_compared": len(unit),
        "score": score,
        "num_clusters": len(clusters),
        "num_members": sum(len(rows) for rows in clusters),
        "clusters": clusters[:MAX_CLUSTERS],
    }


def measure_drift(now: Matrix, before: Matrix) -> dict[str, Any]:
    """Compare two samples of one recipe's vectors.

    Args:
        now: Of this snapshot, (num_vectors, embed_dim), finite.
        before: Of the one before.

    Returns:
        num_now, num_before, mean_shift and max_shift (of the means by dimension, in standard deviations of the
        sample before), threshold and num_moved (dimensions shifted by more than it: ``DRIFT``, or what
        small samples hardly show by chance), expected_shift (what two samples
        of this size show by chance), norm_ratio (of median norms), cosine (of the two means).
    """
    spread = np.maximum(before.std(axis=0, dtype=np.float64), 1e-12)
    means = now.mean(axis=0, dtype=np.float64), before.mean(axis=0, dtype=np.float64)
    shift = np.abs(means[0] - means[1]) / spread
    norms = [float(np.median(np.linalg.norm(vectors, axis=1))) for vectors in (now, before)]
    cosine = means[0] @ means[1] / max(float(np.linalg.norm(means[0]) * np.linalg.norm(means[1])), 1e-30)
    error = float(np.sqrt(1 / len(now) + 1 / len(before)))  # of a mean's shift, in standard deviations
    threshold = max(DRIFT, 3 * error)
    return {
        "num_now": len(now),
        "num_before": len(before),
        "mean_shift": float(shift.mean()),
        "max_shift": float(shift.max()),
        "threshold": threshold,
        "num_moved": int((shift > threshold).sum()),
        "expected_shift": float(np.sqrt(2 / np.pi)) * error,  # the mean of |x|, where x is normal
        "norm_ratio": norms[0] / max(norms[1], 1e-30),
        "cosine": float(cosine),
    }


def draw_map(vectors: Matrix) -> tuple[Matrix, float]:
    """Project vectors on the two directions in which they spread most.

    Args:
        vectors: (num_vectors, embed_dim), finite.

    Returns:
        (num_vectors, 2), and the share of the variance that the picture holds.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    centred = (unit - unit.mean(axis=0)).astype(np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred)
    points = centred @ directions[:, ::-1][:, :2]
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    share = float(values[::-1][:2].sum() / max(float(values.sum()), 1e-30))
    return points.astype(np.float32), share


def _score(unit: Matrix, start: int) -> Matrix:
    """Return cosines of some rows with all; of a row with itself -1."""
    scores = unit[start : start + BLOCK_ROWS] @ unit.T
    rows = np.arange(len(scores))
    scores[rows, start + rows] = -1.0
    return scores
