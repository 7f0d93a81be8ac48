"""Audio in shards: tar files as WebDataset keeps them, and zip files, each of whose audio members is a track.

A shard is looked through once, and what was found is kept in this machine's cache for as long as its etag (or
size and time) stays. Of a tar, which states no checksum of a member, all is read for that, in large pieces; of a
zip its directory. A member's etag is its content's, so that of a shard that was packed anew only the members are
read again that changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalog.members import Member
from pipeline.errors import CatalogError
from pipeline.storage import LISTING, Options, open_filesystem, stat_files

SHARD_ENDINGS = (".tar", ".zip")
CACHE = "~/.cache/musicfm-shards"

_VERSION = 1  # of what is kept
_PIECE_BYTES = 32 * 2**20  # of a tar that are read at once
_SHARDS_AT_ONCE = 8
_BLOCK_BYTES = 512  # a tar consists of

logger = logging.getLogger(__name__)


def is_shard(url: str) -> bool:
    """Tell a shard from other files by its ending."""
    return url.lower().endswith(SHARD_ENDINGS)


def list_shards(shards: Sequence[str], options: Options | None = None) -> list[pa.Table]:
    """List the members of each shard, several shards at once.

    Args:
        shards: URLs or absolute local paths.
        options: File system options.

    Returns:
        Tables of ``storage.LISTING``, ``path`` being the member's name in its shard. Where a tar is damaged
        between members, a row of its own stands for what cannot be found there.

    Raises:
        CatalogError: A shard is none, or cannot be read.
    """
    with ThreadPoolExecutor(max_workers=_SHARDS_AT_ONCE) as pool:
        return list(pool.map(lambda shard: _list_shard(shard, options), shards))


def _list_shard(shard: str, options: Options | None) -> pa.Table:
    (facts,) = stat_files([shard], options)
    if isinstance(facts, Exception):
        raise CatalogError(f"cannot read the shard {shard}: {' '.join(str(facts).split())}") from facts
    kept = _name_kept(shard, facts)
    if kept is not None and kept.exists():
        return pq.read_table(kept, schema=LISTING)
    index = index_zip if shard.lower().endswith(".zip") else index_tar
    try:
        rows = list(index(shard, int(facts["size_bytes"]), options))
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise CatalogError(
            f"expected a {shard.rpartition('.')[2]} file at {shard}, found none that can be read: {error}; a tar "
            "must not be compressed, for its members are read by their places"
        ) from error
    listing = pa.Table.from_pylist(rows, schema=LISTING)
    if kept is not None:
        _keep(listing, kept)
    return listing


def _name_kept(shard: str, facts: dict[str, Any]) -> Path | None:
    """Return where a shard's listing is kept; None where nothing would tell that the shard has changed."""
    if facts["etag"] is None and facts["modified_time"] is None:
        return None
    key = json.dumps([_VERSION, shard, *(str(facts[name]) for name in sorted(facts))])
    return Path(CACHE).expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.parquet"


def _keep(listing: pa.Table, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        pq.write_table(listing, draft)
        draft.replace(path)
    except OSError as error:
        logger.warning("the members of a shard are not kept in %s: %s", path.parent, error)


def index_tar(shard: str, size_bytes: int, options: Options | None = None) -> Iterator[dict[str, Any]]:
    """Yield a row of ``storage.LISTING`` for each regular member of a tar file, which is read from end to end.

    Args:
        shard: URL or path.
        size_bytes: Of the shard.
        options: File system options.

    Raises:
        OSError: It cannot be read.
        tarfile.TarError: It is no tar file.
    """
    fs, path = open_filesystem(shard, options)
    end, gaps = 0, []
    with (
        fs.open(path, "rb", block_size=_PIECE_BYTES, cache_type="readahead") as file,
        # What is no header is stepped over, block by block, to the next one.
        tarfile.open(fileobj=file, mode="r|", ignore_zeros=True, bufsize=2**20) as archive,
    ):
        for entry in _iterate_entries(archive):
            if entry.offset > end:
                gaps.append((end, entry.offset))
            end = entry.offset_data + -(-entry.size // _BLOCK_BYTES) * _BLOCK_BYTES
            if entry.isfile():
                member = Member(shard, "tar", entry.offset_data, entry.offset_data + entry.size, entry.name)
                modified_time = datetime.fromtimestamp(entry.mtime, UTC)
                yield _make_row(member, entry.size, _hash_entry(archive.extractfile(entry)), modified_time)
    for start, stop in [*gaps, (end, size_bytes)]:
        if stop > start and any(fs.cat_file(path, start=start, end=min(stop, start + _BLOCK_BYTES))):
            if end == 0:
                raise tarfile.ReadError("it has no member")
            name = f"damaged at byte {start}.mp3"  # it may have been one: it is to be a track that fails
            logger.warning("%s is damaged from byte %d to %d: what lay there cannot be found", shard, start, stop)
            yield _make_row(Member(shard, "tar", start, start + _BLOCK_BYTES, name), None, None, None)


def _iterate_entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar file up to its end, wherever that is."""
    entries = iter(archive)
    while True:
        try:
            yield next(entries)
        except (StopIteration, tarfile.ReadError):
            return


def _hash_entry(content: IO[bytes] | None) -> str | None:
    """Return the digest of a member's bytes; None where the shard ends within them."""
    digest = hashlib.sha256()
    try:
        while content is not None and (piece := content.read(2**20)):
            digest.update(piece)
    except tarfile.ReadError:
        return None
    return digest.hexdigest()[:32]


def index_zip(shard: str, size_bytes: int, options: Options | None = None) -> Iterator[dict[str, Any]]:
    """Yield a row of ``storage.LISTING`` for each file in a zip file, from its directory.

    Args:
        shard: URL or path.
        size_bytes: Of the shard.
        options: File system options.

    Raises:
        OSError: It cannot be read.
        zipfile.BadZipFile: It is no zip file.
    """
    fs, path = open_filesystem(shard, options)
    with fs.open(path, "rb", block_size=2**20, cache_type="bytes") as file, zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        stops = [*(entry.header_offset for entry in entries[1:]), min(archive.start_dir, size_bytes)]
        for entry, stop in zip(entries, stops, strict=False):  # a zip may be empty
            if not entry.is_dir():
                member = Member(shard, "zip", entry.header_offset, stop, entry.filename)
                modified_time = datetime(*entry.date_time, tzinfo=UTC)
                yield _make_row(member, entry.file_size, f"crc32-{entry.CRC:08x}", modified_time)


def _make_row(
    member: Member, size_bytes: int | None, etag: str | None, modified_time: datetime | None
) -> dict[str, Any]:
    return {
        "uri": member.uri,
        "path": member.name.removeprefix("./"),
        "size_bytes": size_bytes,
        "etag": etag,
        "modified_time": modified_time,
    }
