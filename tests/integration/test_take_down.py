"""A take-down as it has to hold: under load, and through the nights that follow, until it is taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.catalog.load import load_catalog
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.location import StoreLocation
from tests.corpus import encode_clip, load_music
from tests.processes import ROOT, run_command
from tests.served import embed_here

NUM_CLIENTS = 8
TAKEN = "to be taken.wav"
OTHERS = [f"stays {number}.wav" for number in range(6)]
QUESTIONS = (
    f"search/track/{OTHERS[0]}?k=100",
    f"search/track/{OTHERS[1]}?k=100&where=duration_s > 0",
    "tracks?limit=100",
    "map",
)


class Clients:
    """Clients that ask all the time, and remember whatever names they are given.

    Args:
        url: Of the service.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_down = threading.Event()  # the command has returned
        self.is_over = threading.Event()
        self.pause_s = 0.0  # between two questions: longer where other programs want to get on
        self.seen: list[tuple[bool, set[str]]] = []  # was it down before the question was sent; what came

    def ask(self, number: int) -> None:
        """Ask one question after the other until it is over."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.is_over.is_set():
                number += 1
                was_down = self.is_down.is_set()
                if number % (len(QUESTIONS) + 1) == 0:
                    answer = client.get(f"tracks/{TAKEN}")
                    found = {TAKEN} if answer.status_code != 404 else set()
                else:
                    answer = client.get(QUESTIONS[number % len(QUESTIONS)])
                    assert answer.status_code == 200, answer.text
                    body = answer.json()
                    found = {track["track_id"] for track in body.get("results", body.get("tracks"))}
                self.seen.append((was_down, found))
                self.is_over.wait(self.pause_s)

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait, for a minute at most, until something is so."""
        until_s = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < until_s
            time.sleep(0.05)

    def wait_for_answers(self, number: int = 5 * NUM_CLIENTS) -> None:
        """Wait until every client has had some more answers."""
        enough = len(self.seen) + number
        self.wait_for(lambda: len(self.seen) > enough)


@contextmanager
def run_service(store: str, log: Path) -> Iterator[str]:
    """Run the service, its standard error going to a file; give its URL."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MUSICFM_"))}
    arguments = [sys.executable, "jobs/serve.py", "--store", store, "--port", "0", "--poll-interval-s", "0.3"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            arguments, cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.ray
def test_what_is_taken_down_is_returned_no_more_and_comes_back_by_no_night(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    folder, store = tmp_path / "music", StoreLocation(str(tmp_path / "store"))
    folder.mkdir()
    music = load_music(seconds=10.0, sample_rate=24_000)
    for number, name in enumerate([*OTHERS, TAKEN]):
        encode_clip(folder / name, music[number * 24_000 :][:36_000], 24_000)
    embed_here(store, load_catalog(str(folder)), tiny_checkpoint)
    build_index(store, IndexSettings("global"))

    def run_night() -> dict[str, Any]:
        flags = ["--audio", str(folder), "--store", store.url, "--checkpoint", str(tiny_checkpoint)]
        more = ["--layers", "2", "--resolutions", "8hz,0.5hz,global", "--device", "cpu", "--prune"]
        done = run_command("jobs/embed_catalog.py", *flags, *more)
        assert done.exit_code == 0, done.stderr
        build_index(store, IndexSettings("global"))
        return {name: done.report[name] for name in ("embedded", "withheld", "failed", "closed")}

    def delete(*flags: str) -> None:
        (tmp_path / "ids.txt").write_text(TAKEN)
        done = run_command("jobs/delete_tracks.py", "--store", store.url, "--ids", f"{tmp_path}/ids.txt", *flags)
        assert done.exit_code == 0, done.stderr

    with run_service(store.url, tmp_path / "serve.log") as url, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = Clients(url)
        asking = [pool.submit(clients.ask, number) for number in range(NUM_CLIENTS)]
        try:
            clients.wait_for_answers()
            delete()
            clients.is_down.set()
            clients.wait_for_answers()
            clients.pause_s = 0.5
            (folder / "copy.wav").write_bytes((folder / TAKEN).read_bytes())
            assert run_night() == {"embedded": 0, "withheld": 2, "failed": 0, "closed": True}
            (folder / TAKEN).rename(folder / "renamed.wav")
            assert run_night() == {"embedded": 0, "withheld": 2, "failed": 0, "closed": True}
            clients.wait_for_answers()
            before = list(clients.seen)
            delete("--restore")
            assert run_night() == {"embedded": 2, "withheld": 0, "failed": 0, "closed": True}
            clients.wait_for(
                lambda: {"copy.wav", "renamed.wav"} <= set().union(*(f for _, f in clients.seen[-50:]))
            )
        finally:
            clients.is_over.set()
        for one in asking:
            one.result()
    assert any(TAKEN in found for was_down, found in before if not was_down)
    late = [found for was_down, found in before if was_down]
    assert len(late) > 10 * NUM_CLIENTS
    assert set().union(*late) == set(OTHERS)
