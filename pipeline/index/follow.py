"""Follow: bring an index up to date with its store by reading what the ledger says has changed.

One segment is appended, dead rows leave the codes, and the rest is not touched: nothing is trained anew until so
much has changed that it should be; the space that vectors are placed in is kept as long.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.index.codes import add_codes, load_codes, map_index, remove_codes
from pipeline.index.draft import Draft, IndexSettings, add_places, choose_kind, save_file
from pipeline.index.files import IndexLocation, fetch_file, remove_files
from pipeline.index.manifest import IndexManifest
from pipeline.index.segments import OWNERS, iterate_rows, join_segments, place_rows, write_segments
from pipeline.index.vector_index import VectorIndex, mark_rows
from pipeline.store.source import Source, VectorBatch, read_vectors

logger = logging.getLogger(__name__)

MAX_DRIFT = 0.3  # share changed since the index was built that asks for a rebuild
MAX_SEGMENTS = 64  # a rebuild makes few large ones of many small ones


def follow(
    previous: IndexManifest, source: Source, location: IndexLocation, settings: IndexSettings, folder: str
) -> Draft | None:
    """Bring an index up to date, reading what changed.

    Args:
        previous: The newest version.
        source: The snapshot.
        location: Where the index lies.
        settings: What to make.
        folder: For files that are not finished.

    Returns:
        None where the index has drifted so far that it has to be made anew.

    Raises:
        StorageError: The store or the index cannot be read, or the index not be written.
    """
    old = VectorIndex(location, previous, settings.cache)
    ledger = source.ledger
    position = pc.index_in(ledger.column("track_id"), old.tracks.column("track_id"))
    same = pc.equal(old.tracks.column("content_hash").take(position), ledger.column("content_hash"))
    same = pc.fill_null(same, False)
    kept = old.tracks.take(position.filter(same)).select([*OWNERS.names, "map_x", "map_y"])
    wanted = ledger.filter(pc.invert(same))
    num_gone = old.tracks.num_rows - (len(position) - position.null_count)
    num_changed = previous.training["num_changed"] + wanted.num_rows + num_gone
    if num_changed > MAX_DRIFT * previous.training["num_tracks"] or len(previous.segments) >= MAX_SEGMENTS:
        logger.warning("%d tracks changed since the index was built: it is built anew", num_changed)
        return None
    changed = _read_changed(old, source, wanted)
    written = join_segments([write_segments(changed, location, folder, old.space, settings.cache)])
    kind = choose_kind((old.manifest.num_vectors + written.num_rows) * previous.embed_dim, previous.kind)
    if (settings.kind or kind) != previous.kind:
        remove_files(location, [file.name for file in written.files])
        return None
    projection = np.load(fetch_file(location, previous.files["map"], settings.cache))
    placed = [place_rows(file, location, projection, settings.cache) for file in written.files]
    added = add_places(written.owners, np.concatenate([np.empty((0, 2), np.float32), *placed]), old.num_rows)
    owners = pa.concat_tables([kept.cast(added.schema), added])
    files = {role: previous.files[role] for role in ("map", "space") if role in previous.files}
    if previous.kind == "ivf":
        codes = load_codes(fetch_file(location, previous.files["codes"], settings.cache))
        remove_codes(codes, old.live & ~mark_rows(kept, old.num_rows))
        firsts = old.num_rows + np.cumsum([0, *(file.num_rows for file in written.files)])
        for file, first_row in zip(written.files, firsts.tolist(), strict=False):
            for first, rows in iterate_rows(map_index(fetch_file(location, file, settings.cache))):
                add_codes(codes, rows, first_row + first)
        files["codes"] = save_file(location, folder, "codes.faiss", codes, settings.cache)
    return Draft(
        previous.kind,
        previous.embed_dim,
        (*previous.segments, *written.files),
        owners,
        files,
        previous.parameters,
        {**previous.training, "num_changed": num_changed},
        previous.distance,
    )


def _read_changed(old: VectorIndex, source: Source, wanted: pa.Table) -> Iterator[VectorBatch]:
    """Read tracks that are new or changed, from new parts first.

    The vectors of a track that left and came back, or changed back, lie in an old part.
    """
    paths = source.parts.column("path").to_pylist()
    seen: set[str] = set()
    if parts := old.manifest.files.get("parts"):  # an index of global vectors in the ledger's own parts had none
        with pa.ipc.open_file(fetch_file(old.location, parts, old.cache)) as file:
            seen = set(file.read_all().column("path").to_pylist())
    for group in ([path for path in paths if path not in seen], [path for path in paths if path in seen]):
        for batch in read_vectors(source, group, wanted):
            wanted = wanted.filter(pc.invert(pc.is_in(wanted.column("track_id"), batch.keys.column("track_id"))))
            yield batch
