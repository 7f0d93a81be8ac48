"""Peak memory of processes that do what workers do: it must not grow with what has passed through them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def run_part(part: str, folder: Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.memory", "--part", part, "--folder", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_model_needs_no_more_memory_after_many_windows(tmp_path: Path) -> None:
    _, half, whole = run_part("windows", tmp_path, "--windows", "48").values()
    assert whole - half < 48 * 2**20  # the waveforms of 24 windows more, were they kept, are 69 MB


def test_an_hour_of_music_passes_each_stage_in_two_gigabytes(tmp_path: Path) -> None:
    run_part("encode", tmp_path)
    heaps = {stage: run_part(stage, tmp_path)["heap_bytes"] for stage in ("decode", "embed", "write")}
    assert max(heaps.values()) < 2 * 2**30, heaps
