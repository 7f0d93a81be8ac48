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
BEYOND = "Ünïcödé 日本 ☂ \u00a0"
IDS = (
    f"a{PRINTABLE}b/c{PRINTABLE}d.wav",
    f"{BEYOND}/{BEYOND}.wav",
    "plain.wav",
    *(f"one/x{c}y.wav" for c in PRINTABLE if not c.isalnum()),
)


@dataclass(frozen=True)
class Place:
    """Where audio and store lie, with the options of both."""

    audio: str
    store: StoreLocation
    audio_options: Options


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    audio, store = f"m{PRINTABLE}", f"s{IN_STORES}{BEYOND.strip()}"
    if request.param == "disk":
        return Place(str(tmp_path / audio), StoreLocation(str(tmp_path / store)), {})
    server: S3Server = request.getfixturevalue("s3_server")
    location = StoreLocation(f"s3://{STORE_BUCKET}/{store}", server.options(STORE))
    return Place(f"s3://{AUDIO_BUCKET}/{audio}", location, server.options(AUDIO))


def test_names_hold_whatever_can_be_printed(place: Place, tmp_path: Path, tiny_checkpoint: Path) -> None:
    music = load_music(seconds=20.0, sample_rate=24_000)
    for number, name in enumerate(IDS):
        clip = encode_bytes(music[number * 1000 :][:6000], 24_000, format="WAV")
        write_file(join_url(place.audio, name), clip, place.audio_options)
    catalog = load_catalog(place.audio, place.audio_options)
    assert catalog.column("track_id").to_pylist() == sorted(IDS)
    embed_here(place.store, catalog, tiny_checkpoint, place.audio_options)
    build_indexes(place.store, str(tmp_path / "cache"))
    reader = FeatureStore(place.store.url, options=place.store.options)
    assert reader.tracks(["track_id"]).column("track_id").to_pylist() == sorted(IDS)
    assert reader.frames([IDS[0]], "8hz").column("track_id").to_pylist() == [IDS[0]]
    flags = [
        text
        for key, value in (place.store.options or {}).items()
        for text in ("--storage-option", f"{key}={value}")
    ]
    assert check_store.main(["--store", place.store.url, "--deep", *flags]) == 0
    settings = ServiceSettings(place.store, cache=str(tmp_path / "cache"), audio_options=place.audio_options)
    with TestClient(create_app(ServiceState(settings))) as client:
        for name in (IDS[0], IDS[1], *IDS[3::7]):
            facts = client.get(f"/tracks/{quote(name, safe='')}").json()
            assert facts["track_id"] == name
            assert client.get(facts["audio_url"]).content[:4] == b"RIFF"
        hits = client.get(f"/search/track/{quote(IDS[0], safe='')}", params={"k": 200}).json()["results"]
        assert {hit["track_id"] for hit in hits} == set(IDS[1:])
    (tmp_path / "ids.txt").write_text(f"{IDS[0]}\n{IDS[1]}\n")
    arguments = ["--store", place.store.url, "--ids", str(tmp_path / "ids.txt"), "--vacuum", *flags]
    assert delete_tracks.main(arguments) == 0
    left = FeatureStore(place.store.url, options=place.store.options).tracks(["track_id"])
    assert left.column("track_id").to_pylist() == sorted(IDS[2:])
    assert len(list_files(place.audio, place.audio_options)) == len(IDS)
