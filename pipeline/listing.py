"""Listings: what is told of many files, as columns; and S3's, in bounded memory.

A dictionary of all keys, as fsspec's ``find`` returns it, takes over a gigabyte a million, and one page of a
thousand keys after another takes half an hour for ten million: S3 is listed many prefixes at once, and each page
turned into columns as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import chain, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import TIMESTAMP

ROWS_PER_CHUNK = 2**16
LISTS_AT_ONCE = 10  # for so many botocore keeps connections
MAX_PREFIXES = 256  # each takes a request at least

LISTING = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),  # relative to the listed root, with forward slashes
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("modified_time", TIMESTAMP),
    ]
)
"""What a bulk listing tells of each object."""

Call = Callable[..., Mapping[str, Any]]
Infos = Iterable[tuple[str, Mapping[str, Any]]]


def make_listing(infos: Infos, prefix: str, uri_prefix: str) -> pa.Table:
    """Return files as rows of ``LISTING``; marks of folders are left out.

    Args:
        infos: Name of each on its file system, and what that tells of it.
        prefix: What names begin with; a path is what follows.
        uri_prefix: What stands in place of it in URIs.
    """
    files = [(name.removeprefix(prefix), info) for name, info in infos if not name.endswith("/")]
    return pa.table(
        {
            "uri": [uri_prefix + path for path, _ in files],
            "path": [path for path, _ in files],
            "size_bytes": [info.get("size", info.get("Size")) for _, info in files],
            "etag": [read_etag(info) for _, info in files],
            "modified_time": pa.array([read_modified_time(info) for _, info in files], TIMESTAMP),
        },
        schema=LISTING,
    )


def read_etag(info: Mapping[str, Any]) -> str | None:
    """Return what tells an object's content from another's; None where nothing does."""
    etag = info.get("ETag") or info.get("etag") or info.get("blob_id")  # the last of Hugging Face
    return str(etag).strip('"') if etag else None


def read_modified_time(info: Mapping[str, Any]) -> datetime | None:
    """Return the modification time that any of the file systems names in its own way, as UTC."""
    for key in ("LastModified", "mtime", "last_modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, str) and value:
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
    return None


def is_rising(column: pa.ChunkedArray) -> bool:
    """Say whether a column is sorted and has no value twice; not so where it has nulls."""
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    return (
        not column.null_count
        and all(before[-1].as_py() < after[0].as_py() for before, after in pairwise(chunks))
        and all(pc.all(pc.less(chunk[:-1], chunk[1:]), min_count=0).as_py() for chunk in chunks)
    )


def sort_listing(tables: Iterable[pa.Table]) -> pa.Table:
    """Join rows of ``LISTING`` sorted by path, without moving them where the tables but stand in another order."""
    filled = sorted((table for table in tables if len(table)), key=lambda table: table["path"][0].as_py())
    listing = pa.concat_tables([LISTING.empty_table(), *filled])
    return listing if is_rising(listing["path"]) else listing.sort_by("path")


def list_s3(call: Call, folder: str, uri_prefix: str) -> pa.Table | None:
    """List what lies below a folder of S3: what fits a page with one request, more of it prefix by prefix.

    No order of keys is relied on: some servers sort folders in another way than S3.

    Args:
        call: Makes a request: ``call_s3`` of s3fs.
        folder: Bucket and key.
        uri_prefix: What stands before paths in URIs.

    Returns:
        Rows of ``LISTING``, sorted by path; None where nothing lies there.

    Raises:
        OSError: It may not be listed, or there is no such bucket.
    """
    bucket, _, key = folder.partition("/")
    root = f"{key.rstrip('/')}/" if key else ""
    ask = partial(_iterate_pages, call, bucket)
    make = partial(_make_tables, root=root, uri_prefix=uri_prefix)
    first = next(ask(root))
    if not first.get("IsTruncated"):
        contents = first.get("Contents", [])
        return sort_listing(make([contents])) if contents or not key else None
    level, folders = root, [root]
    files: list[pa.Table] = []
    while len(folders) == 1 and not files:  # what is below the only folder is split there
        level, folders = folders[0], []
        files = list(make(_iterate_level(ask(level, Delimiter="/"), folders)))

    def list_below(prefix: str) -> list[pa.Table]:
        pages = (page.get("Contents", []) for page in ask(prefix))
        return list(make([each for each in page if "/" in each["Key"][len(level) :]] for page in pages))

    with ThreadPoolExecutor(LISTS_AT_ONCE) as pool:
        below = pool.map(list_below, choose_prefixes(folders, len(level)))
        return sort_listing(chain(files, chain.from_iterable(below)))


def _iterate_pages(call: Call, bucket: str, prefix: str, **others: str) -> Iterator[Mapping[str, Any]]:
    while True:
        page = call("list_objects_v2", Bucket=bucket, Prefix=prefix, **others)
        yield page
        if not page.get("IsTruncated"):
            return
        others["ContinuationToken"] = page["NextContinuationToken"]


def _iterate_level(pages: Iterable[Mapping[str, Any]], folders: list[str]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the objects of a folder itself, page by page, and note the folders in it."""
    for page in pages:
        folders += (each["Prefix"] for each in page.get("CommonPrefixes", []))
        yield page.get("Contents", [])


def choose_prefixes(folders: Sequence[str], start: int) -> list[str]:
    """Choose prefixes of which each folder lies below one and only one.

    Args:
        folders: Prefixes with a slash at their ends.
        start: Up to where they are all the same.

    Returns:
        The folders themselves; where they are more than ``MAX_PREFIXES``, so many of their first letters that the
        prefixes are still not more.
    """
    if len(folders) <= MAX_PREFIXES:
        return sorted(folders)
    chosen = {folder[:start] for folder in folders}
    for stop in range(start + 1, max(map(len, folders))):
        longer = {folder[:stop] for folder in folders}
        if len(longer) > MAX_PREFIXES or any(folder[:stop] == folder for folder in folders):
            break
        chosen = longer
    return sorted(chosen)


def _make_tables(pages: Iterable[Sequence[Mapping[str, Any]]], root: str, uri_prefix: str) -> Iterator[pa.Table]:
    """Turn pages into columns, and join these into chunks of some length: many small ones make all work slow."""
    waiting: list[pa.Table] = []
    for page in pages:
        waiting.append(make_listing(((each["Key"], each) for each in page), root, uri_prefix))
        if sum(map(len, waiting)) >= ROWS_PER_CHUNK:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting).combine_chunks()
