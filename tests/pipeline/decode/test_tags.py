"""Tags against what was written, by FFmpeg and by hand, in every container and encoding that tags come in."""

from pathlib import Path

import pytest

from pipeline.decode.tags import MAX_TAG_CHARACTERS, Tags, choose_tags, read_tags
from tests.corpus import encode_clip, load_music
from tests.encoders import make_id3v1, make_id3v2, strip_id3v2

WRITTEN = {
    "title": "Café Ω",
    "artist": "Björk",
    "album": "Ägäis",
    "genre": "Jazz",
    "track": "3/12",
    "date": "1997-09-22",
}
READ = Tags("Café Ω", "Björk", "Ägäis", "Jazz", 3, 1997)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tags") / "clip.mp3"
    encode_clip(path, load_music(seconds=1.0, sample_rate=24_000), 24_000)
    return path


@pytest.mark.parametrize("ending", ["mp3", "flac", "ogg", "opus", "m4a", "wma", "wav"])
def test_tags_come_back_from_every_container(tmp_path: Path, ending: str) -> None:
    tagged = tmp_path / f"tagged.{ending}"
    encode_clip(tagged, load_music(seconds=1.0, sample_rate=24_000), 24_000, tags=WRITTEN)
    assert read_tags(tagged.read_bytes()) == READ


@pytest.mark.parametrize(("encoding", "codec"), [(0, "latin-1"), (1, "utf-16")])
def test_id3v2_in_the_encoding_it_names(clip: Path, encoding: int, codec: str) -> None:
    frames = {"TIT2": "Café", "TPE1": "Björk", "TALB": "Ägäis", "TCON": "Jazz", "TRCK": "03", "TYER": "1997"}
    data = make_id3v2(encoding, frames, codec) + strip_id3v2(clip.read_bytes())
    assert read_tags(data) == Tags("Café", "Björk", "Ägäis", "Jazz", 3, 1997)


@pytest.mark.parametrize("codec", ["latin-1", "cp1252", "utf-8"])
def test_id3v1_which_names_no_encoding(clip: Path, codec: str) -> None:
    title = "Café — “x”" if codec != "latin-1" else "Café"
    tag = make_id3v1(title, "Björk", "Ä", codec)
    found = read_tags(strip_id3v2(clip.read_bytes()) + tag)
    assert found == Tags(title, "Björk", "Ä", "Jazz", 5, 1997)


def test_a_file_without_tags_and_no_file_say_nothing(clip: Path) -> None:
    assert read_tags(strip_id3v2(clip.read_bytes())) == Tags()
    assert read_tags(b"") == read_tags(b"no audio at all") == Tags()


def test_values_are_bounded_and_of_one_line() -> None:
    found = choose_tags({"TITLE": "a\0b\n c\t", "artist": "x" * 10_000, "genre": " \0", "album_artist": "unused"})
    assert found.title == "a b  c"
    assert found.artist is not None
    assert len(found.artist) == MAX_TAG_CHARACTERS
    assert found.genre is None
    assert choose_tags({"album_artist": "Band"}).artist == "Band"


@pytest.mark.parametrize(
    ("text", "number"),
    [("3", 3), ("03", 3), (" 7/12 ", 7), ("3 of 12", 3), ("0", None), ("", None), ("A2", None), ("-1", None)],
)
def test_a_track_number_is_whatever_starts_as_one(text: str, number: int | None) -> None:
    assert choose_tags({"TRACK": text}).track_number == number


@pytest.mark.parametrize(
    ("text", "year"),
    [
        ("1997", 1997),
        ("1997-09-22T10:00", 1997),
        ("22.9.1997", 1997),
        ("97", None),
        ("19970922", None),
        ("", None),
    ],
)
def test_a_year_is_read_from_a_date_in_any_order(text: str, year: int | None) -> None:
    assert choose_tags({"date": text}).year == year


KEPT = (
    "Two  blanks",
    "\u65e5\u672c\u3000\u97f3",
    "\u0645\u06cc\u200c\u062e",
    "\U0001f469\u200d\U0001f3a4",
    "e\u0301",
)


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_line_break_stays(text: str) -> None:
    assert choose_tags({"title": f" {text}\r\n"}).title == text
