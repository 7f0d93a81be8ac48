"""Tags whose size is damaged, and recordings behind others: no tag may take music along."""

import struct

import pytest

from pipeline.decode.audio import decode_audio
from pipeline.decode.wrapping import cut_tags, find_trailing_tags, skip_tags
from pipeline.errors import Reason, TrackError
from tests.corpus import load_music
from tests.encoders import encode_bytes, encode_in_container, make_id3_tag, make_id3v1, make_id3v2

RATE = 48_000
MUSIC_S = 3.0


def encode(container: str, codec: str, name: str = "mountain.mp3", num_channels: int = 2) -> bytes:
    return encode_in_container(load_music(name, MUSIC_S, RATE)[:, :num_channels], RATE, container, codec, 96_000)


CONTAINERS = {
    "mp3": ("mp3", "libmp3lame"),
    "adts": ("adts", "aac"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "libopus"),
    "wav": ("wav", "pcm_s16le"),
    "mp4": ("mov", "aac"),
    "wma": ("asf", "wmav2"),
    "tta": ("tta", "tta"),
}


def flip_size(tag: bytes, at: int, bit: int) -> bytes:
    """Return a tag with one bit of its size set that was not."""
    assert not tag[at] & 1 << bit
    return tag[:at] + bytes([tag[at] | 1 << bit]) + tag[at + 1 :]


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("padding_bytes", [0, 1_000])
def test_an_id3_tag_of_a_damaged_size_hides_no_music(name: str, version: int, padding_bytes: int) -> None:
    clean = cut_tags(encode(*CONTAINERS[name]))
    texts = {"TIT2": "Mountain", "TPE1": "someone", "TALB": "an album"}
    plain = make_id3v2(0, texts, "latin-1", version)
    size = len(plain) - 10 + padding_bytes
    tag = plain[:6] + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + plain[10:] + bytes(padding_bytes)
    assert skip_tags(tag + clean) == len(tag)
    expected = decode_audio(tag + clean).duration_s
    for at, bit in ((6, 0), (7, 1), (7, 3), (8, 5)):
        damaged = flip_size(tag, at, bit) + clean
        assert skip_tags(damaged) == len(tag)
    assert decode_audio(damaged).duration_s == pytest.approx(expected, abs=0.05)


def make_ape(num_items: int, has_header: bool) -> bytes:
    """Return an APEv2 tag (hydrogenaudio, "APEv2 specification") as it stands behind a recording."""
    items = b"".join(struct.pack("<II", 40, 0) + b"Key%d\0" % number + b"x" * 40 for number in range(num_items))
    flags = 0x80000000 if has_header else 0
    fields = struct.pack("<8sIII", b"APETAGEX", 2000, len(items) + 32, num_items)
    header = fields + struct.pack("<I8x", flags | 0x20000000) if has_header else b""
    return header + items + fields + struct.pack("<I8x", flags)


def make_lyrics(text: bytes, size: int | None = None) -> bytes:
    """Return a Lyrics3v2 tag (id3.org, "Lyrics3 v2.00"), which an ID3v1 tag follows."""
    body = b"LYRICSBEGIN" + b"LYR%05d" % len(text) + text
    return body + b"%06d" % (len(body) if size is None else size) + b"LYRICS200"


ID3V1 = make_id3v1("title", "artist", "album", "latin-1")


@pytest.mark.parametrize(
    ("tag", "damaged"),
    [
        (make_ape(3, True), flip_size(make_ape(3, True), -20 + 1, 6)),
        (make_ape(3, False), flip_size(make_ape(3, False), -20 + 1, 6)),
        (make_lyrics(b"la la"), make_lyrics(b"la la", 16_000)),
        (make_lyrics(b"la la") + ID3V1, make_lyrics(b"la la", 16_000) + ID3V1),
        (make_ape(0, False) + ID3V1, flip_size(make_ape(0, False), -20 + 1, 6) + ID3V1),
    ],
)
def test_a_tag_behind_of_a_damaged_size_hides_no_music(tag: bytes, damaged: bytes) -> None:
    music = load_music("mountain.mp3", MUSIC_S, RATE)
    clean = cut_tags(encode_bytes(music, RATE, format="MP3", subtype="MPEG_LAYER_III"))
    assert find_trailing_tags(clean + tag) == len(clean)
    assert find_trailing_tags(clean + damaged) >= len(clean)
    assert decode_audio(clean + damaged).duration_s == pytest.approx(MUSIC_S, abs=0.1)


def test_a_tag_before_of_a_damaged_size_hides_no_music() -> None:
    clean = cut_tags(encode("mp3", "libmp3lame"))
    footer = make_ape(3, True)[-32:]
    tag = make_ape(3, True)[:-32] + footer
    assert skip_tags(tag + clean) == len(tag)
    assert decode_audio(flip_size(tag, 13, 6) + clean).duration_s == pytest.approx(MUSIC_S, abs=0.1)


@pytest.mark.parametrize("between", [b"", make_id3_tag(70_000), bytes(3_000), b"rubbish" * 500])
@pytest.mark.parametrize(("codec", "num_channels"), [("pcm_s16le", 2), ("pcm_u8", 1)])
def test_another_recording_behind_a_voc_is_refused(between: bytes, codec: str, num_channels: int) -> None:
    one, other = (encode("voc", codec, name, num_channels) for name in ("mountain.mp3", "caribbean.ogg"))
    for behind in (other, encode("wav", "pcm_s16le"), encode("flac", "flac")):
        with pytest.raises(TrackError, match=r"another|damaged") as caught:
            decode_audio(one + between + behind)
        assert caught.value.reason is Reason.UNREADABLE
    assert decode_audio(one).duration_s == pytest.approx(MUSIC_S, abs=0.05)


@pytest.mark.parametrize("name", ["mp3", "adts", "flac", "wav"])
def test_sizes_of_frames_that_old_programs_wrote_plainly_end_no_tag_early(name: str) -> None:
    clean = cut_tags(encode(*CONTAINERS[name]))
    # Read in seven bits a byte, as ID3v2.4 has it, this frame of 129 bytes would end before the text's own mark.
    text = b"\x01" + ("A rather long name of a piece by someone, in sixty-three marks!").encode("utf-16")
    cover = b"\0image/jpeg\0\x03\0\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(1, 256)) * 40
    frames = [(b"TIT2", text), (b"APIC", cover)]
    body = b"".join(name + struct.pack(">I", len(content)) + b"\0\0" + content for name, content in frames)
    tag = b"ID3\x04\0\0" + bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0)) + body
    assert len(text) == 129
    assert skip_tags(tag + clean) == len(tag)
    assert decode_audio(tag + clean).duration_s == pytest.approx(decode_audio(clean).duration_s, abs=0.05)


def test_a_tag_that_says_that_it_has_no_bytes_is_no_endless_one() -> None:
    clean = cut_tags(encode("mp3", "libmp3lame"))
    empty = bytearray(make_ape(0, False))
    empty[12] = 0
    for tag in (bytes(empty), bytes(empty) + make_id3v1("Mountain song", "someone", "an album", "latin-1")):
        assert decode_audio(clean + tag).duration_s == pytest.approx(MUSIC_S, abs=0.1)
