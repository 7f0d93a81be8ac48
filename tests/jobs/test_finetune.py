import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from jobs.embed_catalog import main as embed
from jobs.finetune import main
from pipeline.probing.heads import load_head
from tests.pipeline.training.tones import KINDS, RATE, make_tone

FLAGS = [
    *("--task", "classification", "--num-steps", "4", "--num-warmup-steps", "1", "--window-s", "1"),
    *("--num-crops", "2", "--report-every", "1", "--measure-every", "2", "--save-every", "2"),
]
SPLITS = ("train", "train", "train", "train", "valid", "valid", "test", "test")


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tones, a file that is none, and what is said of them and of a track that is not there."""
    folder = tmp_path_factory.mktemp("tones")
    rows = ["track_id,label,split", "gone.wav,rising,train", "broken.wav,rising,train"]
    for number, split in enumerate(SPLITS):
        kind = KINDS[number % 2]
        soundfile.write(folder / f"{number}.wav", make_tone(number, kind).numpy(), RATE)
        rows.append(f"{number}.wav,{kind},{split}")
    soundfile.write(folder / "unlabelled.wav", make_tone(99, "rising").numpy(), RATE)
    (folder / "broken.wav").write_bytes(b"no music")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    assert main([*arguments, *FLAGS]) == 0
    said = capsys.readouterr().out
    line: dict[str, Any] = json.loads(said.splitlines()[-1])
    return line, said


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_checkpoint_and_its_head_come_out_and_embed(
    tones: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [
        *("--audio", str(tones), "--annotations", str(tones / "labels.csv"), "--out", str(tmp_path / "out")),
        *("--checkpoint", str(tiny_checkpoint), "--name", "first"),
    ]
    line, said = run(capsys, *where)
    assert (line["planned"], line["prepared"], line["failed"]) == (9, 8, 1)
    assert (line["num_train"], line["num_valid"], line["num_test"]) == (4, 2, 2)
    assert line["left_out"] == {"tracks that the catalog does not have": 1}
    assert "gone.wav" in said
    assert "failed: broken.wav" in said
    assert {"value", "low", "high"} == set(line["metrics"]["accuracy"])
    assert set(line["baselines"]) == {"frozen", "chance"}
    state = (tmp_path / "out/first/state.pt").read_bytes()
    again, _ = run(capsys, *where)  # the run has ended: nothing is trained, and the figures are the same
    assert (tmp_path / "out/first/state.pt").read_bytes() == state
    assert again["metrics"] == line["metrics"]
    store = tmp_path / "store"
    layer = line["recipe"].split("-")[1].removeprefix("l")
    assert embed(
        [
            *("--audio", str(tones), "--store", str(store), "--checkpoint", line["checkpoint"]),
            *("--layers", layer, "--resolutions", "global"),
        ]
    ) in (0, 1)  # 1 where a file is broken
    assert (store / "tracks" / f"recipe={line['recipe']}").is_dir()
    load_head(line["head_file"]).check_features([line["recipe"]], "global")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-slots", "3", "--num-workers", "2"], "a multiple of --num-workers"),
        (["--layer", "9"], "no layer 9"),
        (["--window-s", "0.5"], "a second or more"),
        (["--checkpoint", "/nowhere.pt"], "nothing at /nowhere.pt"),
        (["--annotations", "/nowhere.csv"], "/nowhere.csv"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tones: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = [
        *("--audio", str(tones), "--annotations", str(tones / "labels.csv"), "--out", str(tmp_path)),
        *("--checkpoint", str(tiny_checkpoint), "--name", "x"),
    ]
    assert main([*where, *FLAGS, *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_split_without_tracks_is_told(
    tones: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (tones / "labels.csv").read_text().splitlines()
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(line for line in lines if not line.endswith(",test")) + "\n")
    where = ["--audio", str(tones), "--annotations", str(labels), "--out", str(tmp_path), "--name", "x"]
    assert main([*where, "--checkpoint", str(tiny_checkpoint), *FLAGS]) == 2
    assert "expected tracks to train on and to test on" in capsys.readouterr().err
