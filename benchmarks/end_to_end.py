"""Whole runs on real mp3 files: the job, and the plain script that a user would write instead, in turn.

    .venv/bin/python -m benchmarks.end_to_end [--reference FOLDER/musicfm] [--tracks 1000] [--rounds 1]

Both are started as commands, on the same files with the same small model (random weights, twelve layers, layer
7), so that what is not the model shows. Each also runs on one file: what that takes is its start-up, and the
difference by the number of files is what a file takes. Ratios come first. The job's time is then held against
what its stages take alone: as many models at once as in a run, with as many threads; decoding and writing spread
evenly over all cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clips import CLIP_S, write_clips
from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.config import ModelConfig
from musicfm_model.cost import count_window_tflop
from pipeline.catalog.load import load_catalog
from pipeline.config import RunSettings
from pipeline.embed.embedder import Embedder, choose_embedder_settings
from pipeline.location import StoreLocation
from pipeline.run.placement import Placement, place_actors
from pipeline.run.prepare import build_recipes, plan_run
from pipeline.run.trial import Trial, choose_files, run_trial
from tests.checkpoints import write_random_checkpoint

LAYER = 7
SMALL = ModelConfig(embed_dim=256, num_heads=4, ffn_dim=512, conv_dim=16)


def main() -> None:
    """Print the ratios, then what they come from, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="a checkout of minzwon/musicfm")
    parser.add_argument("--tracks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    flags = parser.parse_args()
    report = measure(flags.reference, flags.tracks, flags.rounds)
    print_report(report)
    print(json.dumps(report))


def measure(reference: Path | None, num_tracks: int, num_rounds: int) -> dict[str, Any]:
    """Run both ways in turn on many files and on one, then each stage alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / "random.pt"
        write_random_checkpoint(checkpoint, SMALL, seed=0)
        many, one = folder / "many", folder / "one"
        write_clips(many, num_tracks)
        write_clips(one, 1)
        # One file first, unmeasured: code and libraries are then in the page cache for both.
        for way in ("job", "script"):
            _run_command(way, one, checkpoint, reference, folder)
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(num_rounds):
            for audio in (many, one):
                for way in ("job", "script"):
                    found = _run_command(way, audio, checkpoint, reference, folder)
                    runs.setdefault(f"{way}, {audio.name}", []).append(found)
        placement = place(num_tracks)
        with ProcessPoolExecutor(placement.num_actors, multiprocessing.get_context("spawn")) as pool:
            tasks = [
                pool.submit(try_stages, many, checkpoint, placement.num_threads)
                for _ in range(placement.num_actors)
            ]
            trials = [task.result() for task in tasks]
    return summarise(runs, trials, num_tracks, reference is not None)


def _run_command(way: str, audio: Path, checkpoint: Path, reference: Path | None, folder: Path) -> dict[str, Any]:
    """Run the job or the script over a folder; return its seconds, what it wrote, and of the job what Ray did."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    if way == "job":
        command = ["benchmarks.measured_job", "--audio", str(audio), "--store", str(out)]
        command += ["--checkpoint", str(checkpoint), "--layer", str(LAYER)]
    else:
        command = ["benchmarks.plain_script", str(audio), str(out), str(checkpoint)]
        command += ["--reference", str(reference.resolve())] if reference else []
    start_s = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start_s
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")
    num_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    facts = json.loads(done.stdout.splitlines()[-1]) if way == "job" else {}
    return {"seconds": seconds, "bytes_written": num_bytes, **facts}


def place(num_tracks: int) -> Placement:
    """Return the placement that a run on this machine has."""
    here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return place_actors([here], None, None, count_window_tflop(SMALL, LAYER)).fit(num_tracks)


def try_stages(audio: Path, checkpoint: Path, num_threads: int) -> Trial:
    """Measure the stages one at a time on some of the files."""
    torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory() as store:
        settings = RunSettings(StoreLocation(store), str(checkpoint), layers=(LAYER,))
        model = load_checkpoint(settings.checkpoint)
        recipes = build_recipes(model, settings)
        plan = plan_run(load_catalog(str(audio)), settings, recipes, exists=False)
        embedder = Embedder(model, choose_embedder_settings(recipes, settings))
        return run_trial(choose_files(plan.to_process), embedder, recipes, settings)


def summarise(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], trials: Sequence[Trial], num_tracks: int, is_published: bool
) -> dict[str, Any]:
    """Return ratios, seconds by way and number of files, and the stages alone; there is a trial for each model."""
    trial = trials[0]
    seconds = {name: float(np.median([run["seconds"] for run in timed])) for name, timed in runs.items()}
    steady_s = {way: seconds[f"{way}, many"] - seconds[f"{way}, one"] for way in ("job", "script")}
    num_cores, audio_s = os.cpu_count() or 1, (num_tracks - 1) * trial.audio_s_per_file
    cpu_stages_s = audio_s * (trial.decode_core_s + trial.write_core_s) / num_cores
    model_s = audio_s / sum(1 / each.model_s_per_audio_s for each in trials)
    spilled = [run["spilled_bytes"] for timed in runs.values() for run in timed if "spilled_bytes" in run]
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": num_cores,
        "script_model": "published code" if is_published else "published modules of this project",
        "num_tracks": num_tracks,
        "times_as_fast": seconds["script, many"] / seconds["job, many"],
        "times_as_fast_without_start": steady_s["script"] / steady_s["job"],
        "wall_to_larger_stage": steady_s["job"] / max(cpu_stages_s, model_s),
        "wall_to_larger_stage_with_start": seconds["job, many"] / max(cpu_stages_s, model_s),
        "wall_to_sum_of_core_seconds": steady_s["job"] / (cpu_stages_s + audio_s * trial.model_core_s / num_cores),
        "seconds": seconds,
        "num_models": len(trials),
        "stages_alone_s": {"decode and write": cpu_stages_s, "model": model_s},
        "model_busy_share": model_s / steady_s["job"],
        "windows_per_s": (num_tracks - 1) / steady_s["job"],
        "audio_hours_per_hour": audio_s / steady_s["job"],
        "bytes_written": {way: runs[f"{way}, many"][0]["bytes_written"] for way in ("job", "script")},
        "spilled_bytes": max(spilled),
        "core_seconds": runs["job, many"][0]["core_seconds"],
        "peak_bytes": runs["job, many"][0]["peak_bytes"],
        "trial": asdict(trial),
    }


def print_report(report: Mapping[str, Any]) -> None:
    """Print it for people."""
    seconds, alone, written = report["seconds"], report["stages_alone_s"], report["bytes_written"]
    print(f"{report['machine']}, {report['cores']} cores; {report['num_tracks']} mp3 files of {CLIP_S:g} s")
    print(f"times as fast as the script ({report['script_model']}), all in: {report['times_as_fast']:.2f}")
    print(f"  the same without either's start-up: {report['times_as_fast_without_start']:.2f}")
    print(f"wall to the larger of the stages alone: {report['wall_to_larger_stage']:.2f}")
    print(f"  with start-up: {report['wall_to_larger_stage_with_start']:.2f}")
    print(f"  to the core-seconds of all stages over all cores: {report['wall_to_sum_of_core_seconds']:.2f}")
    for name, value in seconds.items():
        print(f"{name:<14} {value:8.1f} s")
    for name, value in alone.items():
        print(f"{name + ' alone':<24} {value:8.1f} s")
    print(f"models at once: {report['num_models']}")
    print(f"model busy {report['model_busy_share']:.0%} of the run, start-up aside")
    print(f"{report['windows_per_s']:.2f} windows/s, {report['audio_hours_per_hour']:.0f} hours of audio an hour")
    print(f"bytes written: job {written['job'] / 1e6:.1f} MB, script {written['script'] / 1e6:.1f} MB")
    print(f"spilled by Ray's object store: {report['spilled_bytes']} bytes")


if __name__ == "__main__":
    main()
