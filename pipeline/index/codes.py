"""What faiss does for an index: scan rows, and find candidates by compressed codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

QUERY_BITS = 4  # a dimension of the query; eight find no more and take a fifth longer
CODE_BITS = 2  # a dimension; one bit needs twice the candidates, four twice the time to encode
VARIANCE = 0.97
AXES_SAMPLE = 10_000
DEAD_SLACK = 64  # unwanted rows that a scan may meet before it has to look at each row's mark
CODE_DIM_STEP = 64  # dimensions that one step of the codes' arithmetic takes
MAX_LISTS = 16_384
MIN_ROWS_PER_LIST = 16
TRAINING_ROWS_PER_LIST = 32
CLUSTERING_ROUNDS = 5  # eight find the same

_faiss: Any = faiss  # its type stubs know the C++ constructors alone, not what the Python module adds to them


def normalise_rows(vectors: Matrix) -> Matrix:
    """Return rows of length one, float32; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def make_rows(embed_dim: int) -> Any:
    """Return an empty faiss index of half-precision rows, scanned by inner product."""
    return _faiss.IndexScalarQuantizer(embed_dim, _faiss.ScalarQuantizer.QT_fp16, _faiss.METRIC_INNER_PRODUCT)


def map_index(path: str) -> Any:
    """Map rows or codes from a file; pages are read when asked for, and survive the file's removal."""
    return _faiss.read_index(path, _faiss.IO_FLAG_MMAP_IFC)


def write_index(index: Any, path: str) -> None:
    """Write rows or codes to a file."""
    _faiss.write_index(index, path)


def load_codes(path: str) -> Any:
    """Read codes into memory, where they can be changed."""
    return _faiss.read_index(path)


def scan_rows(rows: Any, queries: Matrix, k: int, wanted: Mask | None = None) -> tuple[Matrix, Rows]:
    """Return the k best inner products and their positions, descending; -inf and -1 where there are fewer."""
    params = None if wanted is None else _faiss.SearchParameters(sel=_select(wanted))
    scores, nearest = rows.search(queries, k, params=params)
    return np.where(nearest >= 0, scores, np.float32(-np.inf)), nearest


def scan_wanted_rows(segment: Any, queries: Matrix, k: int, wanted: Mask) -> tuple[Matrix, Rows]:
    """Scan a segment of rows for those that are wanted, of which it may hold few or nearly all.

    Args:
        segment: From ``map_index``.
        queries: Unit vectors, float32 of shape (num_queries, embed_dim).
        k: How many rows.
        wanted: Marks of the segment's rows.

    Returns:
        Scores and rows of shape (num_queries, k or fewer), best first; -inf and -1 where there are none.
    """
    num_wanted = int(np.count_nonzero(wanted))
    num_rows = int(segment.ntotal)
    num_dead = num_rows - num_wanted
    k = min(k, num_wanted)
    if k == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    if num_dead < num_rows // 3:
        # A plain scan is three times as fast as one that asks for each row's mark.
        scores, rows = scan_rows(segment, queries, min(num_rows, k + min(num_dead, DEAD_SLACK)))
        scores[~wanted[rows]] = -np.inf
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, kept, 1), np.take_along_axis(rows, kept, 1)
        if np.isfinite(scores[:, -1]).all():
            return scores, rows
    return scan_rows(segment, queries, k, wanted)


def choose_num_lists(num_rows: int) -> int:
    """Return how many lists an inverted file of some size gets: about eight times its square root.

    Measured at a million vectors of 128 kept dimensions: six times finds 0.958 in 3.5 ms, eight times 0.966.
    """
    return int(min(MAX_LISTS, max(1, min(8 * num_rows**0.5, num_rows / MIN_ROWS_PER_LIST))))


@dataclass(frozen=True)
class Axes:
    """Principal axes.

    Args:
        mean: float32 of shape (embed_dim,).
        directions: Unit rows, float32 of shape (embed_dim, embed_dim), most variance first.
        variance: Along each.
    """

    mean: Matrix
    directions: Matrix
    variance: npt.NDArray[np.float64]


def find_axes(sample: Matrix) -> Axes:
    """Find the principal axes of some vectors, float32 of shape (n, embed_dim)."""
    mean = sample.mean(axis=0)
    variance, axes = np.linalg.eigh((sample - mean).T @ (sample - mean) / max(1, len(sample) - 1))
    return Axes(mean, axes[:, ::-1].T.astype(np.float32), np.maximum(variance[::-1], 0))


def train_codes(sample: Matrix, axes: Axes, num_lists: int, seed: int = 0) -> Any:
    """Train an inverted file of RaBitQ codes (Gao and others 2024, arXiv 2409.09913), still empty.

    Music embeddings lie near a subspace of far fewer dimensions than they have. The vectors are rotated into the
    axes that hold ``VARIANCE`` of theirs, in random directions within, as the code wants them; what is left out
    blurs the order of the candidates alone.

    Args:
        sample: Unit rows, float32 of shape (n, embed_dim).
        axes: The vectors' principal axes.
        num_lists: Lists of the inverted file.
        seed: Of the rotation and the clustering.
    """
    embed_dim = sample.shape[1]
    kept = int(np.searchsorted(np.cumsum(axes.variance), VARIANCE * axes.variance.sum()) + 1)
    code_dim = min(embed_dim, -(-kept // CODE_DIM_STEP) * CODE_DIM_STEP)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((code_dim, code_dim)))
    matrix = np.ascontiguousarray(rotation @ axes.directions[:code_dim], np.float32)
    rotation = _faiss.LinearTransform(embed_dim, code_dim, True)
    _faiss.copy_array_to_vector(matrix.ravel(), rotation.A)
    _faiss.copy_array_to_vector(np.ascontiguousarray(-matrix @ axes.mean, np.float32), rotation.b)
    rotation.is_trained = True
    rotated = rotation.apply(sample)
    lists = _faiss.IndexFlatL2(code_dim)
    clustering = _faiss.Clustering(code_dim, num_lists)
    clustering.niter, clustering.seed = CLUSTERING_ROUNDS, seed
    clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, TRAINING_ROWS_PER_LIST
    clustering.train(rotated, lists)
    codes = _faiss.IndexIVFRaBitQ(lists, code_dim, num_lists, _faiss.METRIC_L2, True, CODE_BITS)
    codes.train(rotated)
    return _faiss.IndexPreTransform(rotation, codes)


def add_codes(codes: Any, vectors: Matrix, first_row: int) -> None:
    """Add unit rows, whose ids count from ``first_row``."""
    codes.add_with_ids(vectors, np.arange(first_row, first_row + len(vectors)))


def remove_codes(codes: Any, dead: Mask) -> int:
    """Remove the rows that are marked; return how many there were."""
    return int(codes.remove_ids(_select(dead)))


def merge_codes(codes: Any, other: bytes) -> None:
    """Move what another copy of the same trained codes was filled with, serialised, into this one."""
    added = deserialise_codes(other)
    lists, added_lists = (_faiss.extract_index_ivf(index) for index in (codes, added))
    lists.merge_from(added_lists, 0)
    codes.ntotal = lists.ntotal


def serialise_codes(codes: Any) -> bytes:
    """Return codes as bytes."""
    return bytes(_faiss.serialize_index(codes))


def deserialise_codes(data: bytes) -> Any:
    """Return codes that ``serialise_codes`` wrote."""
    return _faiss.deserialize_index(np.frombuffer(data, np.uint8))


def describe_codes(codes: Any) -> dict[str, int]:
    """Return the parameters that codes were trained with."""
    lists = _faiss.extract_index_ivf(codes)
    return {"num_lists": int(lists.nlist), "code_dim": int(lists.d), "code_bits": CODE_BITS}


def search_codes(codes: Any, queries: Matrix, nprobe: int, depth: int, wanted: Mask | None = None) -> Rows:
    """Find candidates by their codes, most likely first.

    Args:
        codes: From ``train_codes``, filled.
        queries: Unit rows, float32 of shape (n, embed_dim).
        nprobe: Lists of the inverted file to look through.
        depth: How many candidates.
        wanted: Marks of the rows that may be returned; all by default.

    Returns:
        int64 of shape (n, depth), -1 where there are fewer.
    """
    inner = _faiss.IVFRaBitQSearchParameters(
        nprobe=nprobe, qb=QUERY_BITS, sel=None if wanted is None else _select(wanted)
    )
    _, rows = codes.search(queries, depth, params=_faiss.SearchParametersPreTransform(index_params=inner))
    return np.asarray(rows, np.int64)


def _select(wanted: Mask) -> Any:
    return _faiss.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))
