import json
from pathlib import Path
from typing import Any

import pytest

from jobs.plan import main
from tests.corpus import encode_clip, load_music

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def arguments(tmp_path: Path, tiny_checkpoint: Path) -> list[str]:
    (tmp_path / "music").mkdir()
    for number in range(4):
        music = load_music(seconds=3.0 + number, sample_rate=24_000)
        encode_clip(tmp_path / "music" / f"{number}.flac", music, 24_000)
    return [
        *("--audio", str(tmp_path / "music"), "--store", str(tmp_path / "store")),
        *("--checkpoint", str(tiny_checkpoint), "--layer", "2"),
    ]


def plan(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    assert main(arguments) == 0
    said = capsys.readouterr().out
    line: dict[str, Any] = json.loads(said.splitlines()[-1])
    return said, line["estimate"]


def test_a_plan_is_told_and_kept(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said, estimate = plan([*arguments, "--price-core-hour", "3600", "--price-gb-month", "1"], capsys)
    assert estimate["num_tracks"] == estimate["num_tried"] == 4
    assert estimate["cost"] == pytest.approx(estimate["seconds"] * estimate["num_cpus"])
    assert "the bottleneck is" in said
    kept = json.loads((tmp_path / "store" / "reports" / "plan.json").read_text())
    assert {name: kept[name] for name in estimate} == estimate
    assert kept["base_version"] == 0
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["reports"]


def test_another_gpu_can_be_reckoned_with(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, estimate = plan([*arguments, "--gpu", "h100", "--price-gpu-hour", "3600"], capsys)
    assert (estimate["device"], estimate["machine"], estimate["num_actors"]) == ("cuda", "H100", 1)
    assert estimate["cost"] == pytest.approx(estimate["seconds"])
    assert "GPU-hours" in said
    assert not (tmp_path / "store").exists()  # no run here will be like it
