"""The files of an index: where they lie beside the store, how they get there, and how they are opened.

A finished file never changes. In a local store it is opened where it lies; from an object store it is downloaded
once into a cache on this machine, under the name of its checksum.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.config import DEFAULT_INDEX_CACHE
from pipeline.errors import StorageError
from pipeline.location import StoreLocation
from pipeline.schema import CATALOG, LABELS
from pipeline.storage import is_local, join_url, open_filesystem, remove_file

CACHE_DAYS = 14  # a cached file that nobody opened for so long is removed
_HASH_BLOCK_BYTES = 2**22
_verified: set[tuple[str, int, int]] = set()  # local files whose checksum this process has compared


@dataclass(frozen=True)
class IndexFile:
    """One immutable file of an index.

    Args:
        name: Its name under ``files/``.
        size_bytes: Its size.
        sha256: Its checksum, hexadecimal.
        num_rows: Vectors in it, for files of vectors.
    """

    name: str
    size_bytes: int
    sha256: str
    num_rows: int = 0


@dataclass(frozen=True)
class IndexLocation:
    """Where the index of one recipe and resolution lies.

    Args:
        store: The feature store that it belongs to.
        recipe: Recipe id.
        resolution: ``global``, or a resolution with frames.
    """

    store: StoreLocation
    recipe: str
    resolution: str

    @property
    def url(self) -> str:
        """The index's folder or bucket prefix."""
        return join_url(self.store.url, "indexes", self.recipe, self.resolution)

    @property
    def local_folder(self) -> str | None:
        """The folder on this machine's disk; None on an object store."""
        fs, path = open_filesystem(self.url, self.store.options)
        return path if is_local(fs) else None

    def file_url(self, name: str) -> str:
        """Return the URL of one of its files."""
        return join_url(self.url, "files", name)

    def version_url(self, version: int) -> str:
        """Return the URL of a version's manifest."""
        return join_url(self.url, "versions", f"{version:08d}.json")


def upload_file(
    location: IndexLocation, local_path: str, num_rows: int = 0, cache: str | None = None
) -> IndexFile:
    """Move a finished local file into the index; on an object store a copy stays in the cache.

    Args:
        location: The index.
        local_path: The file; it is gone afterwards.
        num_rows: Vectors in it.
        cache: Cache folder.

    Raises:
        StorageError: It cannot be written.
    """
    name = f"{uuid.uuid4().hex}{Path(local_path).suffix}"
    file = IndexFile(name, os.path.getsize(local_path), _hash_file(local_path), num_rows)
    url = location.file_url(name)
    try:
        if folder := location.local_folder:
            target = os.path.join(folder, "files", name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
        else:
            fs, path = open_filesystem(url, location.store.options)
            fs.put_file(local_path, path)
            target = str(_cache_folder(cache) / file.sha256)
        os.replace(local_path, target)
        _remember(target)
    except Exception as error:
        raise StorageError(f"cannot write {url}: {describe_error(error)}") from error
    return file


def fetch_file(location: IndexLocation, file: IndexFile, cache: str | None = None) -> str:
    """Return the path of a verified local copy: the file itself in a local store, else one in the cache.

    Raises:
        StorageError: It is missing, cannot be read, or its checksum differs from the manifest's.
    """
    if folder := location.local_folder:
        path = os.path.join(folder, "files", file.name)
    else:
        path = str(_cache_folder(cache) / file.sha256)
        if not os.path.exists(path):
            _download(location, file, path)
    try:
        facts = os.stat(path)
        if (path, facts.st_size, facts.st_mtime_ns) not in _verified:
            _verify(location, file, path)
        if not location.local_folder:
            os.utime(path)
        _remember(path)
    except OSError as error:
        raise StorageError(
            f"cannot read {path} of the index at {location.url}: {describe_error(error)}"
        ) from error
    return path


@contextmanager
def working_folder(location: IndexLocation, cache: str | None = None) -> Iterator[str]:
    """Give a temporary folder on the disk that finished files are moved to, and remove it at last."""
    parent = location.local_folder or str(_cache_folder(cache))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=parent) as folder:
        yield folder


def remove_files(location: IndexLocation, names: Collection[str]) -> None:
    """Remove files of the index; those that are gone already are no mistake."""
    for name in names:
        with suppress(StorageError):
            remove_file(location.file_url(name), location.store.options)


def _download(location: IndexLocation, file: IndexFile, path: str) -> None:
    url = location.file_url(file.name)
    fs, remote = open_filesystem(url, location.store.options)
    draft = f"{path}.{uuid.uuid4().hex}"
    try:
        fs.get_file(remote, draft)
        os.replace(draft, path)
    except Exception as error:
        raise StorageError(f"cannot read {url}: {describe_error(error)}") from error
    finally:
        Path(draft).unlink(missing_ok=True)


def _verify(location: IndexLocation, file: IndexFile, path: str) -> None:
    sha256 = _hash_file(path) if os.path.getsize(path) == file.size_bytes else "another size"
    if sha256 == file.sha256:
        return
    if not location.local_folder:
        os.unlink(path)  # the next attempt downloads it again
    raise StorageError(
        f"{location.file_url(file.name)} is damaged: expected {file.size_bytes} bytes with SHA-256 "
        f"{file.sha256[:16]}…, found {sha256[:16]}…; rebuild the index with musicfm index --rebuild"
    )


def _cache_folder(cache: str | None) -> Path:
    """Return the cache's folder, and forget what nobody opened for a while."""
    try:
        folder = Path(cache or DEFAULT_INDEX_CACHE).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} may not be read and written")
    except (OSError, RuntimeError) as error:  # there is no home at all
        raise StorageError(
            f"cannot keep files of indexes in {cache or DEFAULT_INDEX_CACHE}: {error}; name a folder that can be "
            "written with --cache"
        ) from error
    oldest_s = time.time() - CACHE_DAYS * 86400
    for entry in os.scandir(folder):
        with suppress(OSError):
            if entry.is_file() and entry.stat().st_mtime < oldest_s:
                os.unlink(entry.path)
    return folder


def _remember(path: str) -> None:
    facts = os.stat(path)
    _verified.add((path, facts.st_size, facts.st_mtime_ns))


def _hash_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def describe_error(error: Exception) -> str:
    """Return an exception's type and text in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def read_tracks(path: str) -> pa.Table:
    """Read the rows of an index's tracks; null where the index is older than a column.

    Args:
        path: A local file, from ``fetch_file``.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        tracks = pa.ipc.open_file(pa.memory_map(path)).read_all()
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot read {path}: {' '.join(str(error).split())}; rebuild the index") from error
    for name in set(LABELS) - set(tracks.column_names):
        tracks = tracks.append_column(CATALOG.field(name), pa.nulls(tracks.num_rows, CATALOG.field(name).type))
    return tracks
