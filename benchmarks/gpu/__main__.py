"""The model on a GPU, in minutes: is it right, how fast beside what the card can do, and which way is faster.

    python -m benchmarks.gpu --minutes 8 --out DIR [--reference FOLDER/musicfm] [--rehearse] [--steps NAME …]

Random weights of the published size, 30 s windows, layer 7. Steps run in the order of their worth, each with a
time limit of its own, in a process that is started again where a step takes it down; their figures are in
DIR/gpu.json as soon as they are known, so that a machine that is taken back early loses nothing. DIR/report.md
pastes into RESULTS.md. ``--rehearse`` does all of it on the processor with a small model: its figures say nothing.
Needs PyTorch, NumPy, SciPy, PyArrow and pytest; the published code needs transformers 4.57 and einops.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.report import describe_device, write_report
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.steps import STEPS, run_steps


def main() -> None:
    """Run the steps in processes of their own, then print the report and all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="DIR")
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="a checkout of minzwon/musicfm")
    parser.add_argument("--rehearse", action="store_true", help="on the processor, small")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # given to the process that runs the steps
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    figures = flags.out / "gpu.json"
    if not flags.rehearse and not torch.cuda.is_available():
        assert __spec__ is not None
        print(f"no GPU here: nothing is measured; where there is one: python -m {__spec__.parent} --minutes 8")
        print(json.dumps({"machine": None}))
        return
    if flags.until is not None:
        run_steps(Setting.choose(flags.reference, flags.out, flags.rehearse), flags.steps, figures, flags.until)
        return
    until_s = time.time() + 60 * flags.minutes
    figures.write_text(json.dumps({"machine": describe_device(flags.rehearse), "steps": {}}))
    remaining = list(flags.steps)
    while remaining and time.time() < until_s:
        arguments = [arg for arg in sys.argv[1:] if arg != "--steps" and arg not in STEPS]
        command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
        subprocess.run([*command, "--until", str(until_s), "--steps", *remaining], check=False)
        begun = json.loads(figures.read_text())["steps"]
        left = [name for name in remaining if name not in begun]
        remaining = left if len(left) < len(remaining) else left[1:]
    report = json.loads(figures.read_text())
    (flags.out / "report.md").write_text(write_report(report))
    print(write_report(report))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
