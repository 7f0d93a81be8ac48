"""Tags against what was written, by FFmpeg and by hand, in every container and encoding that tags come in."""

import struct
from pathlib import Path

import av
import pytest

from pipeline.decode.tags import MAX_TAG_CHARACTERS, Tags, choose_tags, read_tags
from tests.corpus import encode_clip, load_music

WRITTEN = {
    "title": "Café Ω",
    "artist": "Björk",
    "album": "Ägäis",
    "genre": "Jazz",
    "track": "3/12",
    "date": "1997",
}
READ = Tags("Café Ω", "Björk", "Ägäis", "Jazz", 3, 1997)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tags") / "clip.mp3"
    encode_clip(path, load_music(seconds=1.0, sample_rate=24_000), 24_000)
    return path


@pytest.mark.parametrize("ending", ["mp3", "flac", "ogg", "opus", "m4a", "wma", "wav", "mka"])
def test_tags_come_back_from_every_container(tmp_path: Path, ending: str) -> None:
    plain = tmp_path / f"plain.{'flac' if ending == 'mka' else ending}"
    tagged = tmp_path / f"tagged.{ending}"
    encode_clip(plain, load_music(seconds=1.0, sample_rate=24_000), 24_000)
    with av.open(plain) as source, av.open(tagged, "w") as target:
        target.metadata.update(WRITTEN)
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read_tags(tagged.read_bytes()) == READ


def id3v2(encoding: int, frames: dict[str, str], codec: str) -> bytes:
    """Return an ID3v2.3 tag as its specification (id3.org, 4.2) has it."""
    body = b""
    for name, text in frames.items():
        content = bytes([encoding]) + text.encode(codec)
        body += name.encode() + struct.pack(">I", len(content)) + b"\0\0" + content
    size = len(body)
    return b"ID3\x03\0\0" + bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0)) + body


@pytest.mark.parametrize(("encoding", "codec"), [(0, "latin-1"), (1, "utf-16")])
def test_id3v2_in_the_encoding_it_names(clip: Path, encoding: int, codec: str) -> None:
    frames = {"TIT2": "Café", "TPE1": "Björk", "TALB": "Ägäis", "TCON": "Jazz", "TRCK": "03", "TYER": "1997"}
    data = id3v2(encoding, frames, codec) + strip_tags(clip.read_bytes())
    assert read_tags(data) == Tags("Café", "Björk", "Ägäis", "Jazz", 3, 1997)


@pytest.mark.parametrize("codec", ["latin-1", "cp1252", "utf-8"])
def test_id3v1_which_names_no_encoding(clip: Path, codec: str) -> None:
    title = "Café — “x”" if codec != "latin-1" else "Café"
    fields = [title.encode(codec).ljust(30, b"\0"), "Björk".encode(codec).ljust(30, b"\0"), "Ä".encode(codec)]
    tag = b"TAG" + fields[0] + fields[1] + fields[2].ljust(30, b"\0") + b"1997" + b"\0" * 28 + b"\0\x05" + b"\x08"
    found = read_tags(strip_tags(clip.read_bytes()) + tag)
    assert (found.title, found.artist, found.album, found.year) == (title, "Björk", "Ä", 1997)
    assert (found.genre, found.track_number) == ("Jazz", 5)


def test_a_file_without_tags_and_no_file_say_nothing(clip: Path) -> None:
    assert read_tags(strip_tags(clip.read_bytes())) == Tags()
    assert read_tags(b"") == read_tags(b"no audio at all") == Tags()


def test_values_are_bounded_and_of_one_line() -> None:
    found = choose_tags({"TITLE": "a\0b\n c\t", "artist": "x" * 10_000, "genre": " \0", "album_artist": "unused"})
    assert found.title == "a b c"
    assert found.artist is not None
    assert len(found.artist) == MAX_TAG_CHARACTERS
    assert found.genre is None
    assert choose_tags({"album_artist": "Band"}).artist == "Band"


@pytest.mark.parametrize(
    ("track", "date", "expected"),
    [
        ("7", "2001-05-03", (7, 2001)),
        ("0", "0000", (None, None)),
        ("A1", "May 1969", (None, 1969)),
        ("12345", "19", (None, None)),
    ],
)
def test_numbers_are_read_where_they_are_numbers(track: str, date: str, expected: tuple[object, object]) -> None:
    found = choose_tags({"track": track, "date": date})
    assert (found.track_number, found.year) == expected


def strip_tags(data: bytes) -> bytes:
    """Return an mp3 without the ID3v2 tag at its start."""
    if data[:3] != b"ID3":
        return data
    size = sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    return data[10 + size :]
