"""Decoders that do not come to an end, and those that kill their process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import isolation
from pipeline.decode.audio import decode_audio
from pipeline.decode.isolation import decode_audio_apart, decode_audio_in_time
from pipeline.errors import Reason, TrackError
from tests.corpus import encode_clip, load_music
from tests.processes import ROOT

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


def end_process(*_: object) -> None:
    os._exit(1)


def test_a_file_whose_decoder_dies_is_named_and_the_next_is_decoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "decode_audio_in_time", end_process)
    with pytest.raises(
        TrackError, match=f"of {len(data)} bytes, or did not come to an end within 600 s"
    ) as caught:
        decode_audio_apart(data)
    assert caught.value.reason is Reason.WORKER_CRASHED
    monkeypatch.undo()
    np.testing.assert_array_equal(decode_audio_apart(data).waveform, decode_audio(data).waveform)
