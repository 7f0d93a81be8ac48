import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode.stated_length import asf_duration_s, compare_bytes, mp3_duration_s, wav_duration_s
from tests.corpus import MUSIC
from tests.encoders import encode_bytes, encode_mp3_without_length, make_id3_tag

TONE = np.sin(np.arange(30_000) / 10)
SOUNDFILE_CONTAINERS = ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"]


@pytest.mark.parametrize(("name", "seconds"), [("caves.mp3", 30), ("hunting.mp3", 18), ("mountain.mp3", 41)])
def test_mp3_states_its_frames_with_the_encoders_padding(name: str, seconds: float) -> None:
    stated_s = mp3_duration_s((MUSIC / name).read_bytes())
    assert stated_s is not None
    assert 0 < stated_s - seconds < 0.1


@pytest.mark.parametrize("num_tags", [0, 1, 2])
def test_mp3_length_is_found_behind_large_tags(num_tags: int) -> None:
    data = (MUSIC / "caves.mp3").read_bytes()
    assert mp3_duration_s(make_id3_tag(300_000) * num_tags + data) == mp3_duration_s(data)


def test_mp3_length_is_found_in_a_vbri_frame() -> None:
    header = bytes([0xFF, 0xF3, 0x54, 0xC4])  # MPEG-2 layer III, 24 kHz
    vbri = b"VBRI" + struct.pack(">HHHII", 1, 0, 75, 123_456, 500)
    assert mp3_duration_s(header + bytes(32) + vbri + bytes(300)) == 500 * 576 / 24_000


def test_mp3_without_an_info_frame_states_nothing() -> None:
    assert mp3_duration_s(encode_mp3_without_length(TONE[:, None], 44_100, 64_000)) is None
    assert mp3_duration_s((MUSIC / "desert.flac").read_bytes()) is None


def test_wma_states_its_duration_even_when_cut() -> None:
    data = (MUSIC / "laboratory.wma").read_bytes()
    assert asf_duration_s(data) == pytest.approx(14.0, abs=0.05)
    assert asf_duration_s(data[: len(data) // 3]) == asf_duration_s(data)
    assert asf_duration_s((MUSIC / "caves.mp3").read_bytes()) is None


def test_an_asf_broadcast_states_nothing() -> None:
    data = bytearray((MUSIC / "laboratory.wma").read_bytes())
    at = data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    data[at + 88] |= 1
    assert asf_duration_s(bytes(data)) is None


@pytest.mark.parametrize(
    ("encoding", "bytes_per_s", "expected_s"),
    [(0x566F, 0, 3.0), (0xFF, 10_000, 3.0), (0x55, 40_000, 1.25), (1, 10_000, None)],
    ids=["vorbis of unknown rate", "aac", "a fact that counts bytes", "pcm"],
)
def test_a_compressed_wav_states_its_duration(encoding: int, bytes_per_s: int, expected_s: float | None) -> None:
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, encoding, 2, 22_050, bytes_per_s, 1, 0)
    chunks = layout + struct.pack("<4sII", b"fact", 4, 3 * 22_050) + struct.pack("<4sI", b"data", 50_000)
    data = struct.pack("<4sI4s", b"RIFF", 4 + len(chunks) + 50_000, b"WAVE") + chunks + bytes(50_000)
    assert wav_duration_s(data) == expected_s
    assert wav_duration_s(data.replace(b"fact", b"junk")) is None
    assert wav_duration_s(data.replace(b"fact", b"junk")[:-1] + b"\xf0") is None


@pytest.mark.parametrize("container", SOUNDFILE_CONTAINERS)
@pytest.mark.parametrize("share", [1.0, 0.9, 0.5])
def test_share_of_the_stated_bytes(container: str, share: float) -> None:
    data = encode_bytes(TONE, 44_100, format=container, subtype="PCM_16")
    num_audio_bytes = 2 * TONE.size
    cut = data[: round(len(data) - (1 - share) * num_audio_bytes)]
    assert compare_bytes(cut) == pytest.approx(share, abs=1e-3)


def test_chunks_before_the_audio_are_stepped_over() -> None:
    data = encode_bytes(TONE, 44_100, format="WAV", subtype="PCM_16")
    extra = b"LIST" + struct.pack("<I", 5) + b"data!" + b"\0"  # an odd size, padded
    assert compare_bytes(data[:36] + extra + data[36 : 36 + 8 + TONE.size]) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_sizes_that_pipes_leave_behind_state_nothing(size: int) -> None:
    data = bytearray(encode_bytes(TONE, 44_100, format="WAV", subtype="PCM_16"))
    struct.pack_into("<I", data, 40, size)
    assert compare_bytes(bytes(data)) == 1.0


@pytest.mark.parametrize("name", ["caves.mp3", "desert.flac", "palace.m4a", "laboratory.wma"])
def test_other_formats_state_nothing_in_bytes(name: str) -> None:
    assert compare_bytes((MUSIC / name).read_bytes()[:50_000]) == 1.0


@settings(deadline=None)
@given(
    magic=st.sampled_from(
        [b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff", b"riff", b".snd", b"ID3\x03", b"\xff\xfb"]
    ),
    rest=st.binary(max_size=400),
)
def test_rubbish_is_survived(magic: bytes, rest: bytes) -> None:
    assert 0 <= compare_bytes(magic + rest) <= 1
    assert (mp3_duration_s(magic + rest) or 1) > 0
    assert asf_duration_s(magic + rest) is None


def test_soundfile_still_hides_that_a_wav_was_cut() -> None:
    # The reason why compare_bytes exists: if this fails one day, it may go.
    data = encode_bytes(TONE, 44_100, format="WAV", subtype="PCM_16")
    assert soundfile.info(io.BytesIO(data[: len(data) // 2])).frames == pytest.approx(15_000, abs=50)
