"""The corpus command on small packages of real music, built here."""

import csv
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.catalog.manifest import read_manifest
from tests.corpus import encode_clip, load_music
from training.corpus import MIN_HELD_OUT, REVIEW, check_split, count_tracks, fetch_corpus, format_list, read_tracks
from training.packages import require_version
from training.review import CorpusError, Paragraph, Review, read_review

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds and unpacks Debian packages")

GAME = Paragraph("game-music", "1.2-*", "usr/share/game", ("music/*",), "A. Author", "GPL-2+", "game.org")
PACKED = replace(GAME, folder="usr/share/game/data.pk3", files=("*.ogg",))
OTHER = Paragraph("other-data", "3:4-*", "usr/share/other", ("*.ogg",), "B. Author", "CC-BY-SA-3.0", "other.org")
REVIEWED = Review((GAME, PACKED, OTHER), frozenset({"other-data"}), {}, "reviewed")


def write_clip(path: Path, clip: str, seconds: float = 22.0, ending: str = "") -> None:
    """Write real music; ``ending`` names the codec of a file that is to have no ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.with_name(path.name + ending)
    encode_clip(target, load_music(clip, seconds), 44_100)
    target.rename(path)


def build_package(root: Path, cache: Path, name: str, version: str) -> None:
    """Make a package of a folder; its file is named as apt-get names it."""
    (root / f"usr/share/doc/{name}").mkdir(parents=True)
    (root / f"usr/share/doc/{name}/copyright").write_text(f"Files: *\nLicense: of {name}\n")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: M <m@m.org>\nDescription: music\n"
    )
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(root), str(file)], check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder into which both packages were downloaded, as apt-get does, but not yet unpacked."""
    game, other, cache = (
        tmp_path / "game/usr/share/game",
        tmp_path / "other/usr/share/other",
        tmp_path / "out/packages",
    )
    write_clip(game / "music/caribbean.flac", "caribbean.ogg")
    write_clip(game / "music/hub", "desert.flac", ending=".ogg")  # without an ending, as blobwars has them
    write_clip(game / "music/jingle.ogg", "caves-later.ogg", seconds=5.0)
    write_clip(game / "sounds/rain.ogg", "caves-later.ogg")  # no paragraph covers it
    write_clip(tmp_path / "packed.ogg", "crossroads.wav")
    with zipfile.ZipFile(game / "data.pk3", "w") as archive:
        archive.write(tmp_path / "packed.ogg", "cd/track1.ogg")
    build_package(tmp_path / "game", cache, "game-music", "1.2-3")
    write_clip(other / "again.ogg", "caribbean.ogg")  # the same recording in another codec
    write_clip(other / "new.ogg", "caves-later.ogg")
    build_package(tmp_path / "other", cache, "other-data", "3:4-1")
    return tmp_path / "out"


def test_the_music_of_packages_becomes_a_catalog(folder: Path) -> None:
    summary = fetch_corpus(folder, REVIEWED, min_held_out=1)
    tracks = {track["track_id"]: track for track in read_tracks(folder / "manifest.csv")}
    assert set(tracks) == {
        *("game-music/music/caribbean", "game-music/music/hub", "game-music/cd/track1", "other-data/new"),
    }
    assert (folder / tracks["game-music/music/hub"]["uri"]).suffix == ".ogg"
    new = tracks["other-data/new"]
    assert (new["licence"], new["author"], new["split"], new["version"]) == (
        *("CC-BY-SA-3.0", "B. Author", "held_out", "3:4-1"),
    )
    assert float(new["duration_s"]) == pytest.approx(22.0, abs=0.01)
    assert (folder / "audio/game-music/copyright").read_text() == "Files: *\nLicense: of game-music\n"
    assert summary["num_tracks"] == 4
    assert summary["num_held_out"] == summary["num_repeats_left_out"] == 1
    catalog = read_manifest(str(folder / "train.csv"))
    assert catalog["track_id"].to_pylist() == [name for name in tracks if name.startswith("game-music")]
    assert all(Path(uri).is_file() for uri in catalog["uri"].to_pylist())


@pytest.mark.slow
def test_a_second_run_does_nothing_and_a_lost_file_is_fetched_again(folder: Path) -> None:
    first = fetch_corpus(folder, REVIEWED, min_held_out=1)
    written = (folder / "manifest.csv").stat().st_mtime_ns
    assert fetch_corpus(folder, REVIEWED, min_held_out=1) == first
    assert (folder / "manifest.csv").stat().st_mtime_ns == written
    shutil.rmtree(folder / "audio/other-data")
    assert fetch_corpus(folder, REVIEWED, min_held_out=1) == first
    assert (folder / "audio/other-data/usr/share/other/new.ogg").is_file()


def test_another_version_than_the_reviewed_one_is_refused(folder: Path) -> None:
    changed = replace(REVIEWED, paragraphs=(replace(GAME, version="1.3-*"), PACKED, OTHER))
    with pytest.raises(CorpusError, match=r"reviewed in version 1\.3-\*, found 1\.2-3"):
        fetch_corpus(folder, changed, min_held_out=1)
    assert require_version(Path("other-data_3%3a4-1_all.deb"), [OTHER]) == "3:4-1"


def test_a_paragraph_that_covers_nothing_is_an_error_and_leaves_no_half_package(folder: Path) -> None:
    changed = replace(REVIEWED, paragraphs=(GAME, replace(GAME, files=("musik/*",)), OTHER))
    with pytest.raises(CorpusError, match="musik"):
        fetch_corpus(folder, changed, min_held_out=1)
    assert not list((folder / "audio").iterdir())


@pytest.mark.slow
def test_a_cut_or_lost_file_is_unpacked_again(folder: Path) -> None:
    first = fetch_corpus(folder, REVIEWED, min_held_out=1)
    music = folder / "audio/game-music/usr/share/game/music"
    whole = (music / "caribbean.flac").read_bytes()
    (music / "caribbean.flac").write_bytes(whole[: len(whole) // 2])
    (music / "hub.ogg").unlink()
    assert fetch_corpus(folder, REVIEWED, min_held_out=1) == first
    assert (music / "caribbean.flac").read_bytes() == whole
    assert (music / "hub.ogg").is_file()


@pytest.mark.slow
def test_a_run_that_was_cut_short_goes_on_and_leaves_nothing_half_done(folder: Path) -> None:
    later = folder / "packages/other-data_3%3a4-1_all.deb"
    hidden = later.rename(folder / "later")
    with pytest.raises(CorpusError, match="other-data"):  # no such package: apt knows none
        fetch_corpus(folder, REVIEWED, min_held_out=1)
    unpacked = (folder / "audio/game-music/contents.json").stat().st_mtime_ns
    for place in ("audio", "packages"):
        (folder / place / ".part-killed").mkdir()
    hidden.rename(later)
    assert fetch_corpus(folder, REVIEWED, min_held_out=1)["num_tracks"] == 4
    assert (folder / "audio/game-music/contents.json").stat().st_mtime_ns == unpacked
    assert not list(folder.glob("*/.part-*"))


def test_a_broken_file_of_a_package_is_named(tmp_path: Path) -> None:
    game = tmp_path / "game/usr/share/game"
    write_clip(game / "music/caribbean.flac", "caribbean.ogg")
    whole = (game / "music/caribbean.flac").read_bytes()
    (game / "music/caribbean.flac").write_bytes(whole[: len(whole) // 2])
    build_package(tmp_path / "game", tmp_path / "out/packages", "game-music", "1.2-3")
    with pytest.raises(CorpusError, match=r"caribbean\.flac"):
        fetch_corpus(tmp_path / "out", Review((GAME,), frozenset(), {}, "reviewed"), min_held_out=0)


def make_track(name: str, artist: str, split: str) -> dict[str, str]:
    return {
        "track_id": name,
        "artist": artist,
        "split": split,
        "package": split,
        "duration_s": "1800",
        "licence": "Y",
    }


def test_nobody_stands_on_both_sides_of_the_split() -> None:
    check_split([make_track("a", "Ann", "train"), make_track("b", "Bob", "held_out")], 1)
    with pytest.raises(CorpusError, match="ann"):
        check_split([make_track("a", "Ann", "train"), make_track("b", "ANN", "held_out")], 1)
    with pytest.raises(CorpusError, match="expected at least 2 tracks held out, found 1"):
        check_split([make_track("a", "Ann", "train"), make_track("b", "Bob", "held_out")], 2)
    with pytest.raises(CorpusError, match="one track_id"):
        check_split([make_track("a", "Ann", "held_out"), make_track("a", "Ann", "held_out")], 1)


def test_the_list_counts_hours_by_package() -> None:
    tracks = [make_track(name, name, "train") for name in "abc"] + [make_track("d", "d", "held_out")]
    assert count_tracks(tracks)["train_hours"] == 1.5
    assert format_list(tracks).splitlines()[2:] == [
        "| held_out | held_out | 1 | 0.50 | Y |",
        "| train | train | 3 | 1.50 | Y |",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("held_out = []", "aliases"),
        ("held_out = [", "Invalid"),
        ('held_out = ["x"]\naliases = {}\ntracks = []', "names x"),
        (
            'held_out = []\naliases = {}\n[[tracks]]\npackage = "ufoai-music"\nversion = "*"\nfolder = "f"\n'
            'files = ["*"]\nauthor = "a"\nlicence = "l"\nsource = "s"',
            "ufoai-music may not be trained on",
        ),
    ],
)
def test_a_review_that_cannot_be_followed_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_review(path)


def test_the_review_in_the_box_names_free_licences_alone_and_agrees_with_the_attribution_table() -> None:
    review = read_review(REVIEW)
    free = ("GPL", "CC-BY-3.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "Expat")
    assert all(paragraph.licence.startswith(free) for paragraph in review.paragraphs)
    with REVIEW.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        tracks = list(csv.DictReader(file))
    check_split(tracks, MIN_HELD_OUT)
    terms = {(paragraph.package, paragraph.author, paragraph.licence) for paragraph in review.paragraphs}
    assert {(track["package"], track["author"], track["licence"]) for track in tracks} == terms
    assert all((track["split"] == "held_out") == (track["package"] in review.held_out) for track in tracks)
    assert not {track["licence"] for track in tracks if track["split"] == "train"} & {"GPL-2"}  # not with GPL-3
