"""Decoders that do not come to an end, and those that kill their process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import isolation
from pipeline.decode.audio import decode_audio
from pipeline.decode.isolation import DecoderProcess, decode_audio_apart, decode_audio_in_time
from pipeline.errors import Reason, TrackError
from tests.corpus import MUSIC, encode_clip, load_music
from tests.processes import ROOT

CLIP = (MUSIC / "crossroads.wav").read_bytes()

HANG = """
import time
from pipeline.decode import isolation
isolation.DECODE_TIMEOUT_S = 0.5
isolation.decode_audio = lambda data, max_duration_s: {hang}
isolation.decode_audio_in_time(b"", 1.0)
"""


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    encode_clip(tmp_path / "clip.wav", load_music(seconds=1.0, sample_rate=24_000), 24_000)
    return (tmp_path / "clip.wav").read_bytes()


# The second never lets go of the interpreter, as a decoder may not.
@pytest.mark.parametrize("hang", ["time.sleep(60)", "sum(range(10**12))"])
def test_a_decoder_that_does_not_come_to_an_end_ends_its_process(hang: str) -> None:
    command = [sys.executable, "-c", HANG.format(hang=hang)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout")


def test_one_that_does_is_left_alone(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "DECODE_TIMEOUT_S", 0.5)
    found = decode_audio_in_time(data)
    np.testing.assert_array_equal(found.waveform, decode_audio(data).waveform)
    time.sleep(0.6)  # were it not called off, this process would be gone now
    with pytest.raises(TrackError, match="max-duration"):
        decode_audio_in_time(data, max_duration_s=0.5)
    time.sleep(0.6)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    decoder = DecoderProcess()
    decoder.start()
    yield decoder
    decoder.stop()


def pid_of(decoder: DecoderProcess) -> int:
    assert decoder._process is not None
    assert decoder._process.pid is not None
    return decoder._process.pid


def signal_soon(pid: int, number: signal.Signals) -> None:
    threading.Timer(0.3, os.kill, (pid, number)).start()


def test_what_the_child_decodes_is_what_the_catalog_decodes(decoder: DecoderProcess) -> None:
    expected = decode_audio(CLIP)
    found = decoder.decode(CLIP, 60.0)
    np.testing.assert_array_equal(found.waveform, expected.waveform)
    assert (found.codec, found.duration_s) == (expected.codec, expected.duration_s)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", Reason.EMPTY_FILE), (b"<html></html>", Reason.UNREADABLE), (os.urandom(50_000), Reason.UNREADABLE)],
)
def test_a_bad_file_says_why_and_costs_no_child(decoder: DecoderProcess, data: bytes, reason: Reason) -> None:
    before = pid_of(decoder)
    with pytest.raises(TrackError) as found:
        decoder.decode(data, 60.0)
    assert found.value.reason is reason
    assert pid_of(decoder) == before


def test_a_long_file_is_refused(decoder: DecoderProcess) -> None:
    with pytest.raises(TrackError) as found:
        decoder.decode(CLIP, 1.0)
    assert found.value.reason is Reason.TOO_LONG


def test_a_file_that_kills_its_child_is_told_so_and_the_next_one_gets_another(decoder: DecoderProcess) -> None:
    killed = pid_of(decoder)
    os.kill(killed, signal.SIGSTOP)  # so that it is at work when it dies
    signal_soon(killed, signal.SIGKILL)
    with pytest.raises(TrackError) as found:
        decoder.decode(CLIP, 60.0)
    assert found.value.reason is Reason.WORKER_CRASHED
    assert decoder.decode(CLIP, 60.0).codec == "pcm_s16"
    assert pid_of(decoder) != killed


def test_a_file_that_never_ends_is_given_up(decoder: DecoderProcess) -> None:
    hung = pid_of(decoder)
    decoder.timeout_s, before = 0.5, decoder.timeout_s
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(TrackError, match="did not come to an end"):
        decoder.decode(CLIP, 60.0)
    decoder.timeout_s = before
    assert decoder.decode(CLIP, 60.0).codec == "pcm_s16"
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_one_bad_file_costs_the_others_nothing(decoder: DecoderProcess) -> None:
    def try_one(number: int) -> str:
        try:
            return decoder.decode(CLIP if number % 2 else b"no music", 60.0).codec
        except TrackError as error:
            return error.reason.value

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(try_one, range(16)))
    assert found == ["unreadable", "pcm_s16"] * 8


def test_a_child_that_is_stopped_is_gone() -> None:
    decoder = DecoderProcess()
    decoder.start()
    pid = pid_of(decoder)
    decoder.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_tracks_are_decoded_in_one_child_that_is_found_again(data: bytes) -> None:
    np.testing.assert_array_equal(decode_audio_apart(data).waveform, decode_audio(data).waveform)
    child = isolation._keep_child()
    before = pid_of(child)
    with pytest.raises(TrackError, match="max-duration"):
        decode_audio_apart(data, 0.5)
    assert pid_of(isolation._keep_child()) == before
    child.stop()
