"""Audio in shards: tar files as WebDataset keeps them, zip files, and Parquet files with a column of audio.

A shard is looked through once, and what was found is kept in this machine's cache for as long as its etag (or
size and time) stays. Of a tar, which states no checksum of a member, all is read for that, in large pieces; of a
zip its directory. A member's etag is its content's, so that of a shard that was packed anew only the members are
read again that changed. Of a Parquet file the names alone are read: the etag of what is in it is its own.
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

from pipeline.catalog.member_files import fetch_pieces
from pipeline.catalog.members import Member
from pipeline.catalog.row_groups import Chunk, Pieces, find_audio_column, list_chunks, read_chunk, read_footer
from pipeline.errors import CatalogError
from pipeline.storage import LISTING, Options, open_filesystem, stat_files

SHARD_ENDINGS = (".tar", ".zip", ".parquet")
CACHE = "~/.cache/musicfm-shards"

_VERSION = 1  # of what is kept
_PIECE_BYTES = 32 * 2**20  # of a tar that are read at once
_SHARDS_AT_ONCE = 8
_BLOCK_BYTES = 512  # a tar consists of

logger = logging.getLogger(__name__)


def is_shard(url: str, options: Options | None = None) -> bool:
    """Tell a shard from other files by its ending, and of a Parquet file by its columns."""
    if not url.lower().endswith(".parquet"):
        return url.lower().endswith(SHARD_ENDINGS)
    try:
        return find_audio_column(read_footer(url, options)) is not None
    except (OSError, pa.ArrowException):
        return False  # whoever takes it for another file says what is wrong with it


def list_shards(shards: Sequence[str], options: Options | None = None) -> list[pa.Table]:
    """List the members of each shard, several shards at once.

    Args:
        shards: URLs or absolute local paths.
        options: File system options.

    Returns:
        Tables of ``storage.LISTING``, ``path`` being the member's name in its shard. Where a tar is damaged
        between members, a row of its own stands for what cannot be found there. A Parquet file without audio
        has no members.

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
    kind = shard.rpartition(".")[2].lower()
    try:
        if kind == "parquet":
            version = facts["etag"] or f"{facts['size_bytes']} bytes of {facts['modified_time']}"
            rows = [{**row, "etag": version} for row in index_parquet(shard, options)]
        else:
            rows = list((index_zip if kind == "zip" else index_tar)(shard, int(facts["size_bytes"]), options))
    except (OSError, tarfile.TarError, zipfile.BadZipFile, pa.ArrowException) as error:
        hint = "; a tar must not be compressed, for its members are read by their places" if kind == "tar" else ""
        raise CatalogError(
            f"expected a {kind} file at {shard}, found none that can be read: {' '.join(str(error).split())}{hint}"
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


def index_parquet(shard: str, options: Options | None = None) -> Iterator[dict[str, Any]]:
    """Yield a row of ``storage.LISTING`` for each row of a Parquet file's audio column; none where it has none.

    The name is the row's ``path``; where it has none, or another row has it, the row's number is in it. Sizes are
    not known: the column would have to be read for them.

    Args:
        shard: URL or path.
        options: File system options.

    Raises:
        OSError: It cannot be read.
        pyarrow.ArrowException: It is no Parquet file.
    """
    metadata = read_footer(shard, options)
    column = find_audio_column(metadata)
    if column is None:
        return
    named = {chunk.group: chunk for chunk in list_chunks(metadata, f"{column}.path")}
    pieces = fetch_pieces(shard, [(chunk.start, chunk.stop) for chunk in named.values()], options)
    number, known = 0, set()
    for chunk in list_chunks(metadata, f"{column}.bytes"):
        for row, path in enumerate(_read_paths(pieces, metadata, named.get(chunk.group), chunk.num_rows)):
            name = (path or "").removeprefix("./").lstrip("/")
            if not name or name in known:
                name = f"{number:06d}/{name}".rstrip("/")
            known.add(name)
            number += 1
            yield _make_row(Member(shard, "parquet", chunk.start, chunk.stop, name, row), None, None, None)


def _read_paths(pieces: Pieces, metadata: pq.FileMetaData, chunk: Chunk | None, num_rows: int) -> list[str | None]:
    """Read the names of a row group's rows; None for those that have none, or from where they are damaged on."""
    names: list[str | None] = []
    try:
        if chunk is not None:
            names += (value.as_py() for value in read_chunk(pieces, metadata, chunk))
    except OSError as error:
        logger.warning("some rows have no name: %s", error)
    return names + [None] * (num_rows - len(names))


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
