"""What it takes to list and plan a bucket of millions: time, and the most memory that the process ever had.

    .venv/bin/python -m benchmarks.listing [--keys 1000000] [--steps find,list,plan]

A server on this machine makes up the pages of ListObjectsV2 as it is asked for them: folders of a hundred albums
of a hundred tracks. It is listed by fsspec's ``find`` and an Arrow table made of that, as the catalog was until it
grew, then by ``load_catalog``, and that is planned for a store that has nothing yet. Each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from pipeline.catalog.load import load_catalog
from pipeline.location import StoreLocation
from pipeline.run.prepare import plan_against_store
from pipeline.storage import LISTING, list_files, open_filesystem

PAGE_KEYS = 1000
KEYS_PER_FOLDER = 10_000
ROOT = "s3://bucket/music"
STEPS = ("find", "list", "plan")


def name_key(number: int) -> str:
    """Return the key of an object by its number; keys are in the order of their numbers."""
    return f"music/artist-{number // KEYS_PER_FOLDER:05d}/album-{number // 100 % 100:02d}/{number:09d}.mp3"


class Bucket(BaseHTTPRequestHandler):
    """Answers ListObjectsV2 for a prefix of whole folders, or for the folders in the root."""

    num_keys = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer one page."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix = asked.get("prefix", "")
        digits = prefix.removeprefix("music/").removeprefix("artist-").rstrip("/")
        span = KEYS_PER_FOLDER * 10 ** (5 - len(digits))
        first = int(digits) * span if digits else 0
        last = min(first + span if digits else self.num_keys, self.num_keys)
        start = int(asked.get("continuation-token", first))
        if asked.get("delimiter"):
            step, last_page = KEYS_PER_FOLDER, min(last, start + PAGE_KEYS * KEYS_PER_FOLDER)
            names = (name_key(number).split("/")[1] for number in range(start, last_page, step))
            items = "".join(f"<CommonPrefixes><Prefix>music/{name}/</Prefix></CommonPrefixes>" for name in names)
        else:
            last_page = min(last, start + PAGE_KEYS)
            items = "".join(
                f"<Contents><Key>{name_key(number)}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
                f'<ETag>"{number:032x}"</ETag><Size>{4_000_000 + number}</Size></Contents>'
                for number in range(start, last_page)
            )
        more = f"<NextContinuationToken>{last_page}</NextContinuationToken>" if last_page < last else ""
        body = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(last_page < last).lower()}</IsTruncated>{more}{items}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve(num_keys: int, told: Connection) -> None:
    """Serve a bucket until the process is ended."""
    Bucket.num_keys = num_keys
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    told.send(server.server_port)
    server.serve_forever()


@contextmanager
def run_server(num_keys: int) -> Iterator[str]:
    """Serve a bucket from another process, and yield its endpoint."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(num_keys, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def measure_step(step: str, endpoint: str) -> dict[str, float]:
    """List, or list and plan, in this process; return its figures."""
    options: dict[str, Any] = {"key": "a", "secret": "b", "endpoint_url": endpoint}
    start_s, cpu_s = time.monotonic(), time.process_time()
    if step == "find":
        num_rows = find_all(options).num_rows
    else:
        catalog = load_catalog(ROOT, options) if step == "plan" else list_files(ROOT, options)
        num_rows = catalog.num_rows
    report = {
        "keys": num_rows,
        "listing_s": time.monotonic() - start_s,
        "listing_cpu_s": time.process_time() - cpu_s,
    }
    if step == "plan":
        start_s = time.monotonic()
        nowhere = StoreLocation("/nonexistent")
        plan = plan_against_store(catalog, nowhere, ["recipe"], ["global", "8hz"], exists=False)
        report |= {"planning_s": time.monotonic() - start_s, "to_process": plan.to_process.num_rows}
    return {**report, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def find_all(options: dict[str, Any]) -> pa.Table:
    """List as was done before: one dictionary of all, then columns."""
    fs, path = open_filesystem(ROOT, options)
    infos = fs.find(path, detail=True)
    names = sorted(infos)
    columns = {
        "uri": [f"s3://{name}" for name in names],
        "path": [name.removeprefix(f"{path}/") for name in names],
        "size_bytes": [infos[name]["size"] for name in names],
        "etag": [infos[name]["ETag"].strip('"') for name in names],
        "modified_time": [infos[name]["LastModified"] for name in names],
    }
    return pa.table(columns, schema=LISTING)


def measure(num_keys: int, steps: Sequence[str] = STEPS) -> dict[str, dict[str, float]]:
    """Run each step in a process of its own; print and return what they came to."""
    report = {}
    with run_server(num_keys) as endpoint:
        for step in steps:
            command = [sys.executable, "-m", "benchmarks.listing", "--step", step, "--endpoint", endpoint]
            report[step] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(step, ", ".join(f"{name} {value:,.4g}" for name, value in report[step].items()), flush=True)
    return report


def main() -> None:
    """Print a line a step, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--steps", default=",".join(STEPS), help="which of them")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    print(
        json.dumps(
            measure_step(flags.step, flags.endpoint) if flags.step else measure(flags.keys, flags.steps.split(","))
        )
    )


if __name__ == "__main__":
    main()
