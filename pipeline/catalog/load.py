"""The first step: which tracks there are, from a folder, a bucket, a single file or a manifest.

A catalog is one Arrow table of schema ``CATALOG``, sorted by ``track_id``. Files are listed in bulk and
handled as columns, so that a million tracks take seconds. ``msd`` and ``fma`` build on this
file for the two datasets that the published checkpoints were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.manifest import (
    FACTS,
    common_folder,
    convert_rows,
    is_manifest,
    learn_facts,
    read_manifest,
)
from pipeline.catalog.mirdata import is_mirdata, read_mirdata
from pipeline.errors import CatalogError
from pipeline.schema import CATALOG
from pipeline.storage import Options, absolute_url, join_url, list_files, stat_files

AUDIO_ENDINGS = (
    "3gp aac ac3 aif aifc aiff amr ape au caf flac m4a m4b mka mp2 mp3 mp4 mpc oga ogg opus rf64 snd spx tta "
    "w64 wav wave webm wma wv"
)
"""What an audio file's name ends in, in any case."""

_AUDIO_ENDING = rf"(?i)\.({AUDIO_ENDINGS.replace(' ', '|')})$"


def load_catalog(audio: str, options: Options | None = None) -> pa.Table:
    """List the tracks of a folder, a bucket, a single audio file, a manifest or a data set of mirdata.

    In a folder every file with one of ``AUDIO_ENDINGS`` is a track, save hidden ones and those in hidden
    folders. Its id is its name without the ending where all of these differ, else its path relative to the
    folder, without the ending.

    A manifest (Parquet, CSV or TSV) has a column ``uri`` (or ``url``, ``path``, ``file``), absolute or
    relative to the manifest's folder, and may have any other column of ``CATALOG``; further columns are
    ignored. Without ``track_id`` the ids are made as for a folder. A track without a file stays, with a null
    ``uri``. Where the manifest tells neither size, etag nor modification time, they are learnt in bulk.

    ``mirdata:NAME``, with ``:FOLDER`` behind it where the data does not lie where mirdata puts it, is a data set
    that mirdata has an index of (see ``mirdata``).

    Args:
        audio: URL or local path, or the name of a data set of mirdata.
        options: File system options.

    Returns:
        Table of schema ``CATALOG``, sorted by ``track_id``; local URIs are absolute paths.

    Raises:
        CatalogError: There is no audio, the manifest cannot be understood, or two tracks claim one id.
        StorageError: The folder, bucket or manifest does not exist or may not be read.
        UsageError: mirdata is asked for and not installed.
    """
    if is_mirdata(audio):
        return build_catalog(read_mirdata(audio, options))
    audio = absolute_url(audio)
    if is_manifest(audio):
        return _load_manifest(audio, options)
    files = select_audio(list_files(audio, options), audio)
    return build_catalog(files.append_column("track_id", name_tracks(files["path"])))


def select_audio(listing: pa.Table, root: str) -> pa.Table:
    """Keep a listing's audio files that are not hidden.

    Raises:
        CatalogError: There is none.
    """
    paths = listing["path"]
    hidden = pc.match_substring_regex(paths, r"(^|/)\.")
    audio = listing.filter(pc.and_not(pc.match_substring_regex(paths, _AUDIO_ENDING), hidden))
    if not audio.num_rows:
        raise CatalogError(
            f"expected audio at {root}, found none among {listing.num_rows} files; "
            f"looked for names that end in {AUDIO_ENDINGS}, hidden ones left out"
        )
    return audio


def name_tracks(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the ids of a plain folder's tracks: file names if all differ, else paths; without the ending."""
    whole = pc.replace_substring_regex(paths, _AUDIO_ENDING, "")
    names = pc.replace_substring_regex(whole, "(?s)^.*/", "")
    return whole if find_clash(names) else names


def stem_names(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return each path's file name up to its first dot: ``a/b/12.clip.mp3`` gives ``12``."""
    return pc.replace_substring_regex(paths, r"(?s)^(?:.*/)?([^/.]*)[^/]*$", r"\1")


def find_companion(
    root: str, listing: pa.Table, names: Sequence[str], options: Options | None = None
) -> str | None:
    """Return the URL of the first of ``names`` (relative paths) that lies in the root, or else beside it."""
    for name in names:
        position = pc.index(listing["path"], name).as_py()
        if position >= 0:
            return str(listing["uri"][position])
    parent = root.rstrip("/").rpartition("/")[0]
    if not parent or parent.endswith(":/"):  # a bucket, or the root of a disk
        return None
    beside = [join_url(parent, name) for name in names]
    answers = zip(beside, stat_files(beside, options), strict=True)
    return next((url for url, answer in answers if not isinstance(answer, Exception)), None)


def build_catalog(
    files: pa.Table, wanted: pa.Array | pa.ChunkedArray | None = None, metadata: pa.Table | None = None
) -> pa.Table:
    """Put a catalog together.

    Args:
        files: ``track_id``, ``uri`` and any other columns of ``CATALOG``, one row a track.
        wanted: Ids of the tracks to keep, in any order and number; one that is not among the files gets a
            null ``uri``. None keeps the files.
        metadata: ``track_id`` and descriptive columns, used where the files have none.

    Returns:
        Table of schema ``CATALOG``, sorted by ``track_id``.

    Raises:
        CatalogError: Two files claim one id.
    """
    clash = find_clash(files["track_id"])
    if clash:
        first, second = (files["uri"][position].as_py() for position in clash)
        raise CatalogError(
            f"two files claim the track id {files['track_id'][clash[0]].as_py()!r}: {first} and {second}; "
            "rename or leave out one, or give a manifest with a track_id column"
        )
    track_ids = files["track_id"] if wanted is None else pc.unique(wanted)
    sources = [
        source.take(pc.index_in(track_ids, value_set=source["track_id"]))
        for source in (files, metadata)
        if source is not None
    ]
    columns = [track_ids]
    for field in CATALOG.remove(0):
        given = [source[field.name] for source in sources if field.name in source.column_names]
        columns.append(pc.coalesce(*given) if given else pa.nulls(len(track_ids), field.type))
    return pa.table(columns, schema=CATALOG).sort_by("track_id")


def find_clash(values: pa.ChunkedArray) -> tuple[int, int] | None:
    """Return the positions of the first value that stands twice, if one does; nulls do not count."""
    counts = pc.value_counts(values.drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(repeated):
        return None
    first, second = np.flatnonzero(pc.fill_null(pc.equal(values, repeated[0]["values"]), False).to_numpy())[:2]
    return int(first), int(second)


def load_rows(rows: pa.Table, options: Options | None = None) -> pa.Table:
    """Make a catalog of rows that a program has at hand; as for a manifest, paths from the working directory.

    Args:
        rows: Any table of Arrow with a column ``uri`` (or ``url``, ``path``, ``file``).
        options: File system options.

    Raises:
        CatalogError: The rows cannot be understood, or two claim one id.
        StorageError: The folder of the files may not be listed.
    """
    name = "the table"
    return _complete_manifest(convert_rows(rows, name), name, options)


def _load_manifest(url: str, options: Options | None) -> pa.Table:
    return _complete_manifest(read_manifest(url, options), url, options)


def _complete_manifest(table: pa.Table, url: str, options: Options | None) -> pa.Table:
    """Add to a manifest's rows what it does not tell: ids, and facts of the files."""
    uris = table["uri"]
    if "track_id" not in table.column_names:
        folder = common_folder(uris.drop_null().to_pylist())
        paths = pc.utf8_ltrim(pc.utf8_slice_codeunits(uris, start=len(folder)), "/")
        table = table.append_column("track_id", name_tracks(paths))
    _check_manifest_ids(table["track_id"], uris, url)
    given = [name for name in FACTS if name in table.column_names]
    if all(table[name].null_count == table.num_rows for name in given):
        facts = learn_facts(uris, options)
        table = table.drop_columns(given)
        for name in FACTS:
            table = table.append_column(name, facts[name])
    return build_catalog(table)


def _check_manifest_ids(track_ids: pa.ChunkedArray, uris: pa.ChunkedArray, url: str) -> None:
    if track_ids.null_count:
        row = pc.index(track_ids.is_null(), True).as_py()
        raise CatalogError(
            f"expected a track_id in every row of {url}, found none in row {row + 1} (file {uris[row]})"
        )
    clash = find_clash(track_ids)
    if clash:
        first, second = clash
        raise CatalogError(
            f"two rows of {url} claim the track id {track_ids[first].as_py()!r}: "
            f"row {first + 1} (file {uris[first]}) and row {second + 1} (file {uris[second]})"
        )
