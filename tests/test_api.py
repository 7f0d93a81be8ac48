"""What a program sees of the package: light to import, whole in what it returns, no trace left behind."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.data

import pipeline
import pipeline.logs
from pipeline import FeatureStore, RunReport, UsageError, embed_catalog
from pipeline.store.check import check_store
from tests.corpus import encode_clip, load_music

ROOT = Path(__file__).resolve().parents[1]
SLOW = ("torch", "ray", "pyarrow", "pandas", "deltalake", "fsspec")


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    for name in ("a", "b", "c"):
        encode_clip(folder / f"{name}.wav", load_music(seconds=1.0, sample_rate=24_000), 24_000)
    return folder


def test_importing_it_loads_nothing_slow() -> None:
    look = f"import sys, pipeline; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_public_name_is_there_and_described(name: str) -> None:
    found = getattr(pipeline, name)
    assert name in dir(pipeline)
    if name != "__version__":
        assert found.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'embed_catalogue'"):
        pipeline.embed_catalogue  # noqa: B018


def test_the_version_is_the_packages() -> None:
    assert version("music-feature-store") == pipeline.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pipeline.__version__"}


def read_process() -> dict[str, Any]:
    """Return what a library should leave as it was."""
    context = ray.data.DataContext.get_current()
    names = ("", "ray", "ray.data", "ray.data._internal.progress", "ray._private.worker", "pipeline")
    return {
        "context": context,
        "settings": {name: repr(value) for name, value in vars(context).items()},
        "filters": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "environment": dict(os.environ),
        "levels": {name: logging.getLogger(name).level for name in names},
        "handlers": {name: list(logging.getLogger(name).handlers) for name in names},
        "run_id": pipeline.logs.RUN_ID.get(),
    }


@pytest.mark.ray
def test_a_run_returns_what_it_did_and_leaves_no_trace(
    music: Path, tiny_checkpoint: Path, tmp_path: Path, local_ray: None
) -> None:
    before = read_process()
    report = embed_catalog(
        music, store=tmp_path / "store", checkpoint=tiny_checkpoint, layers=2, resolutions="8hz"
    )
    assert read_process() == before
    assert isinstance(report, RunReport)
    assert (report.counts.embedded, report.closed) == (3, True)
    assert Path(str(report.page)).exists()
    facts = json.loads(Path(str(report.page)).with_suffix(".json").read_text())
    assert sum(facts["phases"].values()) == pytest.approx(facts["seconds"], abs=1e-6)
    assert facts["seconds"] == pytest.approx(report.seconds, abs=1.0)  # the report itself is not in it
    assert list(facts["phases"])[:2] == ["listing the catalog", "loading the checkpoint"]
    assert list(facts["phases"])[-3:] == ["starting the model", "embedding", "committing"]
    assert check_store(FeatureStore(str(tmp_path / "store")).location, deep=True).problems == []
    rows = pa.table({"path": [str(music / "a.wav"), str(music / "d.wav")], "title": ["A", "D"]})
    encode_clip(music / "d.wav", load_music(seconds=2.0, sample_rate=24_000), 24_000)
    again = embed_catalog(rows, store=tmp_path / "store", checkpoint=tiny_checkpoint, layers=2, resolutions="8hz")
    assert (again.counts.unchanged, again.counts.embedded) == (1, 1)
    titles = FeatureStore(str(tmp_path / "store")).tracks(["track_id", "title"]).to_pylist()
    assert {row["track_id"]: row["title"] for row in titles} == {
        f"{music}/a.wav": "A",
        f"{music}/d.wav": "D",  # a table has no folder that its files lie in
        "a.wav": None,
        "b.wav": None,
        "c.wav": None,
    }


@pytest.mark.ray
def test_two_runs_in_two_threads_both_finish(
    music: Path, tiny_checkpoint: Path, tmp_path: Path, local_ray: None
) -> None:
    shutil.copytree(music, tmp_path / "more")
    shutil.copy(music / "a.wav", tmp_path / "more" / "e.wav")
    found: dict[str, RunReport] = {}

    def run(name: str) -> None:
        found[name] = embed_catalog(
            tmp_path / name, store=tmp_path / f"store of {name}", checkpoint=tiny_checkpoint, layers=2
        )

    threads = [threading.Thread(target=run, args=(name,)) for name in ("music", "more")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(250)
    assert {name: report.counts.embedded for name, report in found.items()} == {"music": 3, "more": 4}
    for name, number in (("music", 3), ("more", 4)):
        store = FeatureStore(str(tmp_path / f"store of {name}"))
        assert store.tracks().num_rows == number
        assert check_store(store.location, deep=True).problems == []


def test_a_setting_that_is_none_is_told_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the nearest is resolutions"):
        embed_catalog(tmp_path, store=tmp_path / "store", checkpoint="msd", resolution="8hz")
    assert not (tmp_path / "store").exists()
