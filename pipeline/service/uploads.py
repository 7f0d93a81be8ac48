"""Files that strangers send: decoded in a child process with a deadline, embedded one at a time."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
from starlette.exceptions import HTTPException

from pipeline.decode.audio import DecodedAudio, decode_audio
from pipeline.errors import Reason, Stage, TrackError
from pipeline.search.query import AudioQuery
from pipeline.search.recognise import Heard
from pipeline.service.similarity import SIMILARITY_RESOLUTION

DECODE_TIMEOUT_S = 60.0
MAX_WAITING = 8  # uploads embedded or waiting at once; one more is told to come back


class DecoderProcess:
    """A child process that decodes one file at a time: what a file kills, or keeps busy for ever, is the child.

    Not ``isolation.decode_audio_apart``: there one file's crash ends the calls of all others, and nothing ends one
    that hangs.

    Args:
        timeout_s: A file that takes longer is given up.
    """

    def __init__(self, timeout_s: float = DECODE_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the child ahead of the first file: its imports take seconds."""
        with self._lock:
            self._connect()

    def decode(self, data: bytes, max_duration_s: float) -> DecodedAudio:
        """Decode as ``audio.decode_audio`` does.

        Raises:
            TrackError: As ``decode_audio``; or its decoder died, or did not come to an end.
        """
        with self._lock:
            connection = self._connect()
            # Killed from beside: to send, too, may wait for ever for a child that no longer reads.
            is_late = threading.Event()
            deadline = threading.Timer(self.timeout_s, self._give_up, [is_late])
            deadline.start()
            try:
                connection.send((data, max_duration_s))
                answer = connection.recv()
            except (EOFError, OSError) as error:
                self._stop()
                if is_late.is_set():
                    found = f"expected a file that decodes within {self.timeout_s:g} s, this one did not"
                    raise TrackError(Stage.DECODE, Reason.UNREADABLE, found) from error
                found = f"the decoder died of this file of {len(data)} bytes; it is damaged, or made to harm"
                raise TrackError(Stage.DECODE, Reason.WORKER_CRASHED, found) from error
            finally:
                deadline.cancel()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, DecodedAudio)
        return answer

    def stop(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _connect(self) -> Connection:
        if self._connection is None or self._process is None or not self._process.is_alive():
            self._stop()
            # Spawned, not forked: a fork would copy the locks of the threads around it.
            context = multiprocessing.get_context("spawn")
            self._connection, far_end = context.Pipe()
            self._process = context.Process(target=_decode_forever, args=(far_end,), daemon=True)
            self._process.start()
            far_end.close()
        return self._connection

    def _give_up(self, is_late: threading.Event) -> None:
        is_late.set()
        if self._process is not None:
            self._process.kill()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


@dataclass(frozen=True)
class EmbeddedUpload:
    """What the model makes of a file.

    Args:
        duration_s: Its length.
        heard: What the index is asked with, and the frames at ``SIMILARITY_RESOLUTION`` for a picture of the file.
    """

    duration_s: float
    heard: Heard

    @property
    def frames(self) -> np.ndarray:
        """Frames at ``SIMILARITY_RESOLUTION``, float32 of shape (num_frames, embed_dim)."""
        return self.heard.stored[SIMILARITY_RESOLUTION]


class UploadEmbedder:
    """Turns uploads into vectors, one at a time.

    Args:
        audio_query: The catalog's model.
    """

    def __init__(self, audio_query: AudioQuery) -> None:
        self.audio_query = audio_query
        self.decoder = DecoderProcess()
        self._lock = threading.Lock()
        self._places = threading.Semaphore(MAX_WAITING)

    @contextmanager
    def take_place(self) -> Iterator[None]:
        """Take a place in the queue.

        Raises:
            HTTPException: 503, the queue is full.
        """
        if not self._places.acquire(blocking=False):
            busy = "many files are being listened to just now; try again in a moment"
            raise HTTPException(503, busy, {"retry-after": "10"})
        try:
            yield
        finally:
            self._places.release()

    def embed(self, data: bytes, resolution: str, is_stored: bool = False) -> EmbeddedUpload:
        """Decode and embed a file.

        Args:
            data: The whole file.
            resolution: Of the index that is asked.
            is_stored: The catalog holds this very file.

        Raises:
            TrackError: The file cannot be decoded, or the model cannot take it.
        """
        query = self.audio_query
        decoded = self.decoder.decode(data, query.max_duration_s)
        with self._lock:
            heard = query.embed_waveform(decoded.waveform, resolution, is_stored, [SIMILARITY_RESOLUTION])
        return EmbeddedUpload(decoded.duration_s, heard)


def _decode_forever(connection: Connection) -> None:
    """Decode what comes until the other side is gone."""
    while True:
        try:
            data, max_duration_s = connection.recv()
        except EOFError:
            return
        answer: DecodedAudio | Exception
        try:
            answer = decode_audio(data, max_duration_s)
        except TrackError as error:
            answer = error
        except MemoryError:
            answer = TrackError(Stage.DECODE, Reason.OUT_OF_MEMORY, "no memory left to decode this file in")
        except Exception as error:  # a decoder's own bug
            answer = TrackError(Stage.DECODE, Reason.UNREADABLE, f"{type(error).__name__}: {error}")
        connection.send(answer)
