from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.convert_checkpoint import main
from musicfm_model.checkpoint import load_checkpoint
from tests.checkpoints import STATS, TINY, write_random_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.pt"
    write_random_checkpoint(path, TINY, seed=1)
    return path


def test_the_twin_has_the_same_digest(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "twin.safetensors")

    assert main([str(source), target]) == 0

    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["target"] == target
    assert report["sha256"] == load_checkpoint(str(source)).sha256 == load_checkpoint(target).sha256
    assert (report["mean"], report["std"]) == tuple(STATS.values())
    assert (report["num_layers"], report["embed_dim"]) == (TINY.num_layers, TINY.embed_dim)


def test_statistics_can_be_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"melspec_2048_mean": 1, "melspec_2048_std": 2}')

    assert main([str(source), "--stats", str(tmp_path / "other.json"), str(tmp_path / "twin.safetensors")]) == 0

    twin = load_checkpoint(str(tmp_path / "twin.safetensors"))
    assert (twin.mean, twin.std) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt", "twin.safetensors"], "nothing at missing.pt"),
        (["source.pt", "twin.pt"], "ends in .safetensors"),
        (["source.pt", "--stats", "missing.json", "twin.safetensors"], "nothing at missing.json"),
    ],
)
def test_a_mistake_is_one_line(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(source.parent)

    assert main(arguments) == 2

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert message in output.err


def test_a_missing_argument_is_a_mistake_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["source.pt"])

    assert caught.value.code == 2
    assert "TARGET" in capsys.readouterr().err
