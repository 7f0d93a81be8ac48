"""The service under load: many clients at once against a service that runs, for a while.

    .venv/bin/musicfm serve --store demo/store &
    .venv/bin/python benchmarks/serve.py --url http://127.0.0.1:8000/ [--clients 50] [--seconds 60]

Each client asks again as soon as it is answered: mostly for what sounds like a track, now and then for
suggestions, facts, a picture or part of a track's audio. With ``--audio FILE`` one request in a hundred sends it;
503 (the queue is full) then counts as refused, not as an error. The token, if any, is read from
MUSICFM_SERVE_TOKEN.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

KINDS = {"search": 80, "suggest": 8, "facts": 5, "similarity": 4, "audio": 3}  # of a hundred requests


@dataclass
class Tally:
    """What the clients saw.

    Args:
        seconds: Time of each answer, by kind.
        problems: How often what went wrong.
        refused: Uploads that were told to come back.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    problems: collections.Counter[str] = field(default_factory=collections.Counter)
    refused: int = 0


def main() -> int:
    """Print a line per kind of request, then all as JSON; 1 if any request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--resolution", default="global")
    parser.add_argument("--audio", type=Path, help="a file to send now and then")
    flags = parser.parse_args()
    tally = Tally()
    wall_s = asyncio.run(run_clients(flags, tally))
    report = summarise(tally, wall_s, flags)
    print(json.dumps(report))
    return 1 if tally.problems else 0


async def run_clients(flags: argparse.Namespace, tally: Tally) -> float:
    """Run all clients to the end and return the seconds that it took."""
    token = os.environ.get("MUSICFM_SERVE_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=flags.url, headers=headers, timeout=60) as client:
        tracks = (await client.get("map", params={"limit": 5000})).raise_for_status().json()["tracks"]
    started_s = time.perf_counter()
    content = flags.audio.read_bytes() if flags.audio else None
    clients = [
        run_client(number, flags, [track["track_id"] for track in tracks], content, headers, tally)
        for number in range(flags.clients)
    ]
    await asyncio.gather(*clients)
    return time.perf_counter() - started_s


async def run_client(
    number: int,
    flags: argparse.Namespace,
    track_ids: list[str],
    content: bytes | None,
    headers: dict[str, str],
    tally: Tally,
) -> None:
    """Ask one thing after another until the time is over."""
    chance = random.Random(number)
    deadline_s = time.perf_counter() + flags.seconds
    async with httpx.AsyncClient(base_url=flags.url, headers=headers, timeout=60) as client:
        while time.perf_counter() < deadline_s:
            if content is not None and chance.random() < 0.01:
                kind, request = (
                    "upload",
                    client.build_request("POST", "search/audio", files={"file": ("clip", content)}),
                )
            else:
                kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
                request = build_request(client, kind, chance.choice(track_ids), flags.resolution)
            started_s = time.perf_counter()
            try:
                answer = await client.send(request)
            except httpx.HTTPError as error:
                tally.problems[f"{kind}: {type(error).__name__}"] += 1
                continue
            tally.seconds[kind].append(time.perf_counter() - started_s)
            if kind == "upload" and answer.status_code == 503:
                tally.refused += 1
            elif answer.status_code not in (200, 206):
                tally.problems[f"{kind}: {answer.status_code} {answer.text[:100]}"] += 1


def build_request(client: httpx.AsyncClient, kind: str, track_id: str, resolution: str) -> httpx.Request:
    """Return a request of one kind for one track."""
    name = quote(track_id, safe="")
    if kind == "search":
        return client.build_request("GET", f"search/track/{name}", params={"resolution": resolution})
    if kind == "suggest":
        return client.build_request("GET", "tracks", params={"prefix": track_id[:3]})
    if kind == "audio":
        return client.build_request("GET", f"tracks/{name}/audio", headers={"range": "bytes=0-65535"})
    return client.build_request("GET", f"tracks/{name}" + ("/similarity" if kind == "similarity" else ""))


def summarise(tally: Tally, wall_s: float, flags: argparse.Namespace) -> dict[str, Any]:
    """Print the table and return the figures."""
    rows = {}
    every = [seconds for kind in tally.seconds.values() for seconds in kind]
    print(f"{flags.clients} clients, {wall_s:.1f} s")
    print(f"{'request':>12} {'number':>8} {'per s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    for kind, seconds in [*sorted(tally.seconds.items()), ("all", every)]:
        p50, p95, p99, most = (1000 * np.quantile(seconds, [0.5, 0.95, 0.99, 1.0])).tolist()
        rows[kind] = {"number": len(seconds), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": most}
        times = f"{p50:>8.1f} {p95:>8.1f} {p99:>8.1f} {most:>8.1f}"
        print(f"{kind:>12} {len(seconds):>8} {len(seconds) / wall_s:>8.1f} {times}")
    print(f"errors: {sum(tally.problems.values())} {dict(tally.problems) or ''}; refused uploads: {tally.refused}")
    requests_per_s = len(every) / wall_s
    return {
        "clients": flags.clients,
        "requests_per_s": requests_per_s,
        "errors": dict(tally.problems),
        "kinds": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
