"""Decoding where a file may take its process along, or keep it for ever.

A decoder is C code fed with foreign bytes. One that does not come to an end takes its worker with it. Where a
first pass lost its worker, the files that have no outcome yet are decoded in a child process: what dies is the
child, and the file that killed it is known. Files that strangers send go there at once.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import threading
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from pipeline.decode.audio import DecodedAudio, decode_audio
from pipeline.errors import Reason, Stage, TrackError

# A day of the slowest codec, opus, takes less on one core; and four tries of a file have to end within the hour
# after which a run takes its cluster for dead.
DECODE_TIMEOUT_S = 600.0


def decode_audio_in_time(data: bytes, max_duration_s: float = 7200.0) -> DecodedAudio:
    """Decode as ``audio.decode_audio`` does; a decoder that does not come to an end ends this process.

    Args:
        data: The file's bytes.
        max_duration_s: Longer tracks fail.

    Returns:
        What ``decode_audio`` gives.

    Raises:
        TrackError: As ``decode_audio``.
    """
    faulthandler.dump_traceback_later(DECODE_TIMEOUT_S, exit=True)
    try:
        return decode_audio(data, max_duration_s)
    finally:
        faulthandler.cancel_dump_traceback_later()


def decode_audio_apart(data: bytes, max_duration_s: float = 7200.0) -> DecodedAudio:
    """Decode as ``audio.decode_audio`` does, in a child process that the next call finds again.

    Args:
        data: The file's bytes.
        max_duration_s: Longer tracks fail.

    Returns:
        What ``decode_audio`` gives.

    Raises:
        TrackError: As ``decode_audio``; or its decoder killed the process, or did not come to an end.
    """
    return _keep_child().decode(data, max_duration_s)


class DecoderProcess:
    """A child process that decodes one file at a time: what a file kills, or keeps busy for ever, is the child.

    Threads may share it, and wait for each other: one file's crash costs no other.

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
            # Killed from beside: to send, too, may wait for ever for a child that no longer reads.
            is_late = threading.Event()
            deadline = threading.Timer(self.timeout_s, self._give_up, [is_late])
            try:
                connection = self._connect()
                deadline.start()
                connection.send((data, max_duration_s))
                answer = connection.recv()
            except (EOFError, OSError) as error:
                self._stop()
                outcome = f"the decoder died of this file of {len(data)} bytes"
                if is_late.is_set():
                    outcome = f"expected to decode it within {self.timeout_s:g} s, it did not come to an end"
                message = f"{outcome}; look at it with ffprobe, or leave it out of the catalog"
                raise TrackError(Stage.DECODE, Reason.WORKER_CRASHED, message) from error
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
            self._connection.recv()  # its imports take seconds, which are not the file's
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


@cache
def _keep_child() -> DecoderProcess:
    return DecoderProcess()


def _decode_forever(connection: Connection) -> None:
    """Decode what comes until the other side is gone."""
    connection.send(None)
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
