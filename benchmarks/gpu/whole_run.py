"""A whole run with Ray: files in, a store out, and how busy the GPU is meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import Setting

PRECISIONS = ("bfloat16", "tf32")
NUM_CLIPS = {"bfloat16": 6000, "tf32": 3000}  # so that either computes for some 15 s at the rate of an H100
SAMPLE_EVERY_S = 0.1
JOB = "benchmarks.measured_job"


def run_whole(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Embed one file, then thousands, as a user does: their difference is what a run does after its start.

    Needs Ray, PyAV and NVIDIA's own bindings (nvidia-ml-py, which gives the module ``pynvml``).
    """
    missing = [name for name in ("ray", "av", "pynvml") if find_spec(name) is None]
    if not setting.is_gpu or missing:
        put("not run", f"a GPU and the modules ray, av and pynvml are needed for {JOB}; missing: {missing}")
        return
    from benchmarks.clips import write_thousands  # needs PyAV

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_s = time.perf_counter()
        write_thousands(folder / "many", max(NUM_CLIPS.values()))
        write_thousands(folder / "one", 1)
        put("seconds to write the clips", time.perf_counter() - start_s)
        for precision in PRECISIONS:
            link_clips(folder / "many", folder / precision, NUM_CLIPS[precision])
            one, _ = run_job(setting, folder / "one", folder / "store", precision)
            many, samples = run_job(setting, folder / precision, folder / "store", precision)
            put(f"{precision}, one clip", one)
            put(precision, many | compare_runs(one, many, NUM_CLIPS[precision], samples))


def link_clips(source: Path, target: Path, num_clips: int) -> None:
    """Make a folder with the first clips of another."""
    target.mkdir()
    for path in sorted(source.iterdir())[:num_clips]:
        os.link(path, target / path.name)


def run_job(setting: Setting, audio: Path, store: Path, precision: str) -> tuple[dict[str, Any], list[int]]:
    """Run the job as a command; return its seconds and what Ray did, and the samples of the GPU."""
    shutil.rmtree(store, ignore_errors=True)
    command = [sys.executable, "-m", JOB, "--audio", str(audio), "--store", str(store), "--precision", precision]
    command += ["--checkpoint", str(setting.checkpoint_path), "--layer", str(setting.layer)]
    start_s = time.perf_counter()
    with sample_gpu() as samples:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start_s, "exit status": done.returncode}
    (setting.out / f"{precision}-{audio.name}.txt").write_text(done.stdout + done.stderr)
    if done.returncode:
        return found | {"failed": done.stderr[-500:]}, samples
    facts = json.loads(done.stdout.splitlines()[-1])
    num_bytes = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    found |= {
        "core-s": sum(facts["core_seconds"].values()),
        "bytes written": num_bytes,
        "bytes spilled": facts["spilled_bytes"],
    }
    return found, samples


def compare_runs(one: dict[str, Any], many: dict[str, Any], num_clips: int, samples: list[int]) -> dict[str, Any]:
    """Return rates, where both runs went well: all in, and without what the run of one clip took.

    The share of busy time is the driver's own (NVML: the share of a sampling period in which a kernel ran), from
    the first sample to the last in which the GPU did anything.
    """
    if "failed" in one or "failed" in many:
        return {}
    active = [index for index, share in enumerate(samples) if share]
    span = samples[active[0] : active[-1] + 1] if active else []
    steady_s = many["seconds"] - one["seconds"]
    return {
        "clips/s, all in": num_clips / many["seconds"],
        "clips/s without start": (num_clips - 1) / steady_s,
        "clips/s while the GPU works": num_clips / (len(span) * SAMPLE_EVERY_S) if span else None,
        "busy share while it works": sum(span) / 100 / len(span) if span else None,
        "core-ms a clip without start": 1e3 * (many["core-s"] - one["core-s"]) / (num_clips - 1),
        "busy per cent, second by second": " ".join(
            f"{sum(part) / len(part):.0f}" for part in (samples[at : at + 10] for at in range(0, len(samples), 10))
        ),
    }


@contextmanager
def sample_gpu() -> Iterator[list[int]]:
    """Note the GPU's utilisation in per cent, ten times a second, for as long as the block runs."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    samples: list[int] = []
    over = threading.Event()

    def note() -> None:
        next_s = time.perf_counter()
        while not over.is_set():
            samples.append(int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
            next_s += SAMPLE_EVERY_S
            over.wait(max(0.0, next_s - time.perf_counter()))

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()
