"""A folder whose files are all renamed, as its user has it: the second command asks nothing of the model.

With ``RENAMED_FILES=10000`` it takes a quarter of an hour.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.store.read import FeatureStore
from tests.encoders import encode_bytes
from tests.processes import Run, run_command

NUM_FILES = int(os.environ.get("RENAMED_FILES", "300"))
RESOLUTIONS = ("50hz", "0.5hz")


def write_clips(folder: Path) -> list[str]:
    """Write short tones in noise, no two alike, into several folders; return their names."""
    random = np.random.default_rng(1)
    time_s = np.arange(4000) / 8000
    names = []
    for number in range(NUM_FILES):
        clip = 0.3 * np.sin(2 * np.pi * (100 + number) * time_s) + 0.05 * random.standard_normal(4000)
        names.append(f"{number % 7}/song {number:05d}.wav")
        path = folder / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_bytes(clip.astype(np.float32), 8000, format="WAV"))
    return names


def read_all(store: Path) -> dict[str, list[list[list[float]]]]:
    """Return the frames of every track, one matrix a resolution."""
    reader = FeatureStore(str(store))
    found: dict[str, list[list[list[float]]]] = {}
    for resolution in RESOLUTIONS:
        for row in reader.to_arrow(resolution).to_pylist():
            found.setdefault(row["track_id"], []).append(row["embeddings"])
    return found


def count_windows(store: Path, run_id: str) -> int:
    """Return how many windows a run's model took."""
    facts = json.loads((store / "reports" / f"{run_id}.json").read_text())
    return int(facts["stages"]["embed"]["num_windows"])


@pytest.mark.slow
@pytest.mark.ray
def test_a_renamed_folder_costs_no_model(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder, store = tmp_path / "music", tmp_path / "store"
    names = write_clips(folder)

    def embed() -> Run:
        flags = ["--audio", str(folder), "--store", str(store), "--checkpoint", str(tiny_checkpoint)]
        more = ["--layers", "2", "--device", "cpu", "--resolutions", ",".join((*RESOLUTIONS, "global")), "--prune"]
        done = run_command("jobs/embed_catalog.py", *flags, *more, timeout_s=max(280, NUM_FILES / 5))
        assert done.exit_code == 0, done.stderr
        return done

    first = embed().report
    assert first["embedded"] == NUM_FILES
    assert count_windows(store, first["run_id"]) > 0
    before = read_all(store)
    for name in names:
        target = folder / f"disc {name[0]}" / f"new {name[2:]}"
        target.parent.mkdir(exist_ok=True)
        (folder / name).rename(target)
    new_names = {name: f"disc {name[0]}/new {name[2:]}" for name in names}
    (folder / "a copy.wav").write_bytes((folder / new_names[names[0]]).read_bytes())

    report = embed().report
    expected = {"planned": NUM_FILES + 1, "unchanged": NUM_FILES + 1, "moved": NUM_FILES, "copied": 1}
    expected |= {"embedded": 0, "failed": 0, "withheld": 0, "deleted": 0, "closed": True}
    assert {name: report[name] for name in expected} == expected
    assert count_windows(store, report["run_id"]) == 0
    found = read_all(store)
    assert found.pop("a copy.wav") == before[names[0]]
    assert found == {new_names[name]: frames for name, frames in before.items()}
