"""A probe on Ray Train: two workers find what one does."""

from pathlib import Path

import pytest

pytest.importorskip("mir_eval", reason="mir_eval is not installed: pip install '.[probe]'")

from pipeline.errors import UsageError
from pipeline.probing.annotations import Annotation, Annotations
from pipeline.probing.probe import ProbeSettings, run_probe
from pipeline.training.shared_probe import run_shared_probe
from tests.pipeline.probing.cases import is_positive, make_store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def test_two_workers_are_as_one(tmp_path: Path) -> None:
    known = make_store(tmp_path, 80)
    names = [f"track {number:03}" for number in range(80)]
    said = {
        name: Annotation(
            (str(is_positive(known, name)),), split=("train", "train", "train", "valid", "test")[number % 5]
        )
        for number, name in enumerate(names)
    }
    settings = ProbeSettings(known.location, Annotations("classification", tracks=said), scratch=str(tmp_path))
    one, two = run_probe(settings), run_shared_probe(settings, 2)
    assert two.fit.losses == pytest.approx(one.fit.losses, rel=1e-3)
    assert two.metrics == one.metrics
    assert two.num_tracks == one.num_tracks == {"train": 48, "valid": 16, "test": 16}
    assert [path.name for path in tmp_path.iterdir()] == ["store"]  # nothing else is left


def test_a_mistake_is_told_before_any_worker_starts(tmp_path: Path) -> None:
    known = make_store(tmp_path, 4)
    said = {"nobody": Annotation(("x",))}
    with pytest.raises(UsageError, match="no track in both"):
        run_shared_probe(ProbeSettings(known.location, Annotations("classification", tracks=said)), 2)
