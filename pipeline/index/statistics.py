"""Statistics: what an index's space is fitted to, a sample of its store's vectors, and which space it gets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.errors import UsageError
from pipeline.index.codes import Matrix, normalise_rows
from pipeline.index.space import Distance, Space, fit_centring, fit_whitening, fit_within_track
from pipeline.store.snapshot import NoVectorsError
from pipeline.store.source import Source, open_source, read_vectors

MOMENTS = "0.5hz"
MIN_TRACKS = 50  # measured: from 32 on the covariance of their moments does not lower recall
SAMPLE_TRACKS = 16_384
SAMPLE_MOMENT_TRACKS, MOMENTS_PER_TRACK = 2048, 16
MIN_PARTS = 8  # so that a sample does not stand for one artist


def choose_distance(source: Source, previous: Distance | None = None) -> Distance:
    """Choose how an index compares vectors: what won on held-out music, where there is enough of it.

    Args:
        source: What the index is made of.
        previous: By what the present index compares.

    Returns:
        ``within-track`` for global vectors of ``MIN_TRACKS`` tracks and more whose moments are stored, else
        ``plain``. (Moments are compared in a space of their own, see ``search.align``.)

    Raises:
        StorageError: The store cannot be read.
    """
    if source.resolution != "global":
        return "plain"
    if previous == "within-track":
        return previous
    try:
        num_tracks = min(source.ledger.num_rows, MIN_TRACKS)
        if num_tracks == MIN_TRACKS:
            num_tracks = open_source(source.store, MOMENTS, source.recipe).ledger.num_rows
    except NoVectorsError:
        return "plain"
    return "within-track" if num_tracks >= MIN_TRACKS else "plain"


def fit_space(distance: Distance, source: Source) -> Space | None:
    """Fit the space of an index to a sample of its store.

    Args:
        distance: Which space.
        source: What the index is made of.

    Returns:
        None for ``plain``.

    Raises:
        UsageError: It is an index of moments.
        NoVectorsError: ``within-track``, and the store has no moments at 0.5 Hz.
        StorageError: The store cannot be read.
    """
    if distance == "plain":
        return None
    if source.resolution != "global":
        raise UsageError(
            f"expected distance plain for resolution {source.resolution}, found {distance}: passages are compared "
            "in a whitened space as it is"
        )
    sample = np.concatenate([vectors for _, vectors in sample_tracks(source, SAMPLE_TRACKS)])
    if distance == "centred":
        return fit_centring(sample)
    if distance == "whitened":
        return fit_whitening(sample)
    moments = open_source(source.store, MOMENTS, source.recipe)
    deviations = [
        vectors - vectors.mean(axis=0, keepdims=True)
        for _, vectors in sample_tracks(moments, SAMPLE_MOMENT_TRACKS, MOMENTS_PER_TRACK)
    ]
    return fit_within_track(sample.mean(axis=0), np.concatenate(deviations))


def sample_tracks(
    source: Source, num_tracks: int, vectors_per_track: int = 1, seed: int = 0
) -> Iterator[tuple[str, Matrix]]:
    """Yield unit vectors of some tracks drawn at random out of a few of the store's parts.

    Args:
        source: The snapshot.
        num_tracks: About how many; all where there are fewer.
        vectors_per_track: At most so many of each, spread over it evenly.
        seed: Of the draw.

    Yields:
        Track id, and float32 of shape (n, embed_dim); values that are not finite are left out.

    Raises:
        StorageError: The store cannot be read.
    """
    random = np.random.default_rng(seed)
    paths = source.parts.column("path").to_pylist()
    sizes = [size or 0 for size in source.parts.column("num_records").to_pylist()]
    order = random.permutation(len(paths))
    ends = np.cumsum([sizes[part] for part in order])
    num_parts = max(MIN_PARTS, int(np.searchsorted(ends, num_tracks)) + 1)
    chosen = order[:num_parts]
    share = num_tracks / max(1, sum(sizes[part] for part in chosen))
    for batch in read_vectors(source, [paths[part] for part in chosen], source.ledger):
        firsts = np.cumsum(batch.lengths) - batch.lengths
        ids = batch.keys.column("track_id").to_pylist()
        for track_id, first, length in zip(ids, firsts, batch.lengths, strict=True):
            if random.random() >= share:
                continue
            rows = np.unique(np.linspace(0, length - 1, min(length, vectors_per_track)).round().astype(np.int64))
            vectors = batch.vectors[first + rows]
            vectors = normalise_rows(vectors[np.isfinite(vectors).all(axis=1)])
            if len(vectors):
                yield track_id, vectors
