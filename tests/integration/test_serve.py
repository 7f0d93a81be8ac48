"""The service as its user runs it: the command, Ray Serve, requests from outside, a signal at the end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from pipeline.location import StoreLocation
from pipeline.service.app import create_app
from pipeline.service.state import ServiceSettings, ServiceState
from tests.corpus import MUSIC, make_failures
from tests.s3_server import AUDIO, AUDIO_BUCKET, STORE, STORE_BUCKET, STORE_READER, S3Server
from tests.served import TRACKS, build_indexes, embed_here, make_catalog

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "correct-horse-battery"
FIRST = [track for track in TRACKS if track["track_id"] not in ("desert", "palace")]
SECOND = [track for track in TRACKS if track["track_id"] not in ("caribbean", "hunting")]
DELETED, ADDED = {"caribbean", "hunting"}, {"desert", "palace"}


@dataclass(frozen=True)
class Service:
    """A service that runs."""

    url: str
    process: subprocess.Popen[str]
    store: StoreLocation

    def open(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)


def start(*arguments: str) -> subprocess.Popen[str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MUSICFM_"))
    }
    return subprocess.Popen(
        [sys.executable, "jobs/serve.py", *arguments],
        cwd=ROOT,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    store = StoreLocation(str(folder / "store"))
    embed_here(store, make_catalog(FIRST), tiny_checkpoint)
    build_indexes(store)
    (folder / "token").write_text(f"{TOKEN}\n")
    arguments = ["--store", store.url, "--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--port", "0"]
    arguments += ["--token-file", str(folder / "token"), "--max-upload-mb", "2", "--poll-interval-s", "0.3"]
    process = start(*arguments)
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    yield Service(json.loads(line)["url"], process, store)
    process.kill()
    process.wait()


@pytest.mark.ray
def test_it_answers_at_the_address_that_it_names(service: Service) -> None:
    assert service.url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{service.url}health") as answer:
        assert json.load(answer) == {"status": "ok"}
    with service.open() as client:
        assert client.get("/info", headers={"authorization": "Bearer no"}).status_code == 401
        assert [index["resolution"] for index in client.get("/info").json()["indexes"]] == ["global", "0.5hz"]
        answer = client.get("/search/track/caves", params={"k": 3})
        assert [result["rank"] for result in answer.json()["results"]] == [1, 2, 3]
        assert client.get("/").text.startswith("<!doctype html>")
        assert "musicfm_requests_total" in client.get("/metrics").text


@pytest.mark.ray
def test_no_upload_ends_it(service: Service, tmp_path: Path) -> None:
    reasons = make_failures(tmp_path)
    clip = (MUSIC / "caves.mp3").read_bytes()
    with service.open() as client:
        for name, reason in reasons.items():
            answer = client.post("/search/audio", files={"file": (name, (tmp_path / name).read_bytes())})
            assert (answer.status_code, answer.json()["reason"]) == (422, reason)
        for body in (b"garbage", b"--x\r\n\r\n"):
            kind = {"content-type": "multipart/form-data; boundary=x"}
            assert client.post("/search/audio", content=body, headers=kind).status_code in (400, 422)
        answer = client.post("/search/audio", files={"file": ("caves.mp3", clip)})
        assert answer.json()["results"][0]["track_id"] == "caves"


@pytest.mark.ray
def test_a_huge_upload_is_cut_off_early(service: Service) -> None:
    sent = 0

    def send() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.mp3"\r\n\r\n'
        for _ in range(4000):
            sent += 1
            yield b"x" * 100_000

    kind = {"content-type": "multipart/form-data; boundary=x"}
    with service.open() as client:
        assert client.post("/search/audio", content=send(), headers=kind).status_code == 413
        assert sent < 2000  # of 400 MB less than half
        assert client.post("/search/audio", content=b"x" * 40_000_000, headers=kind).status_code == 413
        assert client.get("/search/track/caves").status_code == 200


@pytest.mark.ray
def test_a_follow_up_under_load_costs_no_request_and_returns_no_deleted_track(
    service: Service, tiny_checkpoint: Path
) -> None:
    is_over, is_followed, seen = threading.Event(), threading.Event(), []

    def ask(number: int) -> None:
        with service.open() as client:
            while not is_over.is_set():
                is_late = is_followed.is_set()
                resolution = ("global", "0.5hz")[number % 2]
                parameters: dict[str, Any] = {"resolution": resolution, "k": 20}
                answer = client.get("/search/track/caves", params=parameters)
                seen.append((is_late, answer.status_code, answer.json()))

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, number) for number in range(8)]
        try:
            time.sleep(1.0)
            embed_here(service.store, make_catalog(SECOND), tiny_checkpoint)
            build_indexes(service.store)
            time.sleep(5.0)  # many times the interval between two looks
            is_followed.set()
            time.sleep(1.0)
        finally:
            is_over.set()
        for one in asking:
            one.result()
    versions = set()
    for is_late, status, body in seen:
        assert status == 200, body
        found = {result["track_id"] for result in body["results"]}
        is_new = body["index"]["version"] == "00000002"
        versions.add((body["index"]["resolution"], is_new))
        assert is_new or not is_late
        assert not found & (DELETED if is_new else ADDED)
        assert found >= ADDED if is_new else found >= DELETED
    assert versions == {(name, is_new) for name in ("global", "0.5hz") for is_new in (False, True)}


@pytest.mark.ray
def test_it_ends_in_peace(service: Service) -> None:
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=60) == 0
    assert service.process.stderr is not None
    assert "Traceback" not in service.process.stderr.read()
    with pytest.raises(httpx.ConnectError), service.open() as client:
        client.get("/health")


@pytest.mark.slow
def test_the_service_runs_on_object_storage(s3_server: S3Server, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Store and audio in buckets of their own, each with its own credential; the service may read and no more."""
    files = ("caves.mp3", "crossroads.wav", "desert.flac")
    for name in files:
        s3_server.open(AUDIO).put(str(MUSIC / name), f"s3://{AUDIO_BUCKET}/served/{name}")
    url, audio_options = f"s3://{STORE_BUCKET}/served", s3_server.options(AUDIO)
    store = StoreLocation(url, s3_server.options(STORE))

    def follow(*names: str) -> None:
        tracks = [track for track in TRACKS if track["file"] in names]
        catalog = make_catalog(tracks, f"s3://{AUDIO_BUCKET}/served", audio_options)
        embed_here(store, catalog, tiny_checkpoint, audio_options)
        build_indexes(store, str(tmp_path / "builder"))

    follow("caves.mp3", "crossroads.wav")
    state = ServiceState(
        ServiceSettings(
            StoreLocation(url, s3_server.options(STORE_READER)),
            cache=str(tmp_path / "cache"),
            audio_options=audio_options,
            checkpoint=str(tiny_checkpoint),
            device="cpu",
        )
    )
    with TestClient(create_app(state)) as client:
        clip = (MUSIC / "caves.mp3").read_bytes()
        assert [hit["track_id"] for hit in client.get("/search/track/caves").json()["results"]] == ["crossroads"]
        assert (
            client.post("/search/audio", files={"file": ("x", clip)}).json()["results"][0]["track_id"] == "caves"
        )
        assert client.get("/tracks/caves/similarity").json()["num_bins"] == 240
        assert client.get("/tracks/caves/audio").content == clip
        part = client.get("/tracks/caves/audio", headers={"range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, clip[100:200])
        before = {name: generation.manifest.version_id for name, generation in state.generations.items()}
        follow("caves.mp3", "desert.flac")
        state.refresh()  # or the service's own look was quicker
        after = {name: generation.manifest.version_id for name, generation in state.generations.items()}
        assert sorted(name for name in after if after[name] > before[name]) == ["0.5hz", "global"]
        assert [hit["track_id"] for hit in client.get("/search/track/caves").json()["results"]] == ["desert"]
