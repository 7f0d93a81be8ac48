"""Files as writers leave them that cannot come back to their header, against the same music on a disk."""

import struct

import numpy as np
import pytest

from pipeline.decode.audio import decode_audio
from pipeline.decode.piped import mend_piped
from tests.corpus import load_music
from tests.encoders import encode_bytes

RATE = 22_050


def load() -> np.ndarray:
    return load_music("mountain.mp3", 2.0, RATE)


def forget_length(data: bytes, container: str) -> bytes:
    """Write into a header what stands for no length."""
    forgotten = bytearray(data)
    if container == "CAF":
        struct.pack_into(">q", forgotten, data.index(b"data\0") + 4, 4)
    elif container == "W64":
        struct.pack_into("<Q", forgotten, 16, 2**64 - 1)
        struct.pack_into("<Q", forgotten, data.index(b"data\xf3\xac") + 16, 2**64 - 1)
    else:
        struct.pack_into("<I", forgotten, data.index(b"data") + 4, 0x7FFF0000)
    return bytes(forgotten)


@pytest.mark.parametrize("container", ["WAV", "W64", "CAF"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize(("num_before", "num_behind"), [(0, 0), (1, 1), (0, 1), (2, 2)])
def test_headers_that_stand_there_again_are_not_heard(
    container: str, subtype: str, num_before: int, num_behind: int
) -> None:
    whole = encode_bytes(load(), RATE, format=container, subtype=subtype)
    expected = decode_audio(whole)
    num_audio_bytes = load().size * {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}[subtype]
    start = len(whole) - num_audio_bytes
    header, audio = forget_length(whole, container)[:start], whole[start:]
    found = decode_audio(header * (1 + num_before) + audio + header * num_behind)
    np.testing.assert_array_equal(found.waveform, expected.waveform)
    assert found.peak == expected.peak


@pytest.mark.parametrize("chunk", [b"LIST\x04\0\0\0INFO", b"id3 \x03\0\0\0abc\0"])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_chunk_behind_audio_of_unknown_length_is_not_heard(chunk: bytes, subtype: str) -> None:
    whole = encode_bytes(load(), RATE, format="WAV", subtype=subtype)
    expected = decode_audio(whole)
    found = decode_audio(forget_length(whole, "WAV") + chunk)
    np.testing.assert_array_equal(found.waveform, expected.waveform)


@pytest.mark.parametrize("container", ["WAV", "W64", "CAF", "AIFF", "RF64", "FLAC"])
def test_a_file_from_a_disk_stays_as_it_is(container: str) -> None:
    data = encode_bytes(load(), RATE, format=container, subtype="PCM_16")
    assert mend_piped(data) is data
    assert mend_piped(b"") == b""
