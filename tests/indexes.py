"""Indexes over given vectors, made without a store's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.index.codes import (
    add_codes,
    choose_num_lists,
    describe_codes,
    find_axes,
    normalise_rows,
    train_codes,
)
from pipeline.index.draft import Draft, IndexSettings, add_places, describe_draft, save_file
from pipeline.index.files import IndexLocation, working_folder
from pipeline.index.segments import join_segments, write_segments
from pipeline.index.space import Space, place_vectors
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.schema import TABLES
from pipeline.store.source import METADATA, Source, VectorBatch

Matrix = npt.NDArray[np.float32]


def make_index(
    folder: Path,
    tracks: Sequence[Matrix],
    kind: str = "exact",
    resolution: str = "global",
    num_segments: int = 1,
    dead: Sequence[int] = (),
    space: Space | None = None,
) -> VectorIndex:
    """Make an index of tracks ``t0000``, ``t0001``, … that is not published.

    Args:
        folder: An empty place for a store.
        tracks: Vectors of each track, (num_vectors, embed_dim).
        kind: ``exact`` or ``ivf``; the latter searches all lists and 100 candidates.
        resolution: Name of a resolution.
        num_segments: How many segments the tracks are spread over.
        dead: Tracks whose rows stay and whose ids are gone.
        space: In which the vectors are compared.
    """
    location = IndexLocation(StoreLocation(str(folder)), "recipe", resolution)
    names = [f"t{number:04d}" for number in range(len(tracks))]
    keys = pa.table({"track_id": names, "content_hash": [f"hash {name}" for name in names]})
    groups = np.array_split(np.arange(len(tracks)), num_segments)
    with working_folder(location) as work:
        written = join_segments(
            write_segments([make_batch(keys, tracks, group)], location, work, space)
            for group in groups
            if len(group)
        )
        vectors = place_vectors(np.concatenate(list(tracks)), space)
        alive = ~np.isin(np.arange(len(tracks)), np.array(dead, int))
        owners = add_places(written.owners, np.zeros((len(vectors), 2), np.float32), 0).filter(pa.array(alive))
        files = {} if space is None else {"space": save_file(location, work, "space.npy", space.to_array(), None)}
        draft = Draft(kind, vectors.shape[1], written.files, owners, files)
        if kind == "ivf":
            unit = normalise_rows(vectors)
            codes = train_codes(unit, find_axes(unit), choose_num_lists(len(unit)))
            add_codes(codes, unit, 0)
            gone = ~np.isin(np.arange(len(unit)), live_rows(owners))
            codes.remove_ids(faiss.IDSelectorBatch(np.flatnonzero(gone)))
            parameters = describe_codes(codes)
            parameters |= {"nprobe": parameters["num_lists"], "depth": 100}
            file = save_file(location, work, "codes.faiss", codes, None)
            draft = replace(draft, files={**files, "codes": file}, parameters=parameters)
        source = Source(location.store, "recipe", "{}", resolution, 1, 0, make_ledger(keys), make_parts())
        manifest = describe_draft(draft, source, location, IndexSettings(), 1, work)
    return VectorIndex(location, manifest)


def make_batch(keys: pa.Table, tracks: Sequence[Matrix], group: npt.NDArray[np.int64]) -> VectorBatch:
    """Return the vectors of a group of tracks."""
    lengths = np.array([len(tracks[number]) for number in group], np.int64)
    return VectorBatch(keys.take(group), lengths, np.concatenate([tracks[number] for number in group]))


def make_ledger(keys: pa.Table) -> pa.Table:
    """Return what a source says of some tracks."""
    ledger = keys
    for name in METADATA[2:]:
        type_ = TABLES["tracks"].field(name).type
        value: str | float = f"{name} of it" if type_ == pa.string() else 30
        ledger = ledger.append_column(name, pa.array([value] * keys.num_rows, type_))
    return ledger


def make_parts() -> pa.Table:
    """Return a list of no parts."""
    return pa.table({"path": pa.array([], pa.string())})


def live_rows(owners: pa.Table) -> npt.NDArray[np.int64]:
    """Return the rows that tracks own."""
    pairs = zip(owners.column("first_row").to_pylist(), owners.column("num_vectors").to_pylist(), strict=True)
    return np.array([row for first, number in pairs for row in range(first, first + number)], np.int64)


def draw_tracks(num_tracks: int, embed_dim: int = 8, seed: int = 0, max_vectors: int = 1) -> list[Matrix]:
    """Draw tracks of random vectors."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, max_vectors + 1, num_tracks)
    return [random.standard_normal((length, embed_dim)).astype(np.float32) * 3 for length in lengths]
