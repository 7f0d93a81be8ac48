"""A folder of tagged files, from their bytes to what people read: the answers of the service and of the search."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from jobs import search
from pipeline.catalog.load import load_catalog
from pipeline.location import StoreLocation
from pipeline.service.app import create_app
from pipeline.service.state import ServiceSettings, ServiceState
from tests.corpus import encode_clip, load_music
from tests.encoders import make_id3v1, make_id3v2, strip_id3v2
from tests.served import build_indexes, embed_here

COLUMNS = ("title", "artist", "album", "genre")
NOTHING = (None, None, None, None)
LATIN = ("Café", "Björk", "Ägäis", "Jazz")
WIDE = ("Песня  №1", "坂本龍一", "Ελλάδα ☂", "Électro")
ID3_FRAMES = ("TIT2", "TPE1", "TALB", "TCON")
CONTAINERS = ("mp3", "flac", "m4a", "ogg", "opus", "wma")

Row = tuple[str | None, ...]


def write_folder(folder: Path) -> dict[str, Row]:
    """Write files with tags of every encoding that their containers know; return what stands in each."""
    music = load_music(seconds=12.0, sample_rate=24_000)
    written: dict[str, Row] = {}

    def clip(name: str, texts: tuple[str, ...] = ()) -> Path:
        start = len(written) * 10_000  # no two files are of the same content
        tags = dict(zip(COLUMNS, texts, strict=False))
        encode_clip(folder / name, music[start : start + 24_000], 24_000, tags=tags)
        return folder / name

    for ending in CONTAINERS:
        written[clip(f"plain.{ending}").name] = NOTHING
        written[clip(f"wide.{ending}", WIDE).name] = WIDE
    for name, version, encoding, codec, texts in (
        ("latin-1.mp3", 3, 0, "latin-1", LATIN),
        ("utf-16.mp3", 3, 1, "utf-16", WIDE),
        ("utf-16be.mp3", 4, 2, "utf-16-be", WIDE),
        ("utf-8.mp3", 4, 3, "utf-8", WIDE),
    ):
        path = clip(name)
        tag = make_id3v2(encoding, dict(zip(ID3_FRAMES, texts, strict=True)), codec, version)
        path.write_bytes(tag + strip_id3v2(path.read_bytes()))
        written[name] = texts
    path = clip("id3v1.mp3")
    path.write_bytes(strip_id3v2(path.read_bytes()) + make_id3v1(*LATIN[:3], "latin-1"))
    for ending in CONTAINERS:
        tags = dict(zip(COLUMNS, LATIN, strict=True)) | {"track": "7/12", "date": "1997-09-22"}
        encode_clip(folder / f"numbered.{ending}", music[-24_000:], 24_000, tags=tags)
        written[f"numbered.{ending}"] = LATIN
    return written | {"id3v1.mp3": LATIN}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    return write_folder(tmp_path_factory.mktemp("tagged", numbered=False))


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, Row], tiny_checkpoint: Path
) -> StoreLocation:
    location = StoreLocation(str(tmp_path_factory.mktemp("tags") / "store"))
    embed_here(location, load_catalog(str(tmp_path_factory.getbasetemp() / "tagged")), tiny_checkpoint)
    build_indexes(location)
    return location


def test_the_service_says_of_each_track_what_its_file_does(store: StoreLocation, written: dict[str, Row]) -> None:
    with TestClient(create_app(ServiceState(ServiceSettings(store)))) as client:
        facts = {name: client.get(f"/tracks/{quote(name)}").json() for name in written}
        assert {name: tuple(fact[column] for column in COLUMNS) for name, fact in facts.items()} == written
        listed = client.get("/tracks", params={"limit": 100}).json()["tracks"]
        assert {track["track_id"]: tuple(track[column] for column in COLUMNS) for track in listed} == written
        found = client.get("/search/track/plain.mp3", params={"k": 100}).json()["results"]
        assert {hit["track_id"]: tuple(hit[column] for column in COLUMNS) for hit in found} == {
            name: row for name, row in written.items() if name != "plain.mp3"
        }
        numbers = {name: (fact["track_number"], fact["year"]) for name, fact in facts.items()}
        told = {"id3v1.mp3": (5, 1997)} | {f"numbered.{ending}": (7, 1997) for ending in CONTAINERS}
        assert numbers == {name: told.get(name, (None, None)) for name in written}
        by_artist = client.get("/search/track/wide.wma", params={"k": 100, "exclude_same": "artist"}).json()
        assert {hit["track_id"] for hit in by_artist["results"]} == {n for n in written if written[n] != WIDE}


def test_a_search_prints_them(
    store: StoreLocation, written: dict[str, Row], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--store", store.url, "--track", "plain.mp3", "-k", "100"]
    assert search.main([*arguments, "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["results"]
    assert {hit["track_id"]: tuple(hit[column] for column in COLUMNS) for hit in hits} == {
        name: row for name, row in written.items() if name != "plain.mp3"
    }
    assert search.main(arguments) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[-5:] == ["track", "artist", "title", "album", "genre"]
    for hit, line in zip(hits, lines, strict=False):
        assert all((hit[column] or "-") in line for column in COLUMNS)
