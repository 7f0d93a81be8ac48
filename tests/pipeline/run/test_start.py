import os
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from musicfm_model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.config import RunSettings
from pipeline.errors import CatalogError, CheckpointError
from pipeline.location import StoreLocation
from pipeline.run.cluster import start_ray_early
from pipeline.run.start import (
    _gather,
    _load_behind_others,
    _load_model,
    _start_early,
    call_aside,
    seems_loadable,
    start_run,
)
from pipeline.run.watch import RunWatch
from pipeline.schema import CATALOG
from tests.corpus import encode_clip, load_music
from tests.processes import run_command


def test_what_is_called_aside_comes_back_or_is_raised() -> None:
    here = threading.get_ident()
    assert call_aside(threading.get_ident).result(5) != here

    def fail() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        call_aside(fail).result(5)


def test_a_file_is_known_for_a_checkpoint_at_a_glance(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(tiny_checkpoint))
    save_checkpoint(checkpoint, str(tmp_path / "tiny.safetensors"))
    for there in (tiny_checkpoint, tmp_path / "tiny.safetensors", "msd", "s3://bucket/model.pt"):
        assert seems_loadable(str(there))
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)))
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for other in (tmp_path / "noise.pt", tmp_path / "empty.safetensors", tmp_path / "missing.pt", tmp_path):
        assert not seems_loadable(str(other))


def test_a_catalog_that_is_none_is_told_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def load() -> pa.Table:
        raise CatalogError("expected audio, found none")

    was_up = ray.is_initialized()
    with pytest.raises(CatalogError, match="found none"):
        start_run(load, RunSettings(StoreLocation(str(tmp_path / "store")), "nowhere.pt"))
    assert ray.is_initialized() == was_up
    assert capsys.readouterr().err == "listing the catalog\n"
    assert not (tmp_path / "store").exists()


@pytest.mark.ray
def test_a_mistake_leaves_ray_as_it_was(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = RunSettings(StoreLocation(str(tmp_path / "store")), str(tmp_path / "nowhere.pt"))
    catalog = pa.Table.from_pylist([{"track_id": "a", "uri": "/a.mp3"}], schema=CATALOG)
    node_id = ray.get_runtime_context().get_node_id()
    with pytest.raises(CheckpointError, match=r"nowhere\.pt"):
        start_run(lambda: catalog, settings)
    assert ray.get_runtime_context().get_node_id() == node_id
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "listing the catalog"
    assert said[1] == f"1 tracks listed; loading the checkpoint {settings.checkpoint}"


@pytest.mark.slow
@pytest.mark.ray
def test_a_mistake_that_shows_after_ray_was_started_ahead_is_one_line(tmp_path: Path) -> None:
    encode_clip(tmp_path / "a.wav", load_music(seconds=1.0), 44_100)
    (tmp_path / "half.pt").write_bytes(
        b"PK\3\4 and no archive after all"
    )  # taken for a checkpoint until it is loaded
    flags = ["--audio", str(tmp_path / "a.wav"), "--store", str(tmp_path / "store")]
    done = run_command("jobs/embed_catalog.py", *flags, "--checkpoint", str(tmp_path / "half.pt"))
    assert (done.exit_code, done.stdout) == (2, "")
    listing, loading, mistake = done.stderr.splitlines()
    assert listing == "listing the catalog"
    assert loading.startswith("1 tracks listed; loading the checkpoint")
    assert mistake.startswith("embed_catalog.py: error: ")


@pytest.mark.ray
def test_a_ray_that_others_had_started_is_not_ended(local_ray: None) -> None:
    end = start_ray_early()
    end()
    assert ray.is_initialized()


def test_a_call_aside_does_not_hold_the_caller() -> None:
    began_s = time.monotonic()
    future = call_aside(lambda: time.sleep(0.5))
    assert time.monotonic() - began_s < 0.4
    future.result(5)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_a_module_is_loaded_behind_others_by_a_thread_that_alone_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "says_how_nice.py").write_text(
        "import os, threading\nNICENESS = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    call_aside(partial(_load_behind_others, "says_how_nice")).result(10)
    assert max(10, before) == sys.modules.pop("says_how_nice").NICENESS
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    with pytest.raises(ModuleNotFoundError, match="is_not_there"):
        call_aside(partial(_load_behind_others, "is_not_there")).result(10)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded, in order; nothing is."""
    steps: list[str] = []
    monkeypatch.setattr("pipeline.run.start._HEAD_START_S", 0.0)
    monkeypatch.setattr("pipeline.run.start._DECISION_TIMEOUT_S", 0.05)
    monkeypatch.setattr("pipeline.run.start._load_behind_others", lambda module: steps.append(f"{module} behind"))
    monkeypatch.setattr("pipeline.run.start.import_module", steps.append)
    monkeypatch.setattr("pipeline.run.prepare.load_model", lambda settings: settings.checkpoint)
    return steps


def decide(starts: bool | None) -> Future[bool]:
    future: Future[bool] = Future()
    if starts is not None:
        future.set_result(starts)
    return future


@pytest.mark.parametrize(
    ("starts", "steps"), [(True, ["run behind", "run"]), (False, ["run"]), (None, ["run"])], ids=repr
)
def test_modules_are_loaded_behind_a_ray_that_starts_and_at_once_without(
    starts: bool | None, steps: list[str], loading: list[str], tmp_path: Path
) -> None:
    settings = RunSettings(StoreLocation(str(tmp_path)), "msd")
    assert str(_load_model(settings, "run", decide(True), decide(starts))) == "msd"
    assert loading == steps


def test_no_model_is_loaded_for_a_catalog_that_is_none(loading: list[str], tmp_path: Path) -> None:
    with pytest.raises(CatalogError):
        _load_model(RunSettings(StoreLocation(str(tmp_path)), "msd"), "run", decide(False), decide(False))
    assert loading == []


def test_ids_stand_behind_the_catalogs_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.run.start._start_early", lambda *_: lambda: None)
    monkeypatch.setattr("pipeline.run.start._load_model", lambda *_: "a checkpoint")
    catalog = pa.Table.from_pylist([{"track_id": "b/a.mp3", "uri": "/b/a.mp3"}], schema=CATALOG)
    settings = RunSettings(StoreLocation(str(tmp_path)), "msd")
    for name, track_id in ((None, "b/a.mp3"), ("live", "live/b/a.mp3")):
        with _gather(lambda: catalog, replace(settings, catalog=name), RunWatch(), "json") as (found, _):
            assert found["track_id"].to_pylist() == [track_id]
            assert found["uri"].to_pylist() == ["/b/a.mp3"]


@pytest.mark.parametrize(("is_listed", "checkpoint"), [(False, "msd"), (True, "missing.pt")])
def test_nobody_waits_for_a_ray_that_is_not_started(is_listed: bool, checkpoint: str, tmp_path: Path) -> None:
    listed: Future[bool] = Future()
    listed.set_result(is_listed)
    starts_ray: Future[bool] = Future()
    was_up = ray.is_initialized()
    _start_early(RunSettings(StoreLocation(str(tmp_path / "store")), checkpoint), listed, starts_ray)()
    assert starts_ray.result(0) is False
    assert ray.is_initialized() == was_up
