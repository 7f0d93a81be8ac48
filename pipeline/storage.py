"""The one door to object storage: every read, listing and write of the pipeline goes through here.

Any fsspec URL works (a local path, ``s3://``, ``gs://``, ``hf://``, ``memory://``, …), save chained ones
(``zip://…::s3://…``): ``::`` stands in the names of real tracks. Credentials come from the scheme's standard
places (for S3 the AWS variables and files), or from explicit options; they are never logged, and never part
of a row or a recipe.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import IO, Any

import fsspec
import pyarrow as pa
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import Reason, StorageError
from pipeline.listing import LISTING as LISTING
from pipeline.listing import list_s3, make_listing, read_etag, read_modified_time, sort_listing
from pipeline.local_files import find_local_files, require_regular

Options = Mapping[str, str]

_S3 = ("s3", "s3a")


def open_filesystem(url: str, options: Options | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec file system of a URL and the URL's path on it.

    Args:
        url: Any fsspec URL or a local path.
        options: Keyword arguments of the file system, such as ``endpoint_url``.

    Raises:
        StorageError: The scheme is unknown or its driver is not installed.
    """
    protocol = split_protocol(url)[0] or "file"
    try:
        # Not fsspec's `url_to_fs`, which takes `::` in a file's name for a chain of file systems.
        scheme = fsspec.get_filesystem_class(protocol)
        named = {} if protocol in _S3 else scheme._get_kwargs_from_urls(url)
        fs = scheme(**{**named, **(options or {})})
    except (ValueError, ImportError) as error:
        raise StorageError(f"cannot open {url}: {' '.join(str(error).split())}") from error
    if protocol in _S3 and "split_path" not in vars(fs):  # drivers are made once and found again
        fs.split_path = partial(_split_s3_path, fs.split_path)
    return fs, str(fs._strip_protocol(url))


def _split_s3_path(split: Callable[[str], tuple[str, str, str | None]], path: str) -> tuple[str, str, None]:
    """Split bucket from key; s3fs takes what follows ``?versionId=`` in a key for a version of another object."""
    bucket, key, _ = split(path.replace("?versionId=", "?\0versionId="))
    return bucket, key.replace("?\0versionId=", "?versionId="), None


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Say whether a file system is this machine's own disk."""
    return isinstance(fs, LocalFileSystem)


def join_url(root: str, *parts: str) -> str:
    """Append path parts to a URL or local path."""
    return "/".join([root.rstrip("/"), *parts])


def absolute_url(url: str) -> str:
    """Return a URL that means the same from any working directory: local paths become absolute."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def list_files(root: str, options: Options | None = None) -> pa.Table:
    """List all files under a root in bulk (one request per thousand objects on S3), sorted by path.

    A million objects of S3 take the memory of their rows, some 150 MB. Local links are followed, those to folders
    too; one that leads nowhere is listed without size and time. A local name that is not UTF-8 is listed with its
    odd bytes spelled out, so that reading it fails by name.

    Args:
        root: A folder, a bucket prefix, or a single file (its ``path`` is then its name).
        options: File system options.

    Returns:
        Table of schema ``LISTING``. Local files have no etag.

    Raises:
        StorageError: The root does not exist, is not readable, or the credentials are refused.
    """
    fs, path = open_filesystem(root, options)
    try:
        if split_protocol(root)[0] in _S3:
            _hasten_times(fs)
            listed = list_s3(partial(fs.call_s3, **fs.req_kw), path, f"{fs.unstrip_protocol(path).rstrip('/')}/")
            if listed is not None:
                return listed
        is_folder = fs.isdir(path)
        if not is_folder:
            infos_by_path = {path: fs.info(path)}  # raises the scheme's own error where there is nothing
            if is_local(fs):
                require_regular(path)
        elif is_local(fs):
            infos_by_path = find_local_files(path)
        else:
            infos_by_path = fs.find(path, detail=True)
    except Exception as error:
        raise _whole_store_error(root, error) from error
    finally:
        fs.invalidate_cache()  # s3fs would answer later questions, sizes included, from this listing
    prefix = (path if is_folder else fs._parent(path)).rstrip("/") + "/"
    uri_prefix = fs.unstrip_protocol(prefix).removesuffix("/") + "/" if "://" in root else prefix
    return sort_listing([make_listing(infos_by_path.items(), prefix, uri_prefix)])


def _hasten_times(fs: fsspec.AbstractFileSystem) -> None:
    """Let Python itself read the times of S3's answers: dateutil's parser takes three quarters of a listing."""
    from botocore.utils import parse_timestamp

    def parse(value: Any) -> datetime:
        with suppress(ValueError, TypeError):  # seconds, or the words of a header
            if "T" in value:
                return datetime.fromisoformat(value)
        parsed: datetime = parse_timestamp(value)
        return parsed

    fs.connect()
    fs.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse)


def stat_files(uris: Sequence[str], options: Options | None = None) -> list[dict[str, Any] | Exception]:
    """Return size_bytes, etag and modified_time of each URI, or the exception that asking for it raised.

    Asks for up to 32 at a time; for whole folders ``list_files`` needs far fewer requests.
    """

    def stat_one(uri: str) -> dict[str, Any] | Exception:
        try:
            fs, path = open_filesystem(uri, options)
            info = fs.info(path)
            if info.get("type") == "directory":
                raise IsADirectoryError(f"expected a file at {uri}, found a folder")
            if is_local(fs):
                require_regular(path)
        except Exception as error:
            return error
        return {
            "size_bytes": info.get("size"),
            "etag": read_etag(info),
            "modified_time": read_modified_time(info),
        }

    with ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(stat_one, uris))


def read_file(url: str, options: Options | None = None) -> bytes:
    """Read one object whole.

    Raises:
        StorageError: It is missing or may not be read.
    """
    fs, path = open_filesystem(url, options)
    try:
        return bytes(fs.cat_file(path))
    except Exception as error:
        raise _whole_store_error(url, error) from error


def read_files(uris: Sequence[str], options: Options | None = None) -> list[bytes | Exception]:
    """Read many objects at once: concurrently where the file system is asynchronous.

    Uses ``cat_ranges`` rather than ``cat``: the latter takes ``[``, ``?`` and ``*`` in a file's name for a
    pattern, and then fails the whole call.

    Args:
        uris: Full URLs or local paths; a manifest may mix schemes.
        options: File system options.

    Returns:
        For each URI its bytes, or the exception that reading it raised; in order.

    Raises:
        StorageError: The scheme is unknown.
    """
    positions: defaultdict[str | None, list[int]] = defaultdict(list)
    for position, uri in enumerate(uris):
        positions[split_protocol(uri)[0]].append(position)
    bodies_by_position: dict[int, bytes | Exception] = {}
    for protocol, group in positions.items():
        fs, _ = open_filesystem(uris[group[0]], options)
        asked = []
        for position in group:
            try:
                path = fs._strip_protocol(uris[position])
                if is_local(fs):
                    require_regular(path)
                asked.append((position, path))
            except (OSError, ValueError) as error:  # the latter of a NUL in a name
                bodies_by_position[position] = error
        paths = [path for _, path in asked]
        whole = [None] * len(paths)
        # One stream an object: to split it into several, s3fs would first ask for every object's size.
        streams = {"max_concurrency": 1} if protocol in _S3 else {}
        bodies = fs.cat_ranges(paths, whole, whole, on_error="return", **streams)
        bodies_by_position.update(zip((position for position, _ in asked), bodies, strict=True))
    return [bodies_by_position[position] for position in range(len(uris))]


def classify_read_error(error: Exception) -> Reason:
    """Return the failure reason that an exception from ``read_files`` stands for."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return Reason.OBJECT_MISSING
    if isinstance(error, PermissionError):
        return Reason.PERMISSION_DENIED
    return Reason.FETCH_FAILED


def write_file(url: str, data: bytes, options: Options | None = None) -> None:
    """Write one object whole, making its folder where the file system has folders.

    Raises:
        StorageError: It cannot be written.
    """
    fs, path = open_filesystem(url, options)
    try:
        if not fs.async_impl:  # object stores have no folders, and s3fs would create a missing bucket
            fs.makedirs(fs._parent(path), exist_ok=True)
        fs.pipe_file(path, data)
    except Exception as error:
        raise _whole_store_error(url, error) from error


@contextmanager
def create_file(url: str, options: Options | None = None) -> Iterator[IO[bytes]]:
    """Open a new object for writing it piece by piece; what ``write_file`` does, without all of it in memory.

    Args:
        url: The object. Nothing is left of it where writing it breaks off.
        options: File system options.

    Raises:
        StorageError: It cannot be written, or one that was raised meanwhile.
    """
    fs, path = open_filesystem(url, options)
    try:
        if not fs.async_impl:  # as in `write_file`
            fs.makedirs(fs._parent(path), exist_ok=True)
        with fs.open(path, "wb") as file:
            yield file
    except Exception as error:
        with suppress(StorageError):  # what is there of it would fill a disk that is full
            remove_file(url, options)
        raise error if isinstance(error, StorageError) else _whole_store_error(url, error) from error


def remove_file(url: str, options: Options | None = None) -> None:
    """Remove one object; nothing happens where there is none.

    Raises:
        StorageError: It cannot be removed.
    """
    fs, path = open_filesystem(url, options)
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        return
    except Exception as error:
        raise _whole_store_error(url, error) from error


def _whole_store_error(url: str, error: Exception) -> StorageError:
    """Say in one line why a whole URL is out of reach."""
    detail = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return StorageError(f"expected a file or folder at {url}, found nothing; check the path or bucket")
    if isinstance(error, PermissionError):
        return StorageError(f"access to {url} was refused ({detail}); check the credentials and permissions")
    return StorageError(f"cannot reach {url}: {type(error).__name__}: {detail}")
