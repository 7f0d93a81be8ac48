"""Every printable character in the names of folders, files and stores, on a disk and on S3, from file to hit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from jobs import check_store, delete_tracks
from pipeline.catalog.load import load_catalog
from pipeline.location import StoreLocation
from pipeline.service.app import create_app
from pipeline.service.state import ServiceSettings, ServiceState
from pipeline.storage import Options, join_url, list_files, write_file
from pipeline.store.read import FeatureStore
from tests.corpus import load_music
from tests.encoders import encode_bytes
from tests.s3_server import AUDIO, AUDIO_BUCKET, STORE, STORE_BUCKET, S3Server
from tests.served import build_indexes, embed_here

PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "/")
IN_STORES = "".join(c for c in PRINTABLE if c not in "#?\\")  # those three are refused, see test_tables.py
ON_S3 = PRINTABLE.replace("\\", "")  # the server of these tests makes a slash of it in every key
BEYOND = "Ünïcödé 日本 ☂ \u00a0"


def list_names(characters: str) -> list[str]:
    """Return names of files: two with everything, and one for each mark alone."""
    alone = [f"one/x{c}y.wav" for c in characters if not c.isalnum()]
    return [f"a{characters}b/c{characters}d.wav", f"{BEYOND}/{BEYOND}.wav", "plain.wav", *alone]


@dataclass(frozen=True)
class Place:
    """Where audio and store lie, with the options of both, and what the files are called."""

    names: list[str]
    audio: str
    store: StoreLocation
    audio_options: Options


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    store = f"s{IN_STORES}{BEYOND.strip()}"
    if request.param == "disk":
        audio = str(tmp_path / f"m{PRINTABLE}")
        return Place(list_names(PRINTABLE), audio, StoreLocation(str(tmp_path / store)), {})
    server: S3Server = request.getfixturevalue("s3_server")
    location = StoreLocation(f"s3://{STORE_BUCKET}/{store}", server.options(STORE))
    return Place(list_names(ON_S3), f"s3://{AUDIO_BUCKET}/m{ON_S3}", location, server.options(AUDIO))


def test_names_hold_whatever_can_be_printed(place: Place, tmp_path: Path, tiny_checkpoint: Path) -> None:
    names = place.names
    music = load_music(seconds=20.0, sample_rate=24_000)
    for number, name in enumerate(names):
        clip = encode_bytes(music[number * 1000 :][:6000], 24_000, format="WAV")
        write_file(join_url(place.audio, name), clip, place.audio_options)
    catalog = load_catalog(place.audio, place.audio_options)
    assert catalog.column("track_id").to_pylist() == sorted(names)
    embed_here(place.store, catalog, tiny_checkpoint, place.audio_options)
    build_indexes(place.store, str(tmp_path / "cache"))
    reader = FeatureStore(place.store.url, options=place.store.options)
    assert reader.tracks(["track_id"]).column("track_id").to_pylist() == sorted(names)
    assert reader.frames([names[0]], "8hz").column("track_id").to_pylist() == [names[0]]
    flags = [
        text
        for key, value in (place.store.options or {}).items()
        for text in ("--storage-option", f"{key}={value}")
    ]
    assert check_store.main(["--store", place.store.url, "--deep", *flags]) == 0
    settings = ServiceSettings(place.store, cache=str(tmp_path / "cache"), audio_options=place.audio_options)
    with TestClient(create_app(ServiceState(settings))) as client:
        for name in (names[0], names[1], *names[3::7]):
            facts = client.get(f"/tracks/{quote(name, safe='')}").json()
            assert facts["track_id"] == name
            assert client.get(facts["audio_url"]).content[:4] == b"RIFF"
        hits = client.get(f"/search/track/{quote(names[0], safe='')}", params={"k": 200}).json()["results"]
        assert {hit["track_id"] for hit in hits} == set(names[1:])
    (tmp_path / "ids.txt").write_text(f"{names[0]}\n{names[1]}\n")
    arguments = ["--store", place.store.url, "--ids", str(tmp_path / "ids.txt"), "--vacuum", *flags]
    assert delete_tracks.main(arguments) == 0
    left = FeatureStore(place.store.url, options=place.store.options).tracks(["track_id"])
    assert left.column("track_id").to_pylist() == sorted(names[2:])
    assert len(list_files(place.audio, place.audio_options)) == len(names)
