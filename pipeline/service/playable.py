"""A FLAC copy of a track's file, for browsers that lack its codec: wma, aiff, alac and the like."""

from __future__ import annotations

import asyncio
import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import BinaryIO

import av
from starlette.concurrency import run_in_threadpool

from pipeline.errors import StorageError
from pipeline.service.audio import AudioFile

MAX_COPY_BYTES = 2**30  # about three hours of stereo at 44.1 kHz
MAX_KEPT_BYTES = 2**30
MAX_KEPT = 16
_MAX_RATE_HZ = 48_000
_MAX_BAD_PACKETS = 100  # in a row; a few damaged ones are a click


class UnplayableError(Exception):
    """FFmpeg makes no copy of a file, or it would be too large."""


class PlayableCopy:
    """A copy on disk without a name, so that nothing is left of it however this process ends.

    Args:
        file: Holds the FLAC; closed once nobody uses the copy.
        etag: Of the copy; equal in every process that makes one of the same file.
    """

    media_type = "audio/flac"

    def __init__(self, file: BinaryIO, etag: str) -> None:
        self.etag = etag
        self.size_bytes = os.fstat(file.fileno()).st_size
        self._file = file
        weakref.finalize(self, file.close)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``, the latter not included."""
        return os.pread(self._file.fileno(), stop - start, start)


class PlayableCopies:
    """The latest copies, of one process.

    One is made at a time, so that listeners do not take all processors from those who search, and kept for
    the ranges that a player asks for next: the last ``MAX_KEPT`` and at most ``MAX_KEPT_BYTES`` on disk.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], PlayableCopy] = OrderedDict()
        self._making = asyncio.Lock()

    async def get(self, audio: AudioFile) -> PlayableCopy:
        """Return a file's copy, made now where it is not kept.

        Raises:
            UnplayableError: FFmpeg makes none, or it would be too large.
            FileNotFoundError: The file is no longer there.
            StorageError: Storage does not answer, or the disk is full.
        """
        key = (audio.uri, audio.etag)
        if key not in self._kept:
            async with self._making:
                if key not in self._kept:  # else another request had it made meanwhile
                    copy = await run_in_threadpool(make_copy, audio)
                    self._keep(key, copy)
                    return copy
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: tuple[str, str], copy: PlayableCopy) -> None:
        self._kept[key] = copy
        while len(self._kept) > MAX_KEPT or sum(kept.size_bytes for kept in self._kept.values()) > MAX_KEPT_BYTES:
            self._kept.popitem(last=False)


def make_copy(audio: AudioFile) -> PlayableCopy:
    """Encode a file's sound as FLAC: 16 bits, one or two channels, at most 48 kHz.

    It is read, decoded and written piece by piece: memory does not grow with the track.

    Raises:
        UnplayableError: FFmpeg cannot decode it, or the copy would be over ``MAX_COPY_BYTES``.
        FileNotFoundError: The file is no longer there.
        StorageError: Storage does not answer, or the disk is full.
    """
    target = tempfile.TemporaryFile(prefix="musicfm-copy-")  # noqa: SIM115 - the copy closes it
    try:
        with audio.open() as source:
            _write_flac(source, target)
    except (av.FFmpegError, IndexError, ValueError) as error:
        target.close()
        raise UnplayableError(f"the track's file cannot be decoded ({type(error).__name__})") from error
    except OSError as error:
        target.close()
        raise StorageError(f"no copy of the track can be written ({error.strerror})") from error
    except Exception:
        target.close()
        raise
    return PlayableCopy(target, f'"flac-{audio.etag.strip(chr(34))}"')


def _write_flac(source: BinaryIO, target: BinaryIO) -> None:
    with av.open(source, metadata_errors="ignore") as container, av.open(target, "w", format="flac") as output:
        assert isinstance(container, av.container.InputContainer)
        frames = _decode(container, container.streams.audio[0])
        first = next(frames, None)
        if first is None:
            raise UnplayableError("the track's file holds no sound")
        layout = "mono" if first.layout.nb_channels == 1 else "stereo"
        rate_hz = min(first.sample_rate, _MAX_RATE_HZ)
        stream = output.add_stream("flac", rate=rate_hz, layout=layout, format="s16")
        stream.codec_context.options = {"compression_level": "1"}
        resampler = av.AudioResampler("s16", layout, rate_hz)
        frame: av.AudioFrame | None = first
        while frame is not None:
            frame.pts = None  # counted anew: the copy has no gaps
            for part in resampler.resample(frame):
                output.mux(stream.encode(part))
            if target.tell() > MAX_COPY_BYTES:
                raise UnplayableError(f"a copy of the track would be over {MAX_COPY_BYTES / 2**30:g} GiB")
            frame = next(frames, None)
        for part in resampler.resample(None):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))


def _decode(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """Yield a stream's frames; packets that are damaged are left out, as players do."""
    num_bad = 0
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
            num_bad = 0
        except av.InvalidDataError:
            num_bad += 1
            if num_bad > _MAX_BAD_PACKETS:
                raise
