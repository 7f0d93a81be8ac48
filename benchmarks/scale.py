"""What a run costs its driver, its monitor and its actors, and what one slow file costs everybody.

    .venv/bin/python -m benchmarks.scale [--tracks 1000,10000] [--audio-s 1] [--slow-s 40] [--plan 1000000]
    .venv/bin/python -m benchmarks.scale --log 1000000 --join 4 --compact 8

A decoder and a model that cost nothing (``benchmarks.null_steps``), all else is real: planned rows, Ray, tables,
parts, commits, metrics, on this machine. Processor time is that of whole processes between the first outcome and
the last, by what they are; a track's audio is short where it is the driver that is looked at, and 30 s for actors.

``--slow-s`` lets one file of the first block take so long to decode, on a cluster of eight CPUs that nobody
computes on, where each actor sleeps over a block as long as a GPU would compute; the same run without it is the
measure. ``--plan`` lays out so many planned tracks, and waits for the first task alone. ``--keys`` lists and plans
a bucket of so many (``benchmarks.listing``). ``--log``, ``--join`` and ``--compact``: ``benchmarks.parts``.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pyarrow as pa
import ray

from benchmarks import listing
from benchmarks.ledger import build_catalog
from benchmarks.null_steps import NullStart, decode_nothing
from benchmarks.parts import measure_compaction, measure_joining, measure_log
from musicfm_model.checkpoint import Checkpoint
from musicfm_model.config import ModelConfig
from pipeline.config import Recipe, RunSettings
from pipeline.location import StoreLocation
from pipeline.run import dataflow
from pipeline.run.blocks import share_plan
from pipeline.run.collect import Collector
from pipeline.run.placement import Placement
from pipeline.run.prepare import plan_against_store
from pipeline.run.ray_private import LeaveSwitch, attach_switch, map_blocks
from pipeline.run.watch import RunWatch
from pipeline.schema import CATALOG, PLAN
from pipeline.store.commit import RunCommitter
from pipeline.store.tables import create_tables

RECIPE = Recipe("00" * 32, 1)
NUM_CPUS = 8  # as Ray counts them
BATCH_SIZE = 8
ROLES = {"ray::Monitor": "monitor", "ray::MapWorker": "actors", "gcs_server": "ray", "raylet": "ray"}
TASKS = "tasks"
MAX_UNJOINED = 2_000_000  # tracks: beyond, the way without joining is five times as many files for nothing new


def main() -> None:
    """Print tables, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", default="1000,10000", help="sizes of runs")
    parser.add_argument("--audio-s", type=float, default=1.0, help="length of a track")
    parser.add_argument("--resolutions", default="global", help="what is stored")
    parser.add_argument("--tracks-per-block", type=int, default=64)
    parser.add_argument("--slow-s", type=float, default=0.0, help="measure one slow file instead")
    parser.add_argument("--plan", type=int, default=0, help="measure how long so many tracks wait for a task")
    parser.add_argument("--log", type=int, default=0, help="measure the table frames after so many tracks")
    parser.add_argument("--join", type=int, default=0, help="measure how so many blocks' parts become one")
    parser.add_argument("--compact", type=int, default=0, help="measure how one and two workers rewrite parts")
    parser.add_argument(
        "--keys", type=int, default=0, help="list and plan a bucket of so many (benchmarks.listing)"
    )
    flags = parser.parse_args()
    if flags.keys:
        print(json.dumps(listing.measure(flags.keys)))
        return
    if flags.log or flags.join or flags.compact:
        ways = (True,) if flags.log > MAX_UNJOINED else (False, True)
        rows = [measure_log(flags.log, is_joined) for is_joined in ways] if flags.log else []
        rows += [measure_joining(flags.join)] if flags.join else []
        print(json.dumps(rows + ([measure_compaction(flags.compact)] if flags.compact else [])))
        return
    ray.init(num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    place = Placement(2, 0, 0.5, 1, 1, 2**28, flags.tracks_per_block, calls_per_actor=2)
    report: Any
    if flags.slow_s:
        report = measure_slow_file(flags.slow_s, place)
    elif flags.plan:
        report = measure_plan(flags.plan, flags.tracks_per_block)
    else:
        sizes = [int(size) for size in flags.tracks.split(",")]
        report = [measure_run(size, flags.audio_s, flags.resolutions.split(","), place) for size in sizes]
    print(json.dumps(report))


def measure_run(num_tracks: int, audio_s: float, resolutions: Sequence[str], place: Placement) -> dict[str, Any]:
    """Return processor milliseconds a track of each kind of process, and seconds until the first outcome."""
    with tempfile.TemporaryDirectory() as folder, ProcessorWatch() as watch:
        course = run(Path(folder), num_tracks, f"{audio_s},0", {}, resolutions, place, watch)
    spent = watch.spent_ms()
    row = {
        "tracks": num_tracks,
        "wall_s": course["wall_s"],
        "first_outcome_s": course["first_s"],
        **{role: ms / num_tracks for role, ms in sorted(spent.items())},
    }
    print(", ".join(f"{name} {value:.3g}" for name, value in row.items()), "(CPU-ms a track)", flush=True)
    return row


def measure_plan(num_tracks: int, tracks_per_block: int) -> dict[str, float]:
    """Return seconds and processor seconds from planned rows to a dataset, and to the start of its first task."""
    catalog = build_catalog(num_tracks)
    others = {"wanted": [f"{RECIPE.recipe_id}/global"], "held": [], "stored": [], "owner_uri": None}
    columns = [
        catalog[field.name] if field.name in CATALOG.names else _repeat(others[field.name], num_tracks, field.type)
        for field in PLAN
    ]
    rows = pa.table(columns, schema=PLAN)
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    dataset = map_blocks(share_plan(rows, tracks_per_block), note_start, num_cpus=1)
    shared_s, shared_cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
    switch = LeaveSwitch()
    attach_switch(dataset, switch)
    for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
        first_s = batch["began_s"][0].as_py() - start_s
        cpu_s = time.process_time() - start_cpu_s
        switch.leave()
        break
    report = {"shared_s": shared_s, "shared_cpu_s": shared_cpu_s, "first_task_s": first_s, "cpu_s": cpu_s}
    print(", ".join(f"{name} {value:.2f}" for name, value in report.items()), flush=True)
    return report


def _repeat(value: Any, number: int, kind: pa.DataType) -> pa.ChunkedArray:
    piece = pa.array([value] * min(number, 2**16), kind)
    return pa.chunked_array([piece.slice(0, number - start) for start in range(0, number, 2**16)], kind)


def note_start(rows: pa.Table) -> pa.Table:  # noqa: ARG001
    """Return when a task began, by the clock of its machine."""
    return pa.table({"began_s": [time.monotonic()]})


def measure_slow_file(slow_s: float, place: Placement) -> dict[str, Any]:
    """Run 400 blocks with and without a file of the first one that takes long to decode."""
    place = replace(place, tracks_per_block=1)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), 32, "1,0", {}, ["global"], place)  # starts the workers
    report: dict[str, Any] = {}
    for name, slow in (("without", {}), ("with", {0: f"1,{slow_s}"})):
        with tempfile.TemporaryDirectory() as folder:
            course = run(Path(folder), 400, "1,0", slow, ["global"], place, window_s=2 * slow_s / 400)
        report[name] = course
        print(f"{name} the slow file: {course['wall_s']:.1f} s, actors busy {course['busy']:.0%}", flush=True)
    return report


def run(
    folder: Path,
    num_tracks: int,
    content: str,
    others: dict[int, str],
    resolutions: Sequence[str],
    place: Placement,
    processors: ProcessorWatch | None = None,
    window_s: float = 0.0,
) -> dict[str, float]:
    """Embed so many tracks into a new store, all of one content but for some.

    Returns:
        Seconds of the work, seconds until the first outcome, and the share of the models' time until the last
        outcome but one in which they were busy.
    """
    store = StoreLocation(str(folder / "store"))
    settings = RunSettings(store, "none", layers=(1,), resolutions=tuple(resolutions), commit_interval_s=10.0)
    recipes = {RECIPE.recipe_id: RECIPE}
    create_tables(store)
    catalog = write_catalog(folder, num_tracks, content, others)
    committer = RunCommitter(store, "scale", recipes)
    plan = plan_against_store(catalog, store, list(recipes), resolutions)
    accepted_s: list[float] = []

    class Watching(Collector):
        def accept(self, result: pa.Table) -> None:
            super().accept(result)
            accepted_s.append(time.monotonic())
            if processors is not None and len(accepted_s) == 1:
                processors.begin()

    start = NullStart(recipes, settings, BATCH_SIZE, window_s)
    watch = RunWatch()
    with (
        patch.object(dataflow, "choose_placement", lambda *_: place),
        patch.object(dataflow.EmbedderStart, "share", lambda *_: start),
        patch.object(dataflow, "decode_audio_in_time", decode_nothing),
        patch.object(dataflow, "Collector", Watching),
    ):
        began_s = time.monotonic()
        model = Checkpoint({}, ModelConfig(), 0.0, 1.0, "")
        dataflow.process_tracks(plan.to_process, model, recipes, settings, committer, watch)
        committer.close()
    assert committer.counts.embedded == num_tracks
    last_s = accepted_s[-2] if others else accepted_s[-1]
    busy_s = window_s * num_tracks
    return {
        "wall_s": accepted_s[-1] - began_s,
        "first_s": accepted_s[0] - began_s,
        "busy": busy_s / place.num_actors / (last_s - accepted_s[0] + window_s),
    }


def write_catalog(folder: Path, num_tracks: int, content: str, others: dict[int, str]) -> pa.Table:
    """Return a catalog of tracks that are all one small file, but for some."""
    catalog = build_catalog(num_tracks)
    uris = [str(folder / "track")] * num_tracks
    (folder / "track").write_text(content)
    for number, text in others.items():
        uris[number] = str(folder / f"track{number}")
        Path(uris[number]).write_text(text)
    return catalog.set_column(1, CATALOG.field("uri"), pa.array(uris))


class ProcessorWatch:
    """Processor time of this process and its children, by what they are, looked at twice a second."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._roles: dict[int, str] = {}
        self._ended = threading.Event()

    def __enter__(self) -> ProcessorWatch:
        threading.Thread(target=self._look_on, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._look()

    def begin(self) -> None:
        """Count from here."""
        self._look()
        self._before = dict(self._seconds)

    def spent_ms(self) -> dict[str, float]:
        """Return milliseconds by role."""
        spent: dict[str, float] = {}
        for pid, seconds in self._seconds.items():
            role = self._roles.get(pid, TASKS)
            spent[role] = spent.get(role, 0.0) + 1e3 * (seconds - self._before.get(pid, 0.0))
        return spent

    def _look_on(self) -> None:
        while not self._ended.wait(0.5):
            self._look()

    def _look(self) -> None:
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                times, name = process.cpu_times(), " ".join(process.cmdline())
            except psutil.Error:
                continue
            self._seconds[process.pid] = times.user + times.system
            role = next((role for key, role in ROLES.items() if key in name), None)
            if process.pid == own.pid:
                role = "driver"
            if role is not None:
                self._roles[process.pid] = role


if __name__ == "__main__":
    main()
