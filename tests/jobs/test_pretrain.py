import json
from pathlib import Path
from typing import Any

import pytest

from jobs.pretrain import main
from musicfm_model import load_checkpoint
from tests.corpus import encode_clip, load_music

SMALL = [
    *("--embed-dim", "16", "--num-layers", "2", "--num-heads", "2", "--ffn-dim", "16", "--conv-dim", "4"),
    *("--codebook-size", "64", "--num-warmup-steps", "2", "--masked-s", "4", "--contrast-s", "8"),
    *("--crop-lengths-s", "2", "--report-every", "1", "--measure-every", "0", "--save-every", "2"),
]


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    for number in range(3):
        encode_clip(folder / f"{number}.flac", load_music(seconds=5.0 + number, sample_rate=24_000), 24_000)
    (folder / "broken.flac").write_bytes(b"no music")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, *SMALL]) == 0
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_model_comes_out_of_a_folder_and_a_broken_file_costs_a_row(
    music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--audio", str(music), "--held-out-share", "0.01", "--out", str(tmp_path), "--name", "first")
    line = run(capsys, *where, "--num-steps", "3")
    assert (line["planned"], line["prepared"], line["failed"], line["steps"]) == (4, 3, 1, 3)
    config = load_checkpoint(line["checkpoint"]).config
    assert (config.embed_dim, config.num_heads, config.ffn_dim, config.codebook_size) == (16, 2, 16, 64)
    # The run has ended: the same command finds its corpus and its state, and does nothing.
    before = (tmp_path / "first" / "state.pt").read_bytes()
    assert run(capsys, *where, "--num-steps", "3") == line
    assert (tmp_path / "first" / "state.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--embed-dim", "20", "--num-heads", "8"], "a multiple of twice --num-heads"),
        (["--crop-lengths-s", "1.5"], "whole multiples of 0.4 s"),
        (["--num-slots", "3", "--num-workers", "2"], "a multiple of --num-workers"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--audio", str(music), "--out", str(tmp_path), "--name", "x", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
