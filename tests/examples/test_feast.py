"""Feast needs an older pandas than the project, so it runs in an environment of its own: ``make feast``."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.location import StoreLocation
from pipeline.probing.predict import predict
from pipeline.store.read import FeatureStore
from tests.pipeline.probing.cases import expect_scores, make_head, make_store
from tests.stores import KnownStore

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("FEAST_PYTHON", ROOT / ".venv-feast" / "bin" / "python"))

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no environment with Feast: `make feast` makes one")


def serve(folder: Path, store: str, *track_ids: str) -> dict[str, Any]:
    """Run the example in its folder, and return its last line."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(PYTHON), "serve_tracks.py", store, *track_ids],
        cwd=folder,
        env={**environment, "FEAST_USAGE": "False"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    served: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return served


def test_the_view_materialises_and_serves_what_the_store_holds(tmp_path: Path) -> None:
    folder = tmp_path / "feast"
    shutil.copytree(ROOT / "examples" / "feast", folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({"a": "old", "b": "same"})
    first = serve(folder, known.location.url, "a", "b", "c")
    known.run({"a": "new", "b": "same", "c": "later"})
    second = serve(folder, known.location.url, "c", "a", "nobody")
    assert first["embedding"][2] is None  # not embedded yet

    store = FeatureStore(known.location.url)
    live = {row["track_id"]: row for row in store.to_arrow("global").to_pylist()}
    assert second["track_id"] == ["c", "a", "nobody"]
    for position, track_id in enumerate(["c", "a"]):
        assert np.array_equal(second["embedding"][position], live[track_id]["embedding"])
        assert second["recipe"][position] == live[track_id]["recipe"]
        assert second["content_hash"][position] == live[track_id]["content_hash"]
        assert second["title"][position] == track_id.upper()
    assert second["embedding"][2] is None
    assert first["embedding"][0] != second["embedding"][1]  # its content changed, and so did what is served
    assert first["predictions"] == second["predictions"] == {}


def test_what_heads_say_is_served_a_list_a_track(tmp_path: Path) -> None:
    folder = tmp_path / "feast"
    shutil.copytree(ROOT / "examples" / "feast", folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    known, head = make_store(tmp_path, 3), make_head()
    predict(known.location, head)
    served = serve(folder, known.location.url, "track 002", "nobody")["predictions"]
    assert served["head"] == [head.head_id] * 2
    assert sorted(served["labels"][0]) == sorted(head.spec.labels)
    scores = dict(zip(served["labels"][0], served["scores"][0], strict=True))
    expected = dict(zip(head.spec.labels, expect_scores(head, known, "track 002"), strict=True))
    assert scores == pytest.approx(expected, abs=1e-5)
    assert (served["task"][0], served["starts_s"][0]) == ("tagging", [])
    assert served["labels"][1] is None
