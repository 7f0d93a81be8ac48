"""A track's own file over HTTP, with the byte ranges that a player seeks by (RFC 9110, section 14)."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from pipeline.errors import Reason, StorageError
from pipeline.storage import Options, classify_read_error, open_filesystem, stat_files

BLOCK_BYTES = 2**20  # one request to storage; a range that asks for more gets this much, and the player asks again

# What Python's table lacks, or names in a way that browsers do not play.
_MEDIA_TYPES = {
    ".aiff": "audio/aiff",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
}

# Endings of what every browser plays, as a rule. (An m4a may hold ALAC: the page asks for a copy where it fails.)
_PLAYABLE = frozenset({".aac", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav", ".webm"})


class AudioFile:
    """One file of the catalog's audio.

    Args:
        uri: As the catalog names it.
        options: File system options of the audio; never logged.

    Raises:
        FileNotFoundError: It is no longer there.
        StorageError: Storage does not answer, or refuses.
    """

    def __init__(self, uri: str, options: Options | None = None) -> None:
        (facts,) = stat_files([uri], options)
        if isinstance(facts, Exception):
            raise _as_read_error(facts) from facts
        self.uri = uri
        self.size_bytes = int(facts["size_bytes"])
        self.etag = f'"{facts["etag"] or facts["modified_time"]}-{self.size_bytes}"'.replace(" ", "T")
        self.media_type = find_media_type(uri)
        self._fs, self._path = open_filesystem(uri, options)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``, the latter not included.

        Raises:
            FileNotFoundError: It is no longer there.
            StorageError: Storage does not answer, or refuses.
        """
        try:
            return bytes(self._fs.cat_file(self._path, start=start, end=stop))
        except Exception as error:
            raise _as_read_error(error) from error

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Give the file to read from and to seek in, inside the block.

        Raises:
            FileNotFoundError: It is no longer there.
            StorageError: Storage does not answer, or refuses.
        """
        try:
            file = self._fs.open(self._path, "rb", block_size=BLOCK_BYTES)
        except Exception as error:
            raise _as_read_error(error) from error
        with file:
            yield file


class Readable(Protocol):
    """What is answered with: a file of the catalog, or a copy of one."""

    size_bytes: int
    etag: str
    media_type: str

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``, the latter not included."""
        ...


async def answer_with_audio(audio: Readable, range_header: str | None, if_range: str | None) -> Response:
    """Answer a GET for a file, whole or one range of it.

    Args:
        audio: The file.
        range_header: ``Range`` of the request, if any. More than one range is answered with the whole file, as
            the standard allows.
        if_range: ``If-Range`` of the request, if any: the range counts only for this state of the file.

    Returns:
        Status 200, 206, or 416 for a range that lies outside.
    """
    headers = {"accept-ranges": "bytes", "etag": audio.etag, "cache-control": "private, max-age=3600"}
    wanted = parse_range(range_header, audio.size_bytes) if range_header else None
    if if_range is not None and if_range != audio.etag:
        wanted = None
    if wanted is None:
        headers["content-length"] = str(audio.size_bytes)
        return StreamingResponse(_read_blocks(audio), 200, headers, audio.media_type)
    if not wanted:
        return Response(status_code=416, headers={"content-range": f"bytes */{audio.size_bytes}"})
    stop = min(wanted.stop, wanted.start + BLOCK_BYTES)
    content = await run_in_threadpool(audio.read, wanted.start, stop)
    headers["content-range"] = f"bytes {wanted.start}-{stop - 1}/{audio.size_bytes}"
    return Response(content, 206, headers, audio.media_type)


def parse_range(text: str, size_bytes: int) -> range | None:
    """Read a ``Range`` header.

    Args:
        text: Its value.
        size_bytes: Length of the file.

    Returns:
        The bytes asked for; empty where they lie outside the file; None where the header is to be ignored.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", text.strip())
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if not first:
        return range(max(0, size_bytes - int(last)), size_bytes)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size_bytes) if last else size_bytes)


def find_media_type(uri: str) -> str:
    """Return the media type that a file's ending stands for; never one that a browser would show as a page."""
    ending = PurePosixPath(uri).suffix.lower()
    guess = _MEDIA_TYPES.get(ending) or mimetypes.types_map.get(ending, "")
    return guess if guess.startswith(("audio/", "video/")) else "application/octet-stream"


def is_playable(uri: str) -> bool:
    """Say whether browsers, as a rule, play files of this ending as they are."""
    return PurePosixPath(uri).suffix.lower() in _PLAYABLE


async def _read_blocks(audio: Readable) -> AsyncIterator[bytes]:
    for start in range(0, audio.size_bytes, BLOCK_BYTES):
        yield await run_in_threadpool(audio.read, start, min(start + BLOCK_BYTES, audio.size_bytes))


def _as_read_error(error: Exception) -> Exception:
    """Turn what storage raises into the two kinds that a caller tells apart, without the file's whereabouts."""
    if classify_read_error(error) is Reason.OBJECT_MISSING:
        return FileNotFoundError("the track's file is no longer where the catalog found it")
    return StorageError(f"the track's file cannot be read ({type(error).__name__})")
