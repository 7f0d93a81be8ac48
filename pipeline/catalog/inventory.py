"""S3 Inventory: a bucket's own list of its objects, for catalogs that are too many files to be listed.

Amazon S3 writes one once a day or week, as Parquet, ORC or CSV files with a ``manifest.json`` that names them
(S3 User Guide, "Cataloging and analyzing your data with S3 Inventory"). To read it takes one request a file, of
which each tells of about a million objects.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, orc

from pipeline.errors import CatalogError
from pipeline.schema import TIMESTAMP
from pipeline.storage import LISTING, Options, read_file

PREFIX = "inventory:"

# Names of the columns in the manifest's CSV schema, and in Parquet and ORC files.
_COLUMNS = {
    "Bucket": "bucket",
    "Key": "key",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
}


def is_inventory(audio: str) -> bool:
    """Tell whether ``--audio`` names the manifest of an inventory."""
    return audio.startswith(PREFIX)


def read_inventory(audio: str, options: Options | None = None) -> pa.Table:
    """Read what an inventory tells of a bucket's objects; of versions the latest, deleted ones left out.

    Args:
        audio: ``inventory:`` and the URL of a manifest.json, which lies in the bucket that the inventory is
            written to.
        options: File system options.

    Returns:
        Table of ``storage.LISTING``; ``path`` is the object's key.

    Raises:
        CatalogError: It is no inventory, one of its files is damaged, or it lacks the objects' sizes.
        StorageError: A file is missing or may not be read.
    """
    url = audio.removeprefix(PREFIX)
    manifest = _read_manifest(url, options)
    read = _READERS[manifest["fileFormat"].upper()]
    scheme, _, path = url.partition("://")
    bucket = f"{scheme}://{path.partition('/')[0]}"
    listings = [LISTING.empty_table()]
    for file in manifest["files"]:
        data = read_file(f"{bucket}/{file['key']}", options)
        if file.get("MD5checksum") not in (None, hashlib.md5(data, usedforsecurity=False).hexdigest()):
            raise CatalogError(f"{bucket}/{file['key']} is not the file that {url} names: its MD5 sum is another")
        try:
            tables = read(data, manifest["fileSchema"])
            listings += [_convert(table, scheme, manifest["sourceBucket"], url) for table in tables]
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise CatalogError(f"cannot read {bucket}/{file['key']}: {' '.join(str(error).split())}") from error
    return pa.concat_tables(listings)


def _read_manifest(url: str, options: Options | None) -> dict[str, Any]:
    try:
        manifest = json.loads(read_file(url, options))
        if str(manifest["fileFormat"]).upper() in _READERS and isinstance(manifest["files"], list):
            return {"fileSchema": "", **manifest, "sourceBucket": str(manifest["sourceBucket"])}
        found = f"files of format {manifest['fileFormat']}"
    except (ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
    raise CatalogError(
        f"expected the manifest.json of an S3 Inventory in Parquet, ORC or CSV at {url}, found {found}"
    )


def _convert(rows: pa.Table, scheme: str, source_bucket: str, url: str) -> pa.Table:
    """Turn rows of an inventory into rows of a listing."""
    for needed in ("key", "size"):
        if needed not in rows.column_names:
            raise CatalogError(f"expected the objects' {needed} in the inventory {url}, found {rows.column_names}")
    keep = pc.invert(pc.ends_with(rows["key"], "/"))
    for name, wanted in (("is_latest", True), ("is_delete_marker", False)):
        if name in rows.column_names:
            keep = pc.and_(keep, pc.fill_null(pc.equal(rows[name].cast(pa.bool_()), wanted), True))
    rows = rows.filter(keep)
    keys = rows["key"].cast(pa.string())
    nulls = pa.nulls(rows.num_rows, pa.string())
    etags = rows["e_tag"].cast(pa.string()) if "e_tag" in rows.column_names else nulls
    times = rows["last_modified_date"] if "last_modified_date" in rows.column_names else nulls
    columns = {
        "uri": pc.binary_join_element_wise(f"{scheme}://{source_bucket}", keys, "/"),
        "path": keys,
        "size_bytes": rows["size"].cast(pa.int64()),
        "etag": pc.utf8_trim(etags, '"'),
        "modified_time": times.cast(TIMESTAMP, safe=False),
    }
    return pa.table(columns, schema=LISTING)


def _read_parquet(data: bytes, _: str) -> Iterator[pa.Table]:
    file = pq.ParquetFile(pa.BufferReader(data))
    yield file.read([name for name in _COLUMNS.values() if name in file.schema_arrow.names])


def _read_orc(data: bytes, _: str) -> Iterator[pa.Table]:
    file = orc.ORCFile(pa.BufferReader(data))
    yield file.read([name for name in _COLUMNS.values() if name in file.schema.names])


def _read_csv(data: bytes, schema: str) -> Iterator[pa.Table]:
    """Read gzipped rows without a head; keys are spelled as in URLs."""
    names = [name.strip() for name in schema.split(",")]
    wanted = [name for name in names if name in _COLUMNS]
    text = {name: pa.string() for name in wanted}
    rows = csv.read_csv(
        io.BytesIO(gzip.decompress(data)),
        csv.ReadOptions(column_names=names),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(include_columns=wanted, column_types=text, strings_can_be_null=True),
    ).rename_columns([_COLUMNS[name] for name in wanted])
    keys = pa.array([unquote_plus(key) for key in rows["key"].to_pylist()], pa.string())
    yield rows.set_column(rows.column_names.index("key"), "key", keys)


_READERS: dict[str, Callable[[bytes, str], Iterator[pa.Table]]] = {
    "PARQUET": _read_parquet,
    "ORC": _read_orc,
    "CSV": _read_csv,
}
