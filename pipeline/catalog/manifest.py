"""Manifests: catalogs that somebody wrote down as a Parquet, CSV or TSV file."""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from pipeline.catalog.delimited import read_delimited
from pipeline.catalog.labels import convert_labels
from pipeline.errors import CatalogError, StorageError
from pipeline.schema import CATALOG, TIMESTAMP
from pipeline.storage import LISTING, Options, list_files, read_file, stat_files

MANIFEST_ENDINGS = (".parquet", ".csv", ".tsv")

URI_COLUMNS = ("uri", "url", "path", "file")
"""The names under which a manifest may give its tracks' files; the first that is there counts."""

FACTS = ("size_bytes", "etag", "modified_time")
"""What a listing tells of a file, and by which a refresh sees that it has changed."""

FEW_FILES = 256
"""Up to so many files are asked about one by one: to list their common folder could cost far more."""

_BUCKET = re.compile("(?:[a-z0-9+.-]+://)?/*[^/]*")


def is_manifest(url: str) -> bool:
    """Tell a manifest from a folder or an audio file by its ending."""
    return url.lower().endswith(MANIFEST_ENDINGS)


def read_manifest(url: str, options: Options | None = None) -> pa.Table:
    """Read those columns of a manifest that a catalog has.

    Columns are known by name, in any case and order. Empty text counts as null; text such as ``NA`` or
    ``00123`` stays as it is. Times without a zone are UTC.

    Args:
        url: Absolute URL or path of a Parquet, CSV or TSV file.
        options: File system options.

    Returns:
        Table of ``uri`` (made absolute, if it was relative to the manifest's folder) and whatever other
        columns of ``CATALOG`` the manifest has, in its order.

    Raises:
        CatalogError: The file is none of the three, cannot be read exactly (see ``delimited``), has no rows or no
            column of ``URI_COLUMNS``, or one of its columns has the wrong type.
        StorageError: It is missing or may not be read.
    """
    data = read_file(url, options)
    try:
        table, spelling = _read_parquet(data, url) if url.lower().endswith(".parquet") else _read_text(data, url)
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"cannot read the manifest {url}: {' '.join(str(error).split())}") from error
    if not table.num_rows:
        raise CatalogError(f"expected tracks in {url}, found not one row")
    return _convert_columns(table, spelling, url, posixpath.dirname(url))


def convert_rows(rows: pa.Table, name: str) -> pa.Table:
    """Return rows that a program has at hand as ``read_manifest`` returns a file's.

    Where they name no ids, a track's id is its URI as it is given: it must not hang on the working directory.

    Args:
        rows: With a column of ``URI_COLUMNS``; relative paths are taken from the working directory.
        name: What to call the rows in errors.

    Raises:
        CatalogError: There are no rows or no such column, or a column has the wrong type.
    """
    if not rows.num_rows:
        raise CatalogError(f"expected tracks in {name}, found not one row")
    spelling = _choose_columns(rows.column_names, name)
    table = _convert_columns(rows, spelling, name, os.getcwd())
    if "track_id" in table.column_names:
        return table
    given = _convert(rows[spelling["uri"]], "uri", name).to_pylist()
    ids = [uri if uri is None or _is_absolute(uri) else posixpath.normpath(uri) for uri in given]
    return table.append_column("track_id", pa.array(ids, pa.string()))


def _convert_columns(table: pa.Table, spelling: Mapping[str, str], name: str, folder: str) -> pa.Table:
    columns = {column: _convert(table[given], column, name) for column, given in spelling.items()}
    uris = [None if uri is None else make_absolute(uri, folder) for uri in columns["uri"].to_pylist()]
    return pa.table({**columns, "uri": pa.array(uris, pa.string())})


def learn_facts(uris: pa.ChunkedArray, options: Options | None = None) -> pa.Table:
    """Learn the size, etag and modification time of many files in bulk.

    Args:
        uris: Absolute URLs or paths; may hold nulls.
        options: File system options.

    Returns:
        Table of ``FACTS``, one row a URI; nulls where there is no such file.

    Raises:
        StorageError: The folder of many of the files may not be listed.
    """
    files = [uri for uri in uris.to_pylist() if uri is not None]
    known = _stat_each(files, options) if len(files) <= FEW_FILES else _list_common_folders(files, options)
    return known.select(FACTS).take(pc.index_in(uris, value_set=known["uri"]))


def common_folder(uris: Sequence[str]) -> str:
    """Return the deepest folder that holds all files, without a slash at its end; works on URLs too."""
    return os.path.commonprefix(uris).rpartition("/")[0]  # noqa: RUF071 (cut back to a whole folder here)


def _read_parquet(data: bytes, url: str) -> tuple[pa.Table, dict[str, str]]:
    file = parquet.ParquetFile(pa.BufferReader(data))
    spelling = _choose_columns(file.schema_arrow.names, url)
    return file.read(columns=list(spelling.values())), spelling


def _read_text(data: bytes, url: str) -> tuple[pa.Table, dict[str, str]]:
    """Read a CSV or TSV file as text alone: an id keeps its leading zeros, and a track may be called "NA"."""
    table = read_delimited(data, "\t" if url.lower().endswith(".tsv") else ",", url)
    return table, _choose_columns(table.column_names, url)


def _choose_columns(names: Sequence[str], url: str) -> dict[str, str]:
    """Return the manifest's own spelling of each of the catalog's columns that it has."""
    spelling = {name.strip().lower(): name for name in reversed(names)}
    uri = next((spelling[name] for name in URI_COLUMNS if name in spelling), None)
    if uri is None:
        found = ", ".join(names) or "no columns"
        raise CatalogError(f"expected a column {' or '.join(URI_COLUMNS)} in {url}, found {found}")
    others = {name: spelling[name] for name in CATALOG.names if name != "uri" and name in spelling}
    return {"uri": uri, **others}


def _convert(column: pa.ChunkedArray, name: str, url: str) -> pa.ChunkedArray:
    """Cast a column to the catalog's type, and empty text to null."""
    given, wanted = column.type, CATALOG.field(name).type
    try:
        if pa.types.is_floating(given) and wanted == pa.string():
            raise pa.ArrowInvalid(f"numbers of type {given}")  # is 7.0 the id "7" or "7.0"?
        if pa.types.is_integer(given) and wanted == TIMESTAMP:
            raise pa.ArrowInvalid(f"numbers of type {given}")  # seconds or microseconds?
        if wanted == pa.int32():
            return convert_labels(column.cast(pa.string()), name)
        if wanted == pa.string() or pa.types.is_large_string(given):
            column = column.cast(pa.string())
        if column.type == pa.string():
            column = pc.if_else(pc.equal(column, ""), None, column)
        if column.type == pa.string() and wanted == TIMESTAMP:
            zoned = pc.match_substring_regex(column, r":.*(Z|[+-]\d\d:?\d\d)$")
            column = pc.if_else(zoned, column, pc.binary_join_element_wise(column, "Z", ""))
        return column.cast(wanted, safe=wanted != TIMESTAMP)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        expected = {pa.int64(): "whole numbers", TIMESTAMP: "ISO 8601 times"}.get(wanted, "text or whole numbers")
        found = " ".join(str(error).split())
        raise CatalogError(f"expected {expected} in column {name} of {url}, found {found}") from error


def _is_absolute(uri: str) -> bool:
    return "://" in uri or uri.startswith("/")


def make_absolute(uri: str, folder: str) -> str:
    """Return a file's URL or path, which may be relative to a folder, as one that is not."""
    if _is_absolute(uri):
        return uri
    scheme, separator, path = folder.rpartition("://")
    return scheme + separator + posixpath.normpath(f"{path}/{uri}")


def _stat_each(files: Sequence[str], options: Options | None) -> pa.Table:
    answers = zip(files, stat_files(files, options), strict=True)
    rows = [{"uri": uri, "path": uri, **answer} for uri, answer in answers if not isinstance(answer, Exception)]
    return pa.Table.from_pylist(rows, schema=LISTING)


def _list_common_folders(files: Sequence[str], options: Options | None) -> pa.Table:
    """List the common folder of the files of each bucket, or of each top folder of the local disk."""
    buckets: defaultdict[str, list[str]] = defaultdict(list)
    for uri in files:
        buckets[_BUCKET.match(uri)[0]].append(uri)  # type: ignore[index]  # it matches any text
    listings = [LISTING.empty_table()]
    for bucket in buckets.values():
        folder = common_folder(bucket)
        if not folder:
            continue  # a file at the root of the disk
        try:
            listing = list_files(folder, options)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            continue  # each of these tracks will become a failure of its own
        # The listing may spell the folder in another way than the manifest (memory:///a for memory://a).
        uris = pc.binary_join_element_wise(folder, listing["path"], "/")
        listings.append(listing.set_column(0, LISTING.field("uri"), uris))
    return pa.concat_tables(listings)
