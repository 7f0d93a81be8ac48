"""Everything that says how fast this machine embeds: stage by stage, end to end, the model, memory, precision.

    .venv/bin/python -m benchmarks [--reference FOLDER/musicfm] [--json FILE] [--quick]

Each part is a command of its own (``python -m benchmarks.stages`` and so on) and runs as one, so that none
disturbs another; this one prints what they print, ratios first, and gathers their JSON under the machine's
name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline.run.trial import Trial, size_pools

PARTS = {
    "end_to_end": "whole runs beside a plain script",
    "stages": "the stages around the model",
    "model": "the model on the processor",
    "windows": "the task policy beside the shared one",
    "gpu": "the model on a GPU",
    "precision": "reduced precision against float32",
    "memory": "peak memory",
}
TAKE_REFERENCE = {"end_to_end", "model", "gpu"}
QUICK = {
    "end_to_end": ["--tracks", "24", "--rounds", "1"],
    "stages": ["--rounds", "3"],
    "model": ["--rounds", "1"],
    "windows": ["--seconds", "30"],
    "precision": [],
    "memory": ["--windows", "100"],
}


def main() -> None:
    """Run the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="a checkout of minzwon/musicfm")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all figures go as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer files and rounds: minutes, and more noise")
    flags = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine()}
    print("machine: " + ", ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    for part, title in PARTS.items():
        print(f"\n== {title} (python -m benchmarks.{part}) ==", flush=True)
        arguments = ["--reference", str(flags.reference)] if flags.reference and part in TAKE_REFERENCE else []
        report[part] = run_part(part, arguments + (QUICK.get(part, []) if flags.quick else []))
    print("\n== pool sizing, from the stages of the whole runs ==")
    report["pools"] = advise(report["end_to_end"])
    if flags.json:
        flags.json.write_text(json.dumps(report, indent=1))
        print(f"\nall figures: {flags.json}")


def describe_machine() -> dict[str, Any]:
    """Return what a figure needs beside it."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _read_lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return {
        "name": platform.node(),
        "processor": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run_part(part: str, arguments: list[str]) -> Any:
    """Run one benchmark, pass on what it prints for people, and return its JSON; None where it failed."""
    command = [sys.executable, "-m", f"benchmarks.{part}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"failed: {done.stderr[-1000:]}")
        return None
    *lines, last = done.stdout.splitlines()
    print("\n".join(lines), flush=True)
    return json.loads(last)


def advise(end_to_end: Any) -> Any:
    """Print and return what pools of this machine's cores come to."""
    if end_to_end is None:
        return None
    trial, num_cpus = Trial(**end_to_end["trial"]), os.cpu_count() or 1
    advice = size_pools(trial, num_cpus, end_to_end["num_models"]).message
    print(f"from {trial.num_files} files: {advice}")
    around = trial.decode_core_s + trial.write_core_s
    print(
        f"decoding and writing 30 s take {30e3 * around:.0f} core-ms: a core feeds {1 / 30 / around:.0f} windows/s"
    )
    return {"advice": advice, "windows_per_s_per_core": 1 / 30 / around}


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
