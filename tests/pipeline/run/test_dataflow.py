import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from musicfm_model.checkpoint import load_checkpoint
from pipeline.catalog.load import load_catalog
from pipeline.config import RunSettings
from pipeline.decode import isolation
from pipeline.decode.audio import DecodedAudio, decode_audio
from pipeline.errors import RunError
from pipeline.location import StoreLocation
from pipeline.run.collect import Collector, mark_as_crashed
from pipeline.run.dataflow import (
    EmbedderActor,
    EmbedderStart,
    choose_placement,
    process_tracks,
    write_or_refuse,
)
from pipeline.run.placement import Placement
from pipeline.run.prepare import build_recipes, plan_run
from pipeline.run.watch import RunWatch
from pipeline.schema import EMBEDDED, PLAN, RESULTS
from pipeline.store.commit import RunCommitter
from pipeline.store.parts import from_ipc
from pipeline.store.tables import create_tables, open_table
from pipeline.store.write import WriteSettings
from tests.corpus import encode_clip, load_music

PLANNED = pa.Table.from_pylist(
    [
        {"track_id": "a", "uri": "/a.mp3", "title": "A", "wanted": ["r4/8hz", "r7/8hz"], "held": [], "stored": []},
        {"track_id": "b", "uri": "/b.mp3", "size_bytes": 9, "wanted": ["r7/global"], "held": [], "stored": []},
    ],
    schema=PLAN,
)


def test_tracks_whose_workers_died_become_failures_of_every_recipe(tmp_path: Path) -> None:
    embedded = mark_as_crashed(PLANNED)
    assert embedded.schema == EMBEDDED
    result = write_or_refuse(embedded, WriteSettings(str(tmp_path), {"r4": 10, "r7": 10}, "run1"))
    assert result.schema == RESULTS
    row = result.to_pylist()[0]
    assert (row["refusal"], row["parts"]) == (None, [])
    failures = from_ipc(row["failures"]).to_pylist()
    assert [(f["track_id"], f["recipe"]) for f in failures] == [("a", "r4"), ("a", "r7"), ("b", "r7")]
    assert {(f["stage"], f["error_type"]) for f in failures} == {("embed", "worker_crashed")}
    assert [f["uri"] for f in failures] == ["/a.mp3", "/a.mp3", "/b.mp3"]
    assert from_ipc(row["tracks"]).num_rows == from_ipc(row["unchanged"]).num_rows == 0
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_refuses_says_so_in_the_result(tmp_path: Path) -> None:
    (tmp_path / "frames").write_bytes(b"in the way")
    row: dict[str, Any] = PLANNED.to_pylist()[1] | {"wanted": ["r7/8hz"], "content_hash": "h"}
    row["features"] = [{"wanted": ["r7/8hz"], "frame_rate_hz": 8.0, "num_frames": 1, "values": [1.0, 2.0]}]
    embedded = pa.Table.from_pylist([row], schema=EMBEDDED)
    result = write_or_refuse(embedded, WriteSettings(str(tmp_path / "frames"), {"r7": 10}, "run1"))
    assert result.schema == RESULTS
    (refused,) = result.to_pylist()
    assert str(tmp_path / "frames") in refused["refusal"]
    assert "\n" not in refused["refusal"]
    assert [refused[name] for name in RESULTS.names if name != "refusal"] == [None] * (len(RESULTS) - 1)


class Holder:
    """Keeps the CPUs that it was given."""

    def ready(self) -> bool:
        return True


@pytest.fixture
def plan(tmp_path: Path, tiny_checkpoint: Path) -> tuple[pa.Table, RunSettings]:
    (tmp_path / "music").mkdir()
    encode_clip(tmp_path / "music" / "a.wav", load_music(seconds=1.0, sample_rate=24_000), 24_000)
    settings = RunSettings(
        StoreLocation(str(tmp_path / "store")), str(tiny_checkpoint), layers=(1,), resolutions=("8hz",)
    )
    create_tables(settings.store)
    catalog = load_catalog(str(tmp_path / "music"))
    recipes = build_recipes(load_checkpoint(str(tiny_checkpoint)), settings)
    return plan_run(catalog, settings, recipes).to_process, settings


def repeat_track(rows: pa.Table, number: int) -> pa.Table:
    """Return the only row's file as so many tracks."""
    (row,) = rows.to_pylist()
    return pa.Table.from_pylist([row | {"track_id": f"{n:03d}"} for n in range(number)], schema=rows.schema)


def process(rows: pa.Table, settings: RunSettings) -> RunCommitter:
    checkpoint = load_checkpoint(settings.checkpoint)
    recipes = build_recipes(checkpoint, settings)
    committer = RunCommitter(settings.store, "run1", recipes)
    process_tracks(rows, checkpoint, recipes, settings, committer, RunWatch())
    return committer


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_cluster_without_room_ends_the_run_and_says_what_it_waits_for(
    plan: tuple[pa.Table, RunSettings], local_ray: None
) -> None:
    rows, settings = plan
    holder: Any = ray.remote(num_cpus=2)(Holder).remote()
    try:
        ray.get(holder.ready.remote(), timeout=60)
        start_s = time.monotonic()
        with pytest.raises(
            RunError,
            match=r"does not advance is decode.*no track finished for 2 s\..*the cluster has free 0 of 2 CPU",
        ):
            process(rows, replace(settings, stall_timeout_s=2.0))
        assert time.monotonic() - start_s < 20
    finally:
        ray.kill(holder)
    assert open_table(settings.store, "tracks").to_pyarrow_table().num_rows == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_results_come_back_while_others_wait_to_be_decoded(
    plan: tuple[pa.Table, RunSettings], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = plan
    many = repeat_track(rows, 80)
    monkeypatch.setattr("pipeline.run.placement.TRACKS_PER_BLOCK_CPU", 1)
    decoded: list[int] = []

    class Watching(Collector):
        def accept(self, result: pa.Table) -> None:
            books = ray.get(self.monitor.read.remote())["placement"]["decode"]
            decoded.append(sum(work["num_tracks"] for work in books.values()))
            super().accept(result)

    monkeypatch.setattr("pipeline.run.dataflow.Collector", Watching)
    assert process(many, settings).counts.embedded == 80
    assert decoded[0] < 80


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_an_actor_may_hold_several_blocks_at_once(
    plan: tuple[pa.Table, RunSettings], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = plan
    (row,) = rows.to_pylist()
    for seconds in (1, 2, 3):
        clip = load_music(seconds=float(seconds), sample_rate=24_000)
        encode_clip(Path(row["uri"]).with_name(f"{seconds}.wav"), clip, 24_000)
    many = pa.Table.from_pylist(
        [
            row | {"track_id": f"{number:03d}", "uri": row["uri"].replace("a.wav", f"{1 + number % 3}.wav")}
            for number in range(40)
        ],
        schema=rows.schema,
    )

    def place(*found: Any) -> Placement:
        return replace(choose_placement(*found), num_actors=1, calls_per_actor=2, tracks_per_block=2)

    monkeypatch.setattr("pipeline.run.dataflow.choose_placement", place)
    committer = process(many, settings)
    committer.close()
    assert committer.counts.embedded == 40
    frames = open_table(settings.store, "frames").to_pyarrow_table()
    assert sorted(frames.column("track_id").to_pylist()) == many.column("track_id").to_pylist()
    lengths = dict(zip(*(frames.column(name).to_pylist() for name in ("track_id", "num_frames")), strict=True))
    assert lengths == {f"{number:03d}": 8 * (1 + number % 3) for number in range(40)}


def decode_in_the_end(data: bytes, max_duration_s: float) -> DecodedAudio:
    """Decode; where the file names another one, once that is there."""
    if data.startswith(b"wait for "):
        awaited, deadline_s = Path(data[9:].decode()), time.monotonic() + 60
        while not awaited.exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        data = awaited.read_bytes()
    return decode_audio(data, max_duration_s)


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_file_that_takes_long_holds_up_no_other(
    plan: tuple[pa.Table, RunSettings], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = plan
    (row,) = rows.to_pylist()
    slow, awaited = Path(row["uri"]).with_name("slow.wav"), Path(row["uri"]).with_name("awaited.wav")
    slow.write_bytes(f"wait for {awaited}".encode())
    first = pa.Table.from_pylist([row | {"track_id": "!first", "uri": str(slow)}], schema=rows.schema)

    def place(*found: Any) -> Placement:  # with room for several tasks of a stage at once
        return replace(choose_placement(*found), num_actors=1, task_num_cpus=0.2, tracks_per_block=1)

    monkeypatch.setattr("pipeline.run.dataflow.choose_placement", place)
    monkeypatch.setattr("pipeline.run.dataflow.decode_audio_in_time", decode_in_the_end)

    class Watching(Collector):
        def accept(self, result: pa.Table) -> None:
            super().accept(result)
            if len(self.committer.done) == 10:  # all others came
                shutil.copy(row["uri"], draft := awaited.with_suffix(".draft"))
                draft.rename(awaited)

    monkeypatch.setattr("pipeline.run.dataflow.Collector", Watching)
    committer = process(pa.concat_tables([first, repeat_track(rows, 10)]), settings)
    committer.close()
    assert open_table(settings.store, "failures").to_pyarrow_table().num_rows == 0
    assert open_table(settings.store, "tracks").to_pyarrow_table().num_rows == 11


class BreaksOnce(EmbedderActor):
    """The first of its kind refuses all that it is given, as a GPU does after a fault of its own."""

    def __init__(self, start: EmbedderStart, monitor: Any, block_bytes: int) -> None:
        super().__init__(start, monitor, block_bytes)
        fell_out = Path(start.settings.store.url) / "fell_out"
        if not fell_out.exists():
            fell_out.touch()
            self.embedder.model.conv.register_forward_pre_hook(refuse)


class NeverWorks(EmbedderActor):
    """A device on which the model does not run."""

    def __init__(self, start: EmbedderStart, monitor: Any, block_bytes: int) -> None:
        super().__init__(start, monitor, block_bytes)
        self.embedder.model.conv.register_forward_pre_hook(refuse)
        self.embedder.check_device()


def refuse(*_: object) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_device_that_fails_costs_a_restart_and_no_track(
    plan: tuple[pa.Table, RunSettings], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = plan
    monkeypatch.setattr("pipeline.run.dataflow.EmbedderActor", BreaksOnce)
    counts = process(repeat_track(rows, 20), settings).counts
    assert (Path(settings.store.url) / "fell_out").exists()
    assert (counts.embedded, counts.failed) == (20, 0)


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_device_on_which_the_model_does_not_run_ends_the_run_and_blames_no_track(
    plan: tuple[pa.Table, RunSettings], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = plan
    monkeypatch.setattr("pipeline.run.dataflow.EmbedderActor", NeverWorks)
    with pytest.raises(RunError, match=r"the model does not run on cpu of .*an illegal memory access"):
        process(rows, settings)
    assert open_table(settings.store, "failures").to_pyarrow_table().num_rows == 0


def never_ends(data: bytes, max_duration_s: float) -> DecodedAudio:
    """Decode all files but long ones, over which it sits until it is stopped."""
    if len(data) > 100_000:
        time.sleep(3600)
    return decode_audio(data, max_duration_s)


def decode_impatiently(data: bytes, max_duration_s: float) -> DecodedAudio:
    """Decode in a worker whose decoder may not end and has a second for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "DECODE_TIMEOUT_S", 1.0)
        patch.setattr(isolation, "decode_audio", never_ends)
        return isolation.decode_audio_in_time(data, max_duration_s)


def decode_impatiently_apart(data: bytes, max_duration_s: float) -> DecodedAudio:
    child = isolation._keep_child()
    child.timeout_s = 1.0
    child.start()
    if len(data) > 100_000:
        assert child._process is not None
        assert child._process.pid is not None
        os.kill(child._process.pid, signal.SIGSTOP)
    return isolation.decode_audio_apart(data, max_duration_s)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_file_that_keeps_its_decoder_for_ever_costs_a_row(
    plan: tuple[pa.Table, RunSettings], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = plan
    (row,) = rows.to_pylist()
    endless = Path(row["uri"]).with_name("endless.wav")
    encode_clip(endless, load_music(seconds=5.0, sample_rate=24_000), 24_000)
    last = pa.Table.from_pylist([row | {"track_id": "endless", "uri": str(endless)}], schema=rows.schema)
    monkeypatch.setattr("pipeline.run.dataflow.decode_audio_in_time", decode_impatiently)
    monkeypatch.setattr("pipeline.run.dataflow.decode_audio_apart", decode_impatiently_apart)
    committer = process(pa.concat_tables([repeat_track(rows, 10), last]), settings)
    committer.close()
    assert (committer.counts.embedded, committer.counts.failed) == (10, 1)
    (failure,) = open_table(settings.store, "failures").to_pyarrow_table().to_pylist()
    assert (failure["track_id"], failure["stage"], failure["error_type"]) == (
        "endless",
        "decode",
        "worker_crashed",
    )
    assert "did not come to an end" in failure["error_message"]
