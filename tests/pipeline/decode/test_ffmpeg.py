import io
import struct
from collections.abc import Callable

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline.decode import ffmpeg, libsndfile
from pipeline.decode.ffmpeg import Declined, decode_with_ffmpeg
from pipeline.decode.libsndfile import decode_with_soundfile
from pipeline.decode.mixdown import Mixdown
from pipeline.decode.resample import Resampler
from pipeline.errors import Reason, TrackError
from tests.corpus import MUSIC, load_music
from tests.encoders import (
    damage,
    encode_bytes,
    encode_in_container,
    encode_mp3_without_length,
    make_id3_tag,
)
from tests.fuzz.judge import decode_by_library

RATE = 22_050
ASKED_FIRST = Declined("not asked")


@pytest.fixture(scope="module")
def music() -> NDArray[np.float32]:
    return load_music(seconds=6.0, sample_rate=RATE)


def decode(data: bytes, max_duration_s: float = 60.0) -> Mixdown:
    try:
        return decode_with_ffmpeg(data, max_duration_s)
    except Declined as declined:
        return decode_with_soundfile(data, max_duration_s, declined)


def catch(action: Callable[[], object]) -> TrackError:
    with pytest.raises(TrackError) as caught:
        action()
    return caught.value


def resample(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    resampler = Resampler(rate)
    resampler.add(waveform)
    return resampler.finish()


@pytest.mark.parametrize("name", ["caves.mp3", "mountain.mp3"])
def test_an_mp3_has_the_samples_that_libsndfile_reads(name: str) -> None:
    data = (MUSIC / name).read_bytes()
    whole, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mixdown = decode_with_ffmpeg(data, 60)
    np.testing.assert_allclose(mixdown.waveform, resample(whole.mean(axis=1), rate), atol=1e-5)
    assert (mixdown.codec, mixdown.num_channels, mixdown.sample_rate_hz) == ("mp3", whole.shape[1], rate)


@pytest.mark.parametrize("name", ["caribbean.ogg", "crossroads.wav", "desert.flac", "icy-land.opus"])
def test_blocks_join_to_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libsndfile, "BLOCK_VALUES", 30_011)
    data = (MUSIC / name).read_bytes()
    whole, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mixdown = decode_with_soundfile(data, 60, ASKED_FIRST)
    np.testing.assert_allclose(mixdown.waveform, resample(whole.mean(axis=1), rate), atol=1e-6)
    assert mixdown.sample_rate_hz == rate
    assert mixdown.peak == np.abs(whole).max()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_a_wav_from_a_pipe_has_the_samples_of_one_from_a_file(
    music: NDArray[np.float32], subtype: str, num_channels: int
) -> None:
    data = encode_bytes(music[:, :num_channels], RATE, format="WAV", subtype=subtype)
    at = data.index(b"data") + 4
    piped = data[:at] + bytes(4) + data[at + 4 :]
    np.testing.assert_array_equal(decode(piped).waveform, decode(data).waveform)
    assert decode(piped).codec == decode(data).codec


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        ("mp4", "aac", "aac"),
        ("adts", "aac", "aac"),
        ("asf", "wmav2", "wmav2"),
        ("mp4", "alac", "alac"),
        ("matroska", "aac", "aac"),
        ("ogg", "flac", "flac"),
        ("wv", "wavpack", "wavpack"),
        ("mp2", "mp2", "mp2"),
    ],
)
def test_what_only_ffmpeg_reads(music: NDArray[np.float32], container: str, codec: str, name: str) -> None:
    data = encode_in_container(music, RATE, container, codec, bit_rate=128_000)
    mixdown = decode(data)
    assert (mixdown.codec, mixdown.sample_rate_hz, mixdown.num_channels) == (name, RATE, 2)
    assert mixdown.duration_s == pytest.approx(6.0, abs=0.12)


def test_a_bit_rate_that_varies_cuts_no_mp3_short(music: NDArray[np.float32]) -> None:
    # libsndfile would take the first frame's 160 kbit/s for all and stop after a third of the music.
    data = b"".join(encode_mp3_without_length(music, RATE, bit_rate) for bit_rate in (160_000, 32_000, 32_000))
    assert soundfile.info(io.BytesIO(data)).duration < 10
    assert decode(data).duration_s == pytest.approx(18.0, abs=0.3)


def test_a_bit_rate_that_varies_is_no_truncation(music: NDArray[np.float32]) -> None:
    data = b"".join(encode_mp3_without_length(music, RATE, bit_rate) for bit_rate in (32_000, 160_000, 160_000))
    assert soundfile.info(io.BytesIO(data)).duration > 30
    assert decode(data, max_duration_s=20).duration_s == pytest.approx(18.0, abs=0.3)


def test_flac_without_a_length_is_read_to_its_end(music: NDArray[np.float32]) -> None:
    data = bytearray(encode_bytes(music, RATE, format="FLAC"))
    expected = decode(bytes(data)).waveform
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples
    data[22:26] = bytes(4)
    np.testing.assert_array_equal(decode(bytes(data)).waveform, expected)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_read_to_its_end(subtype: str) -> None:
    data = encode_bytes(load_music(seconds=2.0, sample_rate=48_000), 48_000, format="OGG", subtype=subtype)
    assert decode(data + data).duration_s == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize("ending", ["mp3", "flac"])
def test_tags_before_the_audio_are_stepped_over(music: NDArray[np.float32], ending: str) -> None:
    data = encode_bytes(music, RATE, format=ending.upper())
    tagged = decode(make_id3_tag(200_000) + data)
    np.testing.assert_allclose(tagged.waveform, decode(data).waveform, atol=1e-5)


@pytest.mark.parametrize(
    "rubbish",
    [b"\0" * 3_000, b"\x8f\x11" * 15_000, np.random.default_rng(5).bytes(60_000)],
    ids=["zeros", "pattern", "noise"],
)
def test_rubbish_around_an_mp3_is_no_loss(music: NDArray[np.float32], rubbish: bytes) -> None:
    for data in (encode_bytes(music, RATE, format="MP3"), encode_mp3_without_length(music, RATE, 64_000)):
        assert decode(rubbish + data + rubbish).duration_s == pytest.approx(6.05, abs=0.1)


def test_zeros_around_an_mp3_are_missing_music_unless_its_header_says_that_nothing_is_missing(
    music: NDArray[np.float32],
) -> None:
    zeros = bytes(30_000)
    stated, unstated = encode_bytes(music, RATE, format="MP3"), encode_mp3_without_length(music, RATE, 64_000)
    for data in (zeros + stated, stated + zeros):
        assert decode(data).duration_s == pytest.approx(6.05, abs=0.1)
    assert catch(lambda: decode(zeros + unstated)).reason is Reason.UNREADABLE
    assert catch(lambda: decode(unstated + zeros)).reason is Reason.UNREADABLE


def test_damaged_packets_before_the_first_good_one_are_no_loss(music: NDArray[np.float32]) -> None:
    data = encode_in_container(music, RATE, "adts", "aac")
    assert decode(np.random.default_rng(6).bytes(30_000) + data).duration_s == pytest.approx(6.0, abs=0.15)


@pytest.mark.parametrize(("rate", "num_channels"), [(RATE, 1), (24_000, 2)])
def test_streams_that_change_midway_are_refused(music: NDArray[np.float32], rate: int, num_channels: int) -> None:
    other = encode_mp3_without_length(music[:, :num_channels], rate, 64_000)
    error = catch(lambda: decode(encode_mp3_without_length(music, RATE, 64_000) + other))
    assert error.reason is Reason.UNREADABLE
    assert "change midway" in error.message


def test_mp3_in_a_wav(music: NDArray[np.float32]) -> None:
    for mp3 in (encode_bytes(music, RATE, format="MP3"), encode_mp3_without_length(music, RATE, 64_000)):
        fmt = struct.pack("<HHIIHHHHIHHH", 0x55, 2, RATE, 8_000, 1, 0, 12, 1, 2, 208, 1, 1393)
        chunks = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(mp3)) + mp3
        data = b"RIFF" + struct.pack("<I", len(chunks)) + chunks
        assert decode(data).codec == "mp3"
        assert decode(data).duration_s == pytest.approx(6.05, abs=0.1)
        with pytest.raises(TrackError, match="cut short"):
            decode(data[: len(data) // 2])


@pytest.mark.parametrize("container", ["matroska", "mov"])
def test_a_video_beside_the_music_is_ignored(music: NDArray[np.float32], container: str) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options={"movflags": "frag_keyframe+empty_moov"}) as file:
        video, audio = file.add_stream("mjpeg", rate=1), file.add_stream("aac", rate=RATE, layout="stereo")
        assert isinstance(video, av.VideoStream)
        assert isinstance(audio, av.AudioStream)
        video.width = video.height = 64
        video.pix_fmt = "yuvj420p"
        for _ in range(20):  # much longer than the music
            file.mux(video.encode(av.VideoFrame(64, 64, "yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(music.T), format="fltp", layout="stereo")
        frame.sample_rate = RATE
        for packets in (audio.encode(frame), audio.encode(None), video.encode(None)):
            file.mux(packets)
    assert decode(buffer.getvalue()).duration_s == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("name", ["caves.mp3", "desert.flac", "palace.m4a", "laboratory.wma", "caribbean.ogg"])
def test_small_damage_is_tolerated_and_large_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "BLOCK_VALUES", 4096)
    data = (MUSIC / name).read_bytes()
    whole_s = decode(data).duration_s
    assert decode(damage(data, 0.5, 300)).duration_s == pytest.approx(whole_s, abs=1.0)
    assert catch(lambda: decode(damage(data, 0.4, len(data) // 4))).reason is Reason.TRUNCATED


def test_broken_frames_are_played_as_ffmpeg_plays_them(music: NDArray[np.float32]) -> None:
    """Where parts of a flac file join, its parser may give a broken frame and the next as one packet."""
    data = encode_bytes(music, RATE, format="FLAC")
    random = np.random.default_rng(1)
    for start in random.integers(10_000, len(data) // 2, 12):
        repeated = data[: start + int(random.integers(5_000, 50_000))] + data[start:]
        try:
            found = decode(repeated)
        except TrackError:
            continue
        assert found.waveform.size == pytest.approx(decode_by_library(repeated).size, abs=0.01 * RATE)


@pytest.mark.parametrize(("position", "number"), [(26, 8), (26, 17), (26, 24), (26, 32), (20, 1), (20, 4)])
def test_an_aiff_whose_header_contradicts_itself_is_refused(
    music: NDArray[np.float32], position: int, number: int
) -> None:
    """Of other bits or channels FFmpeg plays noise, longer or shorter than the number of frames comes to."""
    data = bytearray(encode_bytes(music, RATE, format="AIFF", subtype="PCM_16"))
    assert data[12:16] == b"COMM"
    decode(bytes(data))
    struct.pack_into(">H", data, position, number)
    assert catch(lambda: decode(bytes(data))).reason in (Reason.TRUNCATED, Reason.UNREADABLE)


@pytest.mark.parametrize(("container", "offset"), [("WAV", 22), ("W64", 38)])
@pytest.mark.parametrize("sample_bits", [8, 24, 32])
def test_a_wav_of_other_bits_than_its_frames_have_is_refused(
    music: NDArray[np.float32], container: str, offset: int, sample_bits: int
) -> None:
    data = bytearray(encode_bytes(music, RATE, format=container, subtype="PCM_16"))
    decode(bytes(data))
    struct.pack_into("<H", data, data.index(b"fmt ") + offset, sample_bits)
    assert catch(lambda: decode(bytes(data))).reason in (Reason.TRUNCATED, Reason.UNREADABLE)


def test_a_wav_is_read_in_whole_frames_whatever_their_size_is_said_to_be(music: NDArray[np.float32]) -> None:
    data = bytearray(encode_bytes(music, RATE, format="WAV", subtype="PCM_16"))
    position = data.index(b"fmt ") + 20
    struct.pack_into("<H", data, position, 255)
    np.testing.assert_allclose(decode(bytes(data)).waveform, decode_by_library(bytes(data)), atol=0.02)


def test_large_damage_shows_where_no_header_states_a_length(music: NDArray[np.float32]) -> None:
    data = encode_mp3_without_length(music, RATE, 64_000)
    assert decode(damage(data, 0.5, 300)).duration_s == pytest.approx(6.0, abs=0.3)
    error = catch(lambda: decode(damage(data, 0.4, len(data) // 3)))
    assert error.reason is Reason.UNREADABLE
    assert "s of the music are damaged" in error.message


def test_a_script_of_ffmpeg_opens_no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MUSIC)
    script = b"ffconcat version 1.0\nfile crossroads.wav\n"
    with av.open(io.BytesIO(script)) as container:
        assert container.streams.audio  # what it does unless told not to
    assert catch(lambda: decode(script)).reason is Reason.UNREADABLE


def test_a_codec_that_ffmpeg_does_not_know_is_named_as_the_reason(music: NDArray[np.float32]) -> None:
    data = encode_in_container(music, RATE, "mp4", "alac").replace(b"alac", b"zzzz")
    error = catch(lambda: decode(data))
    assert error.reason is Reason.UNREADABLE
    assert "no decoder for the audio in this QuickTime" in error.message


def test_tags_need_not_be_unicode(music: NDArray[np.float32]) -> None:
    data = encode_in_container(music, RATE, "wv", "wavpack")
    name = b"Bj\xf6rk"  # Latin-1
    item = struct.pack("<II", len(name), 0) + b"Artist\0" + name
    header = struct.pack("<IIII8x", 2000, len(item) + 32, 1, 0xA0000000)
    footer = struct.pack("<IIII8x", 2000, len(item) + 32, 1, 0x80000000)
    tagged = data + b"APETAGEX" + header + item + b"APETAGEX" + footer
    with pytest.raises(UnicodeDecodeError):
        av.open(io.BytesIO(tagged))
    assert decode(tagged).duration_s == pytest.approx(6.0, abs=0.01)


def test_the_mean_is_over_all_channels(music: NDArray[np.float32]) -> None:
    six = np.stack([music[:, 0] * weight for weight in (0.9, -0.2, 0.5, 0.1, -0.6, 0.3)], axis=1)
    data = encode_bytes(six, RATE, format="WAV", subtype="FLOAT")
    mixdown = decode(data)
    assert mixdown.num_channels == 6
    np.testing.assert_allclose(mixdown.waveform, resample(six.mean(axis=1), RATE), atol=1e-6)
