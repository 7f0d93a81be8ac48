"""The nightly refresh of a thousand tracks: it costs what changed."""

import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from pipeline.store.read import FeatureStore
from tests.corpus import load_music
from tests.processes import Run, run_command

pytestmark = pytest.mark.slow

NUM_TRACKS = 1000
NUM_SAMPLES = 6_000  # a quarter of a second
CHANGED, REMOVED, ADDED = "0300.wav", "0700.wav", "1000.wav"


def write_clip(folder: Path, track_id: str, samples: np.ndarray) -> None:
    path = folder / track_id
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes((samples * 32_767).astype("<i2").tobytes())


def take_clip(music: np.ndarray, number: int) -> np.ndarray:
    start = number * 500
    return music[start : start + NUM_SAMPLES]


def read_vectors(store: str) -> Mapping[str, bytes]:
    frames = FeatureStore(store).to_arrow("16hz")
    return {row["track_id"]: np.array(row["embeddings"], np.float32).tobytes() for row in frames.to_pylist()}


@pytest.mark.timeout(900)
def test_one_changed_one_removed_one_added_of_a_thousand(tmp_path: Path, tiny_checkpoint: Path) -> None:
    music = load_music(seconds=NUM_TRACKS * 500 / 24_000 + 1, sample_rate=24_000)
    audio, store = tmp_path / "music", str(tmp_path / "store")
    audio.mkdir()
    for number in range(NUM_TRACKS):
        write_clip(audio, f"{number:04d}.wav", take_clip(music, number))

    def refresh() -> Run:
        return run_command(
            "jobs/embed_catalog.py",
            *("--audio", str(audio), "--store", store, "--checkpoint", str(tiny_checkpoint)),
            *("--layers", "2", "--prune"),
        )

    first = refresh()
    assert (first.exit_code, first.report["embedded"]) == (0, NUM_TRACKS), first.stderr
    before = read_vectors(store)
    parts = set(DeltaTable(f"{store}/frames").file_uris())
    write_clip(audio, CHANGED, take_clip(music, 0)[::-1])
    write_clip(audio, ADDED, take_clip(music, 1)[::-1])
    (audio / REMOVED).unlink()
    second = refresh()
    counts = {name: second.report[name] for name in ("embedded", "deleted", "unchanged", "failed")}
    assert counts == {"embedded": 2, "deleted": 1, "unchanged": NUM_TRACKS - 2, "failed": 0}
    print(f"bytes written: first run {first.report['bytes_written']}, refresh {second.report['bytes_written']}")
    assert parts < set(DeltaTable(f"{store}/frames").file_uris())
    after = read_vectors(store)
    assert set(after) == set(before) - {REMOVED} | {ADDED}
    assert [track_id for track_id in before if before[track_id] != after.get(track_id)] == [CHANGED, REMOVED]

    maintained = run_command("jobs/maintain_store.py", "--store", store, "--vacuum", "0", "--dead-share", "0")
    assert maintained.exit_code == 0, maintained.stderr
    assert all(row["num_dead_rows"] == 0 for row in maintained.report["partitions"])
    stored = DeltaTable(f"{store}/frames").to_pyarrow_table(columns=["track_id", "resolution"])
    assert stored.num_rows == 5 * NUM_TRACKS
    assert REMOVED not in stored.column("track_id").to_pylist()
    on_disk = {
        str(path) for path in (tmp_path / "store" / "frames").rglob("*.parquet") if "_delta_log" not in path.parts
    }
    assert on_disk == {uri.removeprefix("file://") for uri in DeltaTable(f"{store}/frames").file_uris()}
    assert read_vectors(store) == after
    assert run_command("jobs/check_store.py", "--store", store, "--deep").exit_code == 0
