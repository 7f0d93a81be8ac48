import json
from pathlib import Path

import pytest
from deltalake import DeltaTable

from jobs import delete_tracks, predict, probe
from tests.pipeline.probing.cases import RECIPE, is_positive, make_head, make_store, write_csv, write_head


def run(capsys: pytest.CaptureFixture[str], store: str, head: str) -> dict[str, object]:
    assert predict.main(["--store", store, "--head", head]) == 0
    line: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def test_a_probes_head_predicts_what_it_was_trained_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = make_store(tmp_path)
    labels = {name: "yes" if is_positive(known, name) else "no, never" for name in known.contents[RECIPE]}
    url = write_csv(tmp_path / "labels.csv", ("track_id", "label"), labels.items())
    head = str(tmp_path / "head.safetensors")
    flags = ["--store", known.location.url, "--task", "classification", "--annotations", url, "--save", head]
    assert probe.main(flags) == 0
    probed = json.loads(capsys.readouterr().out.splitlines()[-1])
    line = run(capsys, known.location.url, head)
    assert {"head": probed["head_id"], "predicted": 40, "unchanged": 0, "deleted": 0}.items() <= line.items()
    again = run(capsys, known.location.url, head)
    assert {"predicted": 0, "unchanged": 40, "deleted": 0, "num_rows": 0}.items() <= again.items()
    rows = DeltaTable(str(line["table"])).to_pyarrow_table().to_pylist()
    assert len(rows) == 80
    best = {}
    for row in sorted(rows, key=lambda row: row["score"]):
        best[row["track_id"]] = row["label"]
    assert sum(best[name] == label for name, label in labels.items()) >= 32


def test_a_take_down_takes_predictions_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = make_store(tmp_path, 6)
    head = write_head(tmp_path, make_head())
    run(capsys, known.location.url, head)
    (tmp_path / "ids").write_text("track 002\n")
    assert delete_tracks.main(["--store", known.location.url, "--ids", str(tmp_path / "ids"), "--vacuum"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["predictions_removed"] == 2
    table = DeltaTable(known.location.table_url("predictions"))
    assert "track 002" not in table.to_pyarrow_table().column("track_id").to_pylist()
    files = list((tmp_path / "store/predictions").rglob("*.parquet"))
    assert len(files) == len(table.file_uris()) == 1  # what held it is gone as well
    assert {"predicted": 0, "unchanged": 5, "deleted": 0}.items() <= run(capsys, known.location.url, head).items()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = make_store(tmp_path, 3)
    for head, expected in (
        (write_head(tmp_path, make_head(resolution="8hz")), "resolution 8hz"),
        (str(tmp_path / "missing"), "missing"),
        (write_csv(tmp_path / "some.csv", ("a",), []), "expected a head"),
    ):
        assert predict.main(["--store", known.location.url, "--head", head]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert expected in output.err
        assert output.err.count("\n") == 1
    assert not (tmp_path / "store/predictions").exists()
