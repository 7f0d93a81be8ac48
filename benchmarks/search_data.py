"""What the search benchmark works on: vectors of known shape, estimates of their dimension, stores of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import Recipe
from pipeline.location import StoreLocation
from pipeline.schema import FEATURE_LIST, RECIPES, TRACKS
from pipeline.store.ledger import Actions, extract_rows
from pipeline.store.parts import write_part
from pipeline.store.table_commits import append_rows
from pipeline.store.tables import create_tables
from pipeline.store.upgrade import build_vector_rows
from pipeline.store.writer import StoreWriter

Matrix = npt.NDArray[np.float32]

EMBED_DIM = 1024
CHUNK_ROWS = 20_000
RECIPE = Recipe("00" * 32, 7)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_realistic(num_rows: int, seed: int) -> Matrix:
    """Draw vectors of realistic intrinsic dimension.

    A mixture of 2,000 Gaussians in a subspace of 70 dimensions whose spectrum decays, about a common mean, with
    1 % of the variance spread evenly over all dimensions.
    """
    fixed = np.random.default_rng(12345)
    spectrum = (np.arange(1, 71) ** -0.2).astype(np.float32)
    basis = np.linalg.qr(fixed.standard_normal((EMBED_DIM, 70)))[0].astype(np.float32)
    centres = (fixed.standard_normal((2000, 70)) * spectrum).astype(np.float32)
    mean = fixed.standard_normal(EMBED_DIM).astype(np.float32) * np.float32(0.05)
    random = np.random.default_rng(seed)
    inner = random.standard_normal((num_rows, 70), dtype=np.float32) * spectrum
    inner = np.float32(0.5) * centres[random.integers(2000, size=num_rows)] + np.float32(0.8) * inner
    noise = np.float32(0.1 * np.linalg.norm(spectrum) / EMBED_DIM**0.5)
    vectors: Matrix = inner @ basis.T + mean
    vectors += noise * random.standard_normal((num_rows, EMBED_DIM), dtype=np.float32)
    return vectors


def make_isotropic(num_rows: int, seed: int) -> Matrix:
    """Draw vectors from 1,000 isotropic Gaussians that overlap: the hard case, of full dimension."""
    centres = np.random.default_rng(54321).standard_normal((1000, EMBED_DIM), dtype=np.float32)
    random = np.random.default_rng(seed)
    offsets = np.float32(0.35) * centres[random.integers(1000, size=num_rows)]
    return offsets + random.standard_normal((num_rows, EMBED_DIM), dtype=np.float32)


def count_participation(vectors: Matrix) -> float:
    """Return the participation ratio: the spectrum's squared sum over its sum of squares.

    A Gaussian of n equal directions has n; linear, so it counts the directions that a curved sheet bends through.
    """
    spectrum = np.linalg.eigvalsh(np.cov(vectors, rowvar=False))
    return float(spectrum.sum() ** 2 / (spectrum**2).sum())


def estimate_two_nn(vectors: Matrix, num_queries: int = 2000) -> float:
    """Return the TwoNN estimate of intrinsic dimension (Facco and others 2017, doi 10.1038/s41598-017-11873-y).

    From the ratio of each vector's second and first nearest distances, by least squares over the lower nine
    tenths. It is local, and low for high dimensions and few vectors.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    squared, _ = faiss.knn(unit[:num_queries], unit, 3)
    first, second = np.sqrt(np.maximum(squared[:, 1:], 1e-12)).T
    apart = first > 1e-5  # copies say nothing
    ratio = np.sort(second[apart] / first[apart])
    share = np.arange(1, len(ratio) + 1) / (len(ratio) + 1)
    kept = slice(0, int(0.9 * len(ratio)))
    x, y = np.log(ratio[kept]), -np.log(1 - share[kept])
    return float(x @ y / (x @ x))


def name_tracks(numbers: Sequence[int] | npt.NDArray[np.int64]) -> list[str]:
    """Return ids in the form of the Million Song Dataset's."""
    return [f"TR{number:016d}" for number in numbers]


def make_store(url: str, chunks: Iterator[tuple[npt.NDArray[np.int64], Matrix]]) -> StoreLocation:
    """Write a store whose tracks have a global vector each, one part a chunk, as one closed run."""
    store = StoreLocation(url)
    create_tables(store)
    recipe = {
        "recipe": RECIPE.recipe_id,
        "definition": RECIPE.definition,
        "checkpoint": "none",
        "created_time": NOW,
    }
    append_rows(store, "recipes", pa.Table.from_pylist([recipe], schema=RECIPES), {})
    writer = StoreWriter(store, "first")
    actions: Actions = []
    for numbers, vectors in chunks:
        actions += _write_tracks(writer, numbers, vectors)
    writer.commit_ledger(actions, "close")
    return store


def change_store(
    store: StoreLocation, gone: Sequence[str], numbers: npt.NDArray[np.int64], vectors: Matrix, run_id: str
) -> None:
    """Take tracks out, and put new or changed ones in, as one closed run does it."""
    writer = StoreWriter(store, run_id)
    leaving = [*gone, *name_tracks(numbers)]
    actions = extract_rows(writer.tracks, "tracks", store, RECIPE.recipe_id, leaving, run_id).actions
    order = np.argsort(numbers)
    writer.commit_ledger([*actions, *_write_tracks(writer, numbers[order], vectors[order])], "close")


def _write_tracks(writer: StoreWriter, numbers: npt.NDArray[np.int64], vectors: Matrix) -> Actions:
    """Commit the vectors of tracks, and return what adds their rows to the ledger.

    Values keep ten mantissa bits, as a run stores them.
    """
    rows = make_ledger(numbers, writer.run_id)
    values = pa.array(vectors.astype(np.float16).astype(np.float32).ravel())
    lists = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]).cast(FEATURE_LIST)
    frames = build_vector_rows(rows, lists)
    recipe = {"recipe": RECIPE.recipe_id}
    actions: Actions = [
        write_part(table, name, writer.store.table_url(name), partition, writer.run_id).as_add_action()
        for name, table, partition in (
            ("frames", frames, {**recipe, "resolution": "global"}),
            ("tracks", rows, recipe),
        )
    ]
    writer.commit("frames", actions[:1], "append")
    return actions[1:]


def make_ledger(numbers: npt.NDArray[np.int64], run_id: str) -> pa.Table:
    """Return ledger rows of tracks."""
    ids = name_tracks(numbers)
    columns = {
        "recipe": [RECIPE.recipe_id] * len(ids),
        "track_id": ids,
        "uri": [f"s3://bucket/{track_id}.mp3" for track_id in ids],
        "content_hash": [f"{run_id}{number:058d}" for number in numbers],
        "title": [f"title {number}" for number in numbers],
        "artist": [f"artist {number // 10}" for number in numbers],
        "duration_s": np.full(len(ids), 30.0),
        "resolutions": [["global"]] * len(ids),
        "event_time": [NOW] * len(ids),
        "run_id": [run_id] * len(ids),
    }
    absent = {field.name: pa.nulls(len(ids), field.type) for field in TRACKS if field.name not in columns}
    return pa.table({**absent, **columns}).select(TRACKS.names).cast(TRACKS)
