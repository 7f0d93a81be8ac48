"""What the driver knows of a real run, and what its log says."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data

from musicfm_model.checkpoint import load_checkpoint
from pipeline.catalog.load import load_catalog
from pipeline.config import RunSettings
from pipeline.location import StoreLocation
from pipeline.run.dataflow import process_tracks
from pipeline.run.prepare import build_recipes, plan_run
from pipeline.run.watch import RunWatch
from pipeline.store.commit import RunCommitter
from pipeline.store.tables import create_tables
from tests.corpus import encode_clip, load_music

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def settings(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[RunSettings]:
    (tmp_path / "music").mkdir()
    for number in range(11):  # over one block
        music = load_music(seconds=1.0 + 0.1 * number, sample_rate=24_000)
        encode_clip(tmp_path / "music" / f"{number:02d}.wav", music, 24_000)
    (tmp_path / "music" / "broken.mp3").write_bytes(b"no music")
    settings = RunSettings(
        StoreLocation(str(tmp_path / "store")), str(tiny_checkpoint), layers=(1, 2), resolutions=("8hz", "global")
    )
    create_tables(settings.store)
    yield settings
    assert "results" not in {thread.name for thread in threading.enumerate()}


def test_a_run_is_known_stage_by_stage(
    settings: RunSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = load_checkpoint(settings.checkpoint)
    recipes = build_recipes(checkpoint, settings)
    rows = plan_run(load_catalog(str(tmp_path / "music")), settings, recipes).to_process
    committer, watch = RunCommitter(settings.store, "run1", recipes), RunWatch()
    held: list[float] = []
    monkeypatch.setattr(committer.writer, "renew_lease", lambda: held.append(watch.age_s()))
    with caplog.at_level(logging.WARNING):
        process_tracks(rows, checkpoint, recipes, settings, committer, watch)
    assert (committer.counts.embedded, committer.counts.failed) == (11, 1)
    assert max(np.diff([0.0, *held, watch.age_s()])) < 30.0  # others hear of the run while nothing is committed
    audio_s = sum(1.0 + 0.1 * number for number in range(11))
    course = watch.throughput.read()
    assert sum(course["tracks"]) == 12
    assert sum(course["audio_s"]) == pytest.approx(audio_s, abs=0.01)  # once, however many recipes
    placement = watch.books["placement"]
    for stage in ("decode", "embed", "write"):
        (work,) = placement[stage].values()
        assert work["num_tracks"] == 12, stage
        assert work["num_tasks"] >= 2
        assert work["seconds"] > 0
    (embed,) = placement["embed"].values()
    assert embed["audio_s"] == pytest.approx(audio_s, abs=0.01)
    assert embed["num_windows"] == 11
    (decode,) = placement["decode"].values()
    assert decode["bytes_read"] == sum(path.stat().st_size for path in (tmp_path / "music").iterdir())
    (write,) = placement["write"].values()
    assert sum(write["bytes_written"].values()) > 0
    assert set(watch.books["devices"].values()) == {"cpu"}
    assert watch.books["waiting"] == {"decode": 0, "embed": 0, "write": 0}
    times_s = (watch.work_began_s, watch.first_result_s, watch.work_ended_s)
    assert list(times_s) == sorted(times_s)  # type: ignore[type-var]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("embedding: 100% 12/12 [")
    assert "1 failed" in last
    assert "does not advance" not in caplog.text


def test_a_run_that_is_left_stops_what_it_began(settings: RunSettings, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(settings.checkpoint)
    recipes = build_recipes(checkpoint, settings)
    rows = plan_run(load_catalog(str(tmp_path / "music")), settings, recipes).to_process

    class Interrupted(RunCommitter):
        def accept(self, result: pa.Table) -> Any:
            raise KeyboardInterrupt(result)

    context = ray.data.DataContext.get_current()
    before = list(context.custom_execution_callback_classes)
    with pytest.raises(KeyboardInterrupt):
        process_tracks(
            rows, checkpoint, recipes, settings, Interrupted(settings.store, "run1", recipes), RunWatch()
        )
    assert "results" not in {thread.name for thread in threading.enumerate()}
    assert context.custom_execution_callback_classes == before
    assert ray.data.range(3).count() == 3  # a later pass is not stopped by the one that was left
