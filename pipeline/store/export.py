"""Copies of one resolution for programs that do not read Delta Lake: WebDataset shards, Hugging Face ``datasets``.

Both are streamed, so that a store larger than memory can be exported; what a shard holds, and one batch of the
store, is all that is in memory beside the ledger's descriptive columns. What one track is in them: its vectors
(float32, num_frames × embed_dim; embed_dim alone for ``global``), what is known of the recording, its recipe.
Where a track's audio lies is left out: exports are given away.

The forms: github.com/webdataset/webdataset (files of a sample share their name up to the first dot);
huggingface.co/docs/hub/datasets-manual-configuration (``configs`` in the header of ``README.md``).
"""

from __future__ import annotations

import io
import json
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import parquet

from pipeline.config import EXPORT_FORMATS, RESOLUTIONS
from pipeline.errors import RunError, StorageError, UsageError
from pipeline.location import StoreLocation
from pipeline.schema import FEATURE_LIST, TRACKS
from pipeline.storage import Options, absolute_url, join_url, list_files, write_file
from pipeline.store.source import METADATA, Source, VectorBatch, open_source, read_vectors

SHARD_BYTES = 128 << 20
"""Of vectors in one shard; about three times as much is in memory while it is encoded."""

DESCRIPTIVE = tuple(name for name in METADATA if name not in ("track_id", "uri"))


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Args:
        num_tracks: Tracks.
        num_vectors: Frames of all of them; of ``global``, tracks.
        embed_dim: Values of a vector.
        recipe: Recipe id.
        store_version: The snapshot: a version of ``tracks``.
        shards: URLs of the files that hold the tracks.
    """

    num_tracks: int
    num_vectors: int
    embed_dim: int
    recipe: str
    store_version: int
    shards: tuple[str, ...]


@dataclass(frozen=True)
class ExportedTrack:
    """One track on its way out.

    Args:
        facts: ``track_id``, ``DESCRIPTIVE``, ``recipe``, ``resolution``, ``num_frames`` and ``frame_rate_hz``.
        vectors: float32 of shape (num_frames, embed_dim).
    """

    facts: dict[str, object]
    vectors: npt.NDArray[np.float32]


def export_features(
    store: StoreLocation,
    resolution: str,
    format_name: str,
    folder: str,
    recipe: str | None = None,
    options: Options | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ExportReport:
    """Copy all live tracks of one resolution, as of the last closed run, into a new folder.

    ``webdataset``: ``shard-000000.tar`` and so on, each track a ``KEY.npy`` and a ``KEY.json``; see ``make_key``.
    ``huggingface``: ``data/train-00000.parquet`` and so on and, written last, the ``README.md`` by which
    ``datasets.load_dataset(folder)`` finds them, streaming or not, here or on the Hub.

    Args:
        store: The store.
        resolution: ``global``, or a resolution with frames.
        format_name: One of ``config.EXPORT_FORMATS``.
        folder: Folder or bucket prefix; must be new or empty.
        recipe: Recipe id; may be left out where the store has only one.
        options: File system options of the folder.
        shard_bytes: A shard is closed once its vectors take so many bytes, before compression.

    Raises:
        RunError: The store names tracks whose vectors are not there.
        UsageError: The folder holds files, the format is unknown, there is no such recipe, or it has no vectors
            at this resolution.
        StorageError: There is no store, or the folder cannot be written.
    """
    if format_name not in EXPORT_FORMATS:
        raise UsageError(f"expected the format {' or '.join(EXPORT_FORMATS)}, found {format_name!r}")
    folder = absolute_url(folder)
    _check_empty(folder, options)
    source = open_source(store, resolution, recipe)
    name, encode = (
        ("shard-{:06d}.tar", encode_tar)
        if format_name == "webdataset"
        else ("data/train-{:05d}.parquet", encode_rows)
    )
    shards: list[str] = []
    num_tracks = num_vectors = embed_dim = 0
    for tracks in group_into_shards(iter_tracks(source), shard_bytes):
        url = join_url(folder, name.format(len(shards)))
        write_file(url, encode(tracks), options)
        shards.append(url)
        num_tracks += len(tracks)
        num_vectors += sum(len(track.vectors) for track in tracks)
        embed_dim = tracks[0].vectors.shape[1]
    if num_tracks != source.ledger.num_rows:
        raise RunError(
            f"expected vectors of {source.ledger.num_rows} tracks at {resolution} in {store.url}, found those of "
            f"{num_tracks}; the copy in {folder} is not whole: see musicfm check"
        )
    report = ExportReport(num_tracks, num_vectors, embed_dim, source.recipe, source.store_version, tuple(shards))
    if format_name == "huggingface":
        write_file(join_url(folder, "README.md"), describe_data_set(report, source).encode(), options)
    return report


def iter_tracks(source: Source) -> Iterator[ExportedTrack]:
    """Stream the live tracks of a snapshot at one resolution, part by part."""
    frame_rate_hz = RESOLUTIONS[source.resolution].frame_rate_hz
    ledger = source.ledger.select(["track_id", *DESCRIPTIVE])
    ids = ledger.column("track_id").to_pylist()  # sorted: to hash them anew for every batch would take longer
    for batch in read_vectors(source, source.parts.column("path").to_pylist(), source.ledger):
        positions = [bisect_left(ids, track_id) for track_id in batch.keys.column("track_id").to_pylist()]
        for facts, vectors in zip(ledger.take(positions).to_pylist(), _split(batch), strict=True):
            facts |= {"recipe": source.recipe, "resolution": source.resolution}
            facts |= {"num_frames": len(vectors), "frame_rate_hz": frame_rate_hz}
            yield ExportedTrack(facts, vectors)


def group_into_shards(tracks: Iterator[ExportedTrack], shard_bytes: int) -> Iterator[list[ExportedTrack]]:
    """Gather tracks until their vectors take so many bytes; no group is empty, and no track is cut."""
    group: list[ExportedTrack] = []
    num_bytes = 0
    for track in tracks:
        group.append(track)
        num_bytes += track.vectors.nbytes
        if num_bytes >= shard_bytes:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def make_key(track_id: str) -> str:
    """Return the name of a track's files in a tar: its id, with what would end or move a name as %XX.

    A dot ends the name in WebDataset's reading, a slash makes a folder. No two ids have the same key; the id
    itself stands in the JSON.
    """
    return quote(track_id, safe=" ").replace(".", "%2E")


def encode_tar(tracks: list[ExportedTrack]) -> bytes:
    """Encode tracks as one WebDataset shard: for each, its vectors as ``.npy`` and its facts as ``.json``."""
    buffer = io.BytesIO()
    # The same tracks give the same bytes: no time, no owner.
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for track in tracks:
            array = io.BytesIO()
            np.save(array, _drop_time(track), allow_pickle=False)
            key = make_key(str(track.facts["track_id"]))
            text = json.dumps(track.facts, ensure_ascii=False).encode()
            for ending, data in (("npy", array.getvalue()), ("json", text)):
                entry = tarfile.TarInfo(f"{key}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def encode_rows(tracks: list[ExportedTrack]) -> bytes:
    """Encode tracks as one Parquet file: facts, and ``embeddings`` (of ``global``, ``embedding``)."""
    is_global = tracks[0].facts["resolution"] == "global"
    values = np.concatenate([track.vectors.reshape(-1) for track in tracks])
    embed_dim = tracks[0].vectors.shape[1]
    num_vectors = len(values) // embed_dim
    offsets = np.arange(num_vectors + 1, dtype=np.int32) * embed_dim
    vectors = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=FEATURE_LIST)
    name, leaf = "embedding", "embedding.list.element"
    if not is_global:
        starts = np.cumsum([0, *(len(track.vectors) for track in tracks)], dtype=np.int32)
        vectors = pa.ListArray.from_arrays(pa.array(starts), vectors, type=pa.list_(FEATURE_LIST))
        name, leaf = "embeddings", "embeddings.list.element.list.element"
    table = pa.Table.from_pylist([track.facts for track in tracks], schema=_FACTS).append_column(name, vectors)
    buffer = io.BytesIO()
    parquet.write_table(
        table,
        buffer,
        row_group_size=max(1, min(1000, _ROW_GROUP_BYTES * len(tracks) // max(1, values.nbytes))),
        compression="zstd",
        compression_level=1,
        use_dictionary=_FACTS.names,
        use_byte_stream_split=[leaf],
        write_statistics=_FACTS.names,
    )
    return buffer.getvalue()


def describe_data_set(report: ExportReport, source: Source) -> str:
    """Return the data set card: the header that ``load_dataset`` reads, and what people want to know."""
    return (
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: data/train-*.parquet\n---\n\n"
        f"# MusicFM features, {source.resolution}\n\n"
        f"{report.num_tracks} tracks, {report.num_vectors} vectors of {report.embed_dim} values, float32.\n"
        f"Exported from snapshot {report.store_version} of a music feature store.\n\n"
        f"Recipe `{report.recipe}`:\n\n```json\n"
        f"{json.dumps(json.loads(source.definition or '{}'), indent=2)}\n```\n"
    )


def _split(batch: VectorBatch) -> list[npt.NDArray[np.float32]]:
    return np.split(batch.vectors, np.cumsum(batch.lengths)[:-1])


def _drop_time(track: ExportedTrack) -> npt.NDArray[np.float32]:
    """Return the one vector of ``global`` without an axis of time."""
    return track.vectors[0] if track.facts["resolution"] == "global" else track.vectors


def _check_empty(folder: str, options: Options | None) -> None:
    try:
        listing = list_files(folder, options)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return
        raise
    if listing.num_rows:
        raise UsageError(
            f"expected a new or empty folder, found {listing.num_rows} files in {folder}, such as "
            f"{listing['path'][0]}; name another, or remove it"
        )


_ROW_GROUP_BYTES = 32 << 20  # of values: what a reader that wants one track has to decode
_FACTS = pa.schema(
    [
        pa.field("track_id", pa.string(), nullable=False),
        *(TRACKS.field(name) for name in DESCRIPTIVE),
        pa.field("recipe", pa.string()),
        pa.field("resolution", pa.string()),
        pa.field("num_frames", pa.int32()),
        pa.field("frame_rate_hz", pa.float64()),
    ]
)
