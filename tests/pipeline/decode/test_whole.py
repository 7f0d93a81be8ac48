"""Files whose header, tags or clock say something else than their packets: heard whole, or said not to be."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decode.audio import decode_audio
from pipeline.errors import Reason, TrackError
from tests.corpus import load_music
from tests.encoders import encode_bytes, encode_in_container, encode_mp3_without_length, make_id3_tag

RATE = 22_050
FIRST_S, SECOND_S = 5.0, 3.0

Encode = Callable[[NDArray[np.float32], int], bytes]


def in_container(container: str, codec: str, **options: str) -> Encode:
    return lambda music, rate: encode_in_container(music, rate, container, codec, 96_000, **options)


def in_file(container: str, subtype: str) -> Encode:
    return lambda music, rate: encode_bytes(music, rate, format=container, subtype=subtype)


READ_ON: dict[str, Encode] = {
    "mp3": in_file("MP3", "MPEG_LAYER_III"),
    "flac": in_file("FLAC", "PCM_16"),
    "adts": in_container("adts", "aac"),
    "vorbis": in_file("OGG", "VORBIS"),
    "mka": in_container("matroska", "aac"),
    "au": in_file("AU", "PCM_16"),
}
READ_TO_THE_FIRST_END: dict[str, Encode] = {
    "wav": in_file("WAV", "PCM_16"),
    "aiff": in_file("AIFF", "PCM_24"),
    "w64": in_file("W64", "PCM_16"),
    "caf": in_file("CAF", "PCM_16"),
    "rf64": in_file("RF64", "PCM_16"),
    "mp4": in_container("mov", "aac"),
    "wma": in_container("asf", "wmav2"),
    "tta": in_container("tta", "tta"),
    "wv": in_container("wv", "wavpack"),
    "flv": in_container("flv", "libmp3lame"),
}


def load_two(rate: int = RATE, num_channels: int = 2) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    names = (("mountain.mp3", FIRST_S), ("caribbean.ogg", SECOND_S))
    one, other = (load_music(name, seconds, rate)[:, :num_channels] for name, seconds in names)
    return one, other


def refuse(data: bytes, *reasons: Reason) -> str:
    with pytest.raises(TrackError) as caught:
        decode_audio(data)
    assert caught.value.reason in reasons
    return caught.value.message


@pytest.mark.parametrize("name", READ_ON)
@pytest.mark.parametrize("num_channels", [1, 2])
def test_two_recordings_in_a_file_are_both_heard(name: str, num_channels: int) -> None:
    one, other = (READ_ON[name](music, RATE) for music in load_two(num_channels=num_channels))
    assert decode_audio(one + other).duration_s == pytest.approx(FIRST_S + SECOND_S, abs=0.2)
    assert decode_audio(one + one).duration_s == pytest.approx(2 * FIRST_S, abs=0.2)


@pytest.mark.parametrize("name", READ_TO_THE_FIRST_END)
def test_where_ffmpeg_leaves_the_second_out_the_file_is_refused(name: str) -> None:
    one, other = (READ_TO_THE_FIRST_END[name](music, RATE) for music in load_two())
    assert decode_audio(one).duration_s == pytest.approx(FIRST_S, abs=0.1)
    refuse(one + other, Reason.TRUNCATED, Reason.UNREADABLE)


@pytest.mark.parametrize("encode", [READ_ON["mp3"], in_container("mp3", "libmp3lame")])
def test_an_mp3_header_that_states_half_is_not_believed(encode: Encode) -> None:
    data = bytearray(encode(load_two()[0], RATE))
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    (num_frames,) = struct.unpack_from(">I", data, at)
    struct.pack_into(">I", data, at, num_frames // 2)
    assert decode_audio(bytes(data)).duration_s == pytest.approx(FIRST_S, abs=0.1)


@pytest.mark.parametrize(
    ("container", "layout", "at", "stated"),
    [("WAV", "<I", b"data", "2.5"), ("AIFF", ">I", b"SSND", "5.0")],  # another chunk of aiff counts frames
)
def test_a_chunk_that_states_half_is_refused_with_all_figures(
    container: str, layout: str, at: bytes, stated: str
) -> None:
    data = bytearray(encode_bytes(load_two()[0], RATE, format=container, subtype="PCM_16"))
    position = data.index(at) + 4
    (size,) = struct.unpack_from(layout, data, position)
    struct.pack_into(layout, data, position, size // 4 * 2)
    message = refuse(bytes(data), Reason.TRUNCATED)
    assert f"expected {stated} s by the header and 5.0 s by its packets, found 2.5 s" in message


def test_chunks_tags_and_zeros_behind_the_audio_are_no_music() -> None:
    clean = encode_bytes(load_two()[0], 8_000, format="WAV", subtype="PCM_16")
    expected = decode_audio(clean)
    cover = b"id3 " + struct.pack("<I", 300_001) + b"\x8f" * 300_001 + b"\0"
    for behind in (cover, cover + b"LIST\x04\0\0\0abcd", bytes(100_000), b"TAG" + bytes(125)):
        np.testing.assert_array_equal(decode_audio(clean + behind).waveform, expected.waveform)


def damage_mp3(data: bytes) -> list[bytes]:
    frames = data.split(b"\xff\xf3")  # each but the first is a frame without its first two bytes
    every_third = b"\xff\xf3".join(
        frame + (bytes(range(26)) if number % 3 == 2 else b"") for number, frame in enumerate(frames)
    )
    return [data.replace(b"\n", b"\r\n"), every_third]


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000])
def test_an_mp3_that_does_not_chain_is_refused_and_quietly(rate: int, capfd: pytest.CaptureFixture[str]) -> None:
    music = load_two(rate)[0]
    for data in (READ_ON["mp3"](music, rate), encode_mp3_without_length(music, rate, 64_000)):
        for damaged in damage_mp3(data):
            refuse(damaged, Reason.TRUNCATED, Reason.UNREADABLE)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["wav", "flac", "mka", "mp4", "wma", "vorbis", "adts"])
def test_what_was_sent_as_text_is_refused(name: str) -> None:
    data = (READ_ON | READ_TO_THE_FIRST_END)[name](load_two()[0], RATE)
    assert "sent as text" in refuse(data.replace(b"\n", b"\r\n"), Reason.UNREADABLE)


@pytest.mark.parametrize("start_s", [0.0, 3.0, 60.0, 4 * 3600.0])
@pytest.mark.parametrize(
    ("container", "codec"), [("webm", "libopus"), ("matroska", "flac"), ("ogg", "libopus"), ("ogg", "flac")]
)
def test_a_clock_that_starts_late_is_no_length(container: str, codec: str, start_s: float) -> None:
    music = load_two(48_000)[0]
    late = encode_in_container(music, 48_000, container, codec, output_ts_offset=f"{start_s:g}")
    assert decode_audio(late).duration_s == pytest.approx(FIRST_S, abs=0.05)
    if container != "ogg":
        refuse(late[: len(late) // 2], Reason.TRUNCATED)


def test_opus_cut_out_of_a_stream_starts_where_it_is_cut() -> None:
    music = load_two(48_000)[0]
    data = encode_in_container(music, 48_000, "ogg", "libopus", page_duration="200000")
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    part = decode_audio(b"".join(pages[:2] + pages[7:]))
    whole = decode_audio(data).waveform
    assert 3.5 < part.duration_s < 4.2
    lag = whole.size - part.waveform.size
    assert np.corrcoef(part.waveform[24_000:], whole[lag + 24_000 :])[0, 1] > 0.99


@pytest.mark.parametrize("mark", [b"RF64", b"BW64"])
def test_a_cut_wide_wav_is_truncated_and_one_from_a_pipe_is_read_to_its_end(mark: bytes) -> None:
    data = bytearray(encode_bytes(load_two()[0], RATE, format="RF64", subtype="PCM_16"))
    data[:4] = mark
    assert decode_audio(bytes(data)).duration_s == FIRST_S
    refuse(bytes(data[: len(data) // 2]), Reason.TRUNCATED)
    at = data.index(b"ds64") + 8
    data[at : at + 24] = bytes(24)
    assert decode_audio(bytes(data)).duration_s == FIRST_S


# sox rounds 0x7FFFF000 and 0x7F000000 down to whole frames, GStreamer writes 0x7FFF0000, others what is below.
@pytest.mark.parametrize(
    "size", [0, 0x7F000000, 0x7EFFFFF4, 0x7FFFEFFA, 0x7FFF0000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF]
)
@pytest.mark.parametrize("num_channels", [1, 6])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize(("container", "layout", "at"), [("WAV", "<I", b"data"), ("AIFF", ">I", b"SSND")])
def test_what_pipes_leave_for_a_length_states_none(
    container: str, layout: str, at: bytes, subtype: str, num_channels: int, size: int
) -> None:
    music = np.tile(load_two()[0][:, :1], (1, num_channels))[: 2 * RATE]
    data = bytearray(encode_bytes(music, RATE, format=container, subtype=subtype))
    struct.pack_into(layout, data, data.index(at) + 4, size)
    assert decode_audio(bytes(data)).duration_s == 2.0


def pipe_w64(data: bytes, size: int) -> bytes:
    """Return a w64 file as it leaves a program that writes it to a pipe, with a size that stands for none."""
    piped = bytearray(data)
    struct.pack_into("<Q", piped, data.index(b"data\xf3\xac") + 16, size)
    struct.pack_into("<Q", piped, 16, size)
    return bytes(piped)


@pytest.mark.parametrize("size", [2**63 - 1, 2**64 - 1])
def test_a_w64_from_a_pipe_is_read_to_its_end(size: int) -> None:
    data = encode_bytes(load_two()[0], RATE, format="W64", subtype="PCM_16")
    assert decode_audio(pipe_w64(data, size)).duration_s == FIRST_S


def append_id3_tag(num_bytes: int) -> bytes:
    """Return a tag that ends in a footer, as one behind the audio does (ID3v2.4.0, section 3.4)."""
    header = bytearray(make_id3_tag(num_bytes)[:10])
    header[3], header[5] = 4, 0x10
    return bytes(header) + bytes(num_bytes) + b"3DI" + bytes(header[3:])


TAGGED: dict[str, Encode] = {
    **READ_ON,
    **READ_TO_THE_FIRST_END,
    "webm": in_container("webm", "libopus"),
    "ac3": in_container("ac3", "ac3"),
}


@pytest.mark.parametrize("name", TAGGED)
def test_a_tag_of_any_size_before_and_behind_changes_nothing(name: str) -> None:
    clean = TAGGED[name](load_two(48_000)[0], 48_000)
    expected = decode_audio(clean).waveform
    mark = struct.pack("<8sIII", b"APETAGEX", 2000, 50_032, 1)
    items = np.random.default_rng(7).bytes(50_000)
    ape = mark + struct.pack("<I8x", 0xA0000000) + items + mark + struct.pack("<I8x", 0x80000000)
    for tagged in (
        make_id3_tag(2_000_000) + clean,
        make_id3_tag(3_000) + clean,
        make_id3_tag(90) + make_id3_tag(90_000) + clean,
        ape + clean,
        clean + ape + b"TAG" + bytes(125),
        clean + append_id3_tag(90_000),
    ):
        np.testing.assert_array_equal(decode_audio(tagged).waveform, expected)


@pytest.mark.parametrize(("rate", "num_channels"), [(RATE, 2), (16_000, 1), (48_000, 2)])
def test_aac_in_a_wav_that_frames_nothing_is_refused(rate: int, num_channels: int) -> None:
    music = load_two(rate, num_channels)[0]
    refuse(encode_in_container(music, rate, "wav", "aac"), Reason.TRUNCATED, Reason.UNREADABLE)
    w64 = encode_in_container(music, rate, "w64", "aac")
    refuse(w64, Reason.TRUNCATED, Reason.UNREADABLE)
    without_count = pipe_w64(w64, 2**63 - 1).replace(b"fact\xf3\xac", b"junk\xf3\xac")  # as FFmpeg leaves it
    refuse(without_count, Reason.TRUNCATED, Reason.UNREADABLE)


@pytest.mark.parametrize(("container", "codec"), [("adts", "aac"), ("ac3", "ac3"), ("mp2", "mp2"), ("mp3", "mp3")])
@pytest.mark.parametrize(("rate", "at"), [(32_000, 0.0), (48_000, 0.2), (32_000, 0.45), (48_000, 0.7)])
def test_a_bare_stream_with_a_zeroed_third_is_refused(container: str, codec: str, rate: int, at: float) -> None:
    options = {"write_xing": "0", "id3v2_version": "0"} if codec == "mp3" else {}
    encoder = "libmp3lame" if codec == "mp3" else codec
    data = encode_in_container(load_two(rate)[0], rate, container, encoder, 96_000, **options)
    start = int(at * len(data))
    stop = min(start + len(data) // 3, len(data))
    refuse(data[:start] + bytes(stop - start) + data[stop:], Reason.TRUNCATED, Reason.UNREADABLE)
    tag = make_id3_tag(len(data) // 3)  # as many zeros, which are no music
    assert decode_audio(data + tag + data).duration_s == pytest.approx(2 * FIRST_S, abs=0.3)


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("wv", "wavpack"), ("tta", "tta")])
def test_a_wrong_checksum_is_damage(container: str, codec: str) -> None:
    data = bytearray(encode_in_container(load_two()[0], RATE, container, codec))
    for position in range(len(data) // 4, len(data), 2_000):
        data[position] ^= 1
    refuse(bytes(data), Reason.TRUNCATED, Reason.UNREADABLE)


def test_a_page_of_ogg_that_is_lost_at_its_start_is_missed() -> None:
    data = bytearray(READ_ON["vorbis"](load_two()[0], RATE))
    pages = [position for position in range(len(data)) if data[position : position + 4] == b"OggS"]
    for position in pages[2 : len(pages) // 2]:
        data[position + 200] ^= 1
    refuse(bytes(data), Reason.TRUNCATED, Reason.UNREADABLE)


def test_a_second_au_of_another_rate_is_refused() -> None:
    one, other = load_two()
    first = READ_ON["au"](one, RATE)
    for second in (READ_ON["au"](other, 32_000), READ_ON["au"](other[:, :1], RATE)):
        assert "expected one recording" in refuse(first + second, Reason.UNREADABLE)


@pytest.mark.parametrize("codec", ["aac", "mp2", "libopus"])
def test_a_tag_between_two_transport_streams_hides_no_music(codec: str) -> None:
    one, other = (encode_in_container(music, 48_000, "mpegts", codec) for music in load_two(48_000))
    for between in (b"", make_id3_tag(3_000), bytes(5_000)):
        assert decode_audio(one + between + other).duration_s == pytest.approx(FIRST_S + SECOND_S, abs=0.2)
    refuse(one + make_id3_tag(200_000) + other, Reason.TRUNCATED, Reason.UNREADABLE)
