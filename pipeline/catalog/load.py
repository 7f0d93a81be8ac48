"""The first step: which tracks there are, from a folder, a bucket, a single file or a manifest.

A catalog is one Arrow table of schema ``CATALOG``, sorted by ``track_id``. Files are listed in bulk and
handled as columns, so that a million tracks take seconds. ``msd`` and ``fma`` build on this
file for the two datasets that the published checkpoints were trained on.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.columns import filter_rows, repeat_value
from pipeline.catalog.inventory import is_inventory, read_inventory
from pipeline.catalog.manifest import FACTS, convert_rows, is_manifest, learn_facts, read_manifest
from pipeline.catalog.mirdata import is_mirdata, read_mirdata
from pipeline.catalog.shards import is_shard, list_shards
from pipeline.errors import CatalogError
from pipeline.listing import is_rising
from pipeline.schema import CATALOG
from pipeline.storage import Options, absolute_url, join_url, list_files, stat_files

AUDIO_ENDINGS = (
    "3gp aac ac3 aif aifc aiff amr ape au bw64 caf dff dsf dts eac3 flac m4a m4b mka mp2 mp3 mp4 mpc mpga oga ogg "
    "opus ra rf64 shn snd spx tak tta voc w64 wav wave weba webm wma wv"
)
"""What an audio file's name ends in, in any case."""

NUM_NAMED = 10
"""How many clashes a message names."""

_AUDIO_ENDING = rf"(?i)\.({AUDIO_ENDINGS.replace(' ', '|')})$"


def load_catalog(audio: str, options: Options | None = None) -> pa.Table:
    """List the tracks of a folder, a bucket, a single audio file, a manifest or a data set of mirdata.

    In a folder every file with one of ``AUDIO_ENDINGS`` is a track, save hidden ones and those in hidden
    folders. Its id is its path relative to the folder, ending included: it stays whatever comes beside it.

    A manifest (Parquet, CSV or TSV) has a column ``uri`` (or ``url``, ``path``, ``file``), absolute or
    relative to the manifest's folder, and may have any other column of ``CATALOG``; further columns are
    ignored. Without ``track_id`` a file's id is its path relative to the manifest's folder, or its whole URI where
    it lies elsewhere. A track without a file stays, with a null
    ``uri``. Where the manifest tells neither size, etag nor modification time, they are learnt in bulk.

    A shard, which is a tar file, a zip file or a Parquet file with a column of audio, is a folder whose files are
    its members; so are those of a folder without loose audio, each below its shard's path (see ``shards``).
    ``inventory:URL`` is the manifest.json of an S3 Inventory, whose objects' ids are their keys (see
    ``inventory``).

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
    if is_inventory(audio):
        return _name_by_path(select_audio(read_inventory(audio, options), audio))
    audio = absolute_url(audio)
    if is_shard(audio, options):
        return _name_by_path(select_audio(list_shards([audio], options)[0], audio))
    if is_manifest(audio):
        return _load_manifest(audio, options)
    listing = list_files(audio, options)
    shards = listing.filter(
        pc.match_substring_regex(listing["path"], r"(?i)^(.*/)?[^./][^/]*\.(tar|zip|parquet)$")
    )
    if not shards.num_rows or has_audio(listing):
        return _name_by_path(select_audio(listing, audio))
    return _name_by_path(select_audio(_list_members(shards, options), audio))


def _name_by_path(files: pa.Table) -> pa.Table:
    return build_catalog(files.append_column("track_id", files["path"]))


def _list_members(shards: pa.Table, options: Options | None) -> pa.Table:
    """List the members of all shards of a folder; a member's path begins with its shard's."""
    listings = []
    members_of = list_shards(shards["uri"].to_pylist(), options)
    for path, members in zip(shards["path"].to_pylist(), members_of, strict=True):
        paths = pc.binary_join_element_wise(path, members["path"], "/")
        listings.append(members.set_column(1, members.schema.field("path"), paths))
    return pa.concat_tables(listings)


def has_audio(listing: pa.Table) -> bool:
    """Say whether a listing has audio files that are not hidden."""
    return bool(pc.any(_mark_audio(listing)).as_py())


def _mark_audio(listing: pa.Table) -> pa.ChunkedArray:
    hidden = pc.match_substring_regex(listing["path"], r"(^|/)\.")
    audio = pc.and_not(pc.match_substring_regex(listing["path"], _AUDIO_ENDING), hidden)
    # What a column of audio holds is audio, whatever it is called.
    return pc.or_(audio, pc.match_substring(listing["uri"], ".parquet#bytes=", ignore_case=True))


def select_audio(listing: pa.Table, root: str) -> pa.Table:
    """Keep a listing's audio files that are not hidden.

    Raises:
        CatalogError: There is none.
    """
    audio = filter_rows(listing, _mark_audio)
    if not audio.num_rows:
        raise CatalogError(
            f"expected audio at {root}, found none among {listing.num_rows} files; "
            f"looked for names that end in {AUDIO_ENDINGS}, hidden ones left out"
        )
    return audio


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
        CatalogError: Two files claim one id; up to ``NUM_NAMED`` such ids are named at once.
    """
    is_sorted = is_rising(files["track_id"])
    if not is_sorted and (clashes := find_clashes(files["track_id"])):
        named = [
            f"{files['track_id'][positions[0]].as_py()!r}: "
            + " and ".join(str(files["uri"][position]) for position in positions[:2])
            for positions in clashes[:NUM_NAMED]
        ]
        raise CatalogError(
            f"two files claim the track id {_list_named(named, len(clashes))}; rename or leave out one, or give a "
            "manifest with a track_id column"
        )
    if is_sorted and wanted is None and metadata is None:  # as a listing of millions is: nothing is copied
        num_rows, given_names = files.num_rows, files.column_names
        columns = [
            files[field.name] if field.name in given_names else repeat_value(None, num_rows, field.type)
            for field in CATALOG
        ]
        return pa.table(columns, schema=CATALOG)
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


def name_catalog(catalog: pa.Table, name: str) -> pa.Table:
    """Return a catalog whose ids stand behind a name, so that several folders can live in one store.

    Args:
        catalog: Rows of ``CATALOG``.
        name: As ``config.check_catalog_name`` allows it.
    """
    track_ids = pc.binary_join_element_wise(name, catalog["track_id"], "/")
    return catalog.set_column(0, CATALOG.field("track_id"), track_ids)


def find_clashes(values: pa.ChunkedArray) -> list[list[int]]:
    """Return for each value that stands more than once all of its positions, in order; nulls do not count."""
    counts = pc.value_counts(values.drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(repeated):
        return []
    which = pc.index_in(values, value_set=repeated)
    positions: list[list[int]] = [[] for _ in range(len(repeated))]
    for position in np.flatnonzero(pc.is_valid(which).to_numpy()):
        positions[which[int(position)].as_py()].append(int(position))
    return positions


def name_listed_tracks(uris: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """Return the ids of a manifest's files: paths relative to its folder, whole URIs of what lies elsewhere."""
    start = f"{folder.rstrip('/')}/"
    relative = pc.utf8_slice_codeunits(uris, start=len(start))
    return pc.if_else(pc.starts_with(uris, start), relative, uris)


def _list_named(named: Sequence[str], number: int) -> str:
    """Return what is named as one text, and how many more there are."""
    more = f"; and {number - len(named)} more" if number > len(named) else ""
    return "; ".join(named) + more


def load_rows(rows: pa.Table, options: Options | None = None) -> pa.Table:
    """Make a catalog of rows that a program has at hand; as for a manifest, paths from the working directory.

    Args:
        rows: Any table of Arrow with a column ``uri`` (or ``url``, ``path``, ``file``); without a column
            ``track_id``, ids are the URIs as they are given.
        options: File system options.

    Raises:
        CatalogError: The rows cannot be understood, or two claim one id.
        StorageError: The folder of the files may not be listed.
    """
    name = "the table"
    return _complete_manifest(convert_rows(rows, name), name, "", options)


def _load_manifest(url: str, options: Options | None) -> pa.Table:
    return _complete_manifest(read_manifest(url, options), url, posixpath.dirname(url), options)


def _complete_manifest(table: pa.Table, url: str, folder: str, options: Options | None) -> pa.Table:
    """Add to a manifest's rows what it does not tell: ids, by paths from a folder, and facts of the files."""
    uris = table["uri"]
    if "track_id" not in table.column_names:
        table = table.append_column("track_id", name_listed_tracks(uris, folder))
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
    clashes = find_clashes(track_ids)
    if clashes:
        named = [
            f"{track_ids[positions[0]].as_py()!r}: "
            + " and ".join(f"row {position + 1} (file {uris[position]})" for position in positions[:2])
            for positions in clashes[:NUM_NAMED]
        ]
        raise CatalogError(f"two rows of {url} claim the track id {_list_named(named, len(clashes))}")
