import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.location import StoreLocation
from pipeline.store.read import FeatureStore
from pipeline.store.segments import SEGMENT_S, plan_segments
from tests.stores import EMBED_DIM, KnownStore

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "read_with_spark.py"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="Spark needs Java, and its package: pip install '.[spark]'",
)
def test_spark_reads_live_frames_as_the_project_does(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({"a": "old", "b": "same", "gone": "soon"})
    known.run(
        {"a": "new", "b": "same", "long": "long mix"}, prune=True
    )  # what Spark must not show: old frames of a, those of gone
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), known.location.url],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    header, *shown = rows
    assert header == ["track_id", "resolution", "start_frame", "num_frames", "embed_dim", "first_value"]
    store, expected = FeatureStore(known.location.url), {}
    for resolution in ("16hz", "0.5hz"):
        for row in store.frames(["a", "b", "gone", "long"], resolution).to_pylist():
            for frames in plan_segments(row["num_frames"], row["frame_rate_hz"]):
                first = row["embeddings"][frames.start][0]
                expected[row["track_id"], resolution, frames.start] = (len(frames), EMBED_DIM, first)
    assert ("long", "16hz", 16 * SEGMENT_S) in expected
    found = {(row[0], row[1], int(row[2])): (int(row[3]), int(row[4]), float(row[5])) for row in shown}
    assert found.keys() == expected.keys()
    assert all(np.allclose(found[key], expected[key], atol=1e-6) for key in expected)
