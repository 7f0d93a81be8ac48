"""Decoding in a child process, for files that may take their process along.

A decoder is C code fed with foreign bytes. Where a first pass lost its worker, the files that have no outcome yet
are decoded here: what dies is the child, and the file that killed it is known.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache

from pipeline.decode.audio import DecodedAudio, decode_audio
from pipeline.errors import Reason, Stage, TrackError


def decode_audio_apart(data: bytes, max_duration_s: float = 7200.0) -> DecodedAudio:
    """Decode as ``audio.decode_audio`` does, in a child process that the next call finds again.

    Args:
        data: The file's bytes.
        max_duration_s: Longer tracks fail.

    Returns:
        What ``decode_audio`` gives.

    Raises:
        TrackError: As ``decode_audio``; or its decoder killed the process.
    """
    try:
        return _start_child().submit(decode_audio, data, max_duration_s).result()
    except BrokenProcessPool as error:
        _start_child.cache_clear()
        raise TrackError(
            Stage.DECODE,
            Reason.WORKER_CRASHED,
            f"the decoder killed its process on this file of {len(data)} bytes; look at it with ffprobe, or leave "
            "it out of the catalog",
        ) from error


@cache
def _start_child() -> ProcessPoolExecutor:
    # Spawned, not forked: a fork would copy the locks of the threads around it, and could wait on them for good.
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
