"""Damage thousands of sound files, decode them, and hold what comes out against FFmpeg and against the music.

    .venv/bin/python -m tests.fuzz [--files 10000] [--seed 1] [--start 0] [--oracle library|program]

Each file must be refused with a reason, or equal what FFmpeg itself decodes of it. Where FFmpeg leaves music out
or lets noise in and could have known, it must be refused. The seed reproduces a run, and ``--start`` with
``--files 1`` one of its files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.judge import FAULTS, Judge, Verdict
from tests.fuzz.recordings import encode_recordings


def main() -> int:
    """Judge the files; print each fault, then counts by kind; exit with 1 where there was one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first file")
    parser.add_argument("--oracle", choices=("library", "program"), default="library", help="which FFmpeg to ask")
    parser.add_argument("--keep", type=Path, help="folder for the files that are at fault")
    arguments = parser.parse_args()
    judge = Judge(encode_recordings(), arguments.seed, arguments.oracle)
    counts: Counter[Verdict] = Counter()
    start_s = time.monotonic()
    for number in range(arguments.start, arguments.start + arguments.files):
        outcome = judge.judge(number)
        counts[outcome.verdict] += 1
        if outcome.verdict in FAULTS or arguments.files == 1:
            print(f"file {number}, {outcome.name}: {outcome.verdict}: {outcome.detail}", flush=True)
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                (arguments.keep / f"{number}-{outcome.name}").write_bytes(outcome.data)
        if (number + 1) % 100 == 0:
            print(f"{number + 1} files, {dict(counts)}, {time.monotonic() - start_s:.0f} s", flush=True)
    judge.stop()
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    print(f"seed {arguments.seed}: {counts.total()} files: {told}")
    return 1 if any(counts[verdict] for verdict in FAULTS) else 0


if __name__ == "__main__":
    sys.exit(main())
