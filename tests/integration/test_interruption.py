"""A run that is told to end, by a scheduler's SIGTERM (`ray job stop`, Slurm, Kubernetes) as by a person's ^C."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from tests.corpus import encode_clip, load_music
from tests.processes import ROOT, run_command

NUM_TRACKS = 400  # more than a run can finish before it is told to end

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def start_job(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["starting Ray", "starting the model"])
def test_a_run_that_is_told_to_end_while_it_starts_ends_in_one_line(
    moment: str, number: signal.Signals, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "music").mkdir()
    encode_clip(tmp_path / "music" / "0.wav", load_music(seconds=2.0, sample_rate=24_000), 24_000)
    arguments = ["jobs/embed_catalog.py", "--audio", str(tmp_path / "music"), "--store", str(tmp_path / "store")]
    job = start_job([*arguments, "--checkpoint", str(tiny_checkpoint), "--layer", "2"])
    assert job.stderr is not None
    for line in job.stderr:
        if moment in line:
            break
    time.sleep(1.0)
    job.send_signal(number)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130, errors
    assert errors.splitlines()[-1].endswith("interrupted; what was committed is kept: run the same command again")
    assert "Traceback" not in errors
    if moment == "starting the model":  # before that, Ray's own handler may stand before ours for a moment
        assert "SIGTERM received" not in errors


def test_a_run_that_is_told_to_end_keeps_what_it_has_and_ends_in_one_line(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    audio, store = tmp_path / "music", tmp_path / "store"
    audio.mkdir()
    clip = load_music(seconds=2.0, sample_rate=24_000)
    for number in range(NUM_TRACKS):  # no two alike: copies would be taken over, not embedded
        encode_clip(audio / f"{number}.wav", np.roll(clip, number, axis=0), 24_000)
    arguments = ["jobs/embed_catalog.py", "--audio", str(audio), "--store", str(store), "--layer", "2"]
    arguments += ["--checkpoint", str(tiny_checkpoint), "--resolutions", "8hz,global"]
    job = start_job(arguments)
    deadline_s = time.monotonic() + 120
    while len(list(store.rglob("part-*.parquet"))) < 4 and job.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130, errors
    assert errors.splitlines()[-1].endswith("interrupted; what was committed is kept: run the same command again")
    assert "Traceback" not in errors
    assert "Ray is not initialized" not in errors
    assert "SIGTERM received" not in errors

    # Well within the minute between two commits: what was finished was committed on the way out.
    kept = DeltaTable(store / "tracks").to_pyarrow_table(columns=["track_id"]).num_rows
    assert 0 < kept < NUM_TRACKS
    again = run_command(*arguments)
    assert again.exit_code == 0, again.stderr
    assert (again.report["unchanged"], again.report["embedded"]) == (kept, NUM_TRACKS - kept)
    assert len(list((store / "reports").glob("*.html"))) == 2
