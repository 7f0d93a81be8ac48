"""Decoding where a file may take its process along, or keep it for ever.

A decoder is C code fed with foreign bytes. One that does not come to an end takes its worker with it. Where a
first pass lost its worker, the files that have no outcome yet are decoded in a child process: what dies is the
child, and the file that killed it is known.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache

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
    try:
        return _start_child().submit(decode_audio_in_time, data, max_duration_s).result()
    except BrokenProcessPool as error:
        _start_child.cache_clear()
        raise TrackError(
            Stage.DECODE,
            Reason.WORKER_CRASHED,
            f"the decoder killed its process on this file of {len(data)} bytes, or did not come to an end within "
            f"{DECODE_TIMEOUT_S:g} s; look at it with ffprobe, or leave it out of the catalog",
        ) from error


@cache
def _start_child() -> ProcessPoolExecutor:
    # Spawned, not forked: a fork would copy the locks of the threads around it, and could wait on them for good.
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
