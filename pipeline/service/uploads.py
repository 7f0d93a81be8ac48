"""Files that strangers send: decoded in a child process with a deadline, embedded one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from starlette.exceptions import HTTPException

from pipeline.decode.isolation import DecoderProcess
from pipeline.search.query import AudioQuery
from pipeline.search.recognise import EmbeddedFile
from pipeline.service.similarity import SIMILARITY_RESOLUTION

DECODE_TIMEOUT_S = 60.0
MAX_WAITING = 8  # uploads embedded or waiting at once; one more is told to come back


@dataclass(frozen=True)
class EmbeddedUpload:
    """What the model makes of a file.

    Args:
        duration_s: Its length.
        file: What the index is asked with, and the frames at ``SIMILARITY_RESOLUTION`` for a picture of the file.
    """

    duration_s: float
    file: EmbeddedFile

    @property
    def frames(self) -> np.ndarray:
        """Frames at ``SIMILARITY_RESOLUTION``, float32 of shape (num_frames, embed_dim)."""
        return self.file.stored[SIMILARITY_RESOLUTION]


class UploadEmbedder:
    """Turns uploads into vectors, one at a time.

    Args:
        audio_query: The catalog's model.
    """

    def __init__(self, audio_query: AudioQuery) -> None:
        self.audio_query = audio_query
        self.decoder = DecoderProcess(DECODE_TIMEOUT_S)
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
            file = query.embed_waveform(decoded.waveform, resolution, is_stored, [SIMILARITY_RESOLUTION])
        return EmbeddedUpload(decoded.duration_s, file)
