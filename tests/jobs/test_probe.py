import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs import probe
from pipeline.probing.heads import load_head
from tests.pipeline.probing.cases import RECIPE, is_positive, make_store, write_csv
from tests.stores import KnownStore, make_recipe

ROCK, POP = 'rock, "hard"', "поп"


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for a second: few steps, and large ones."""
    monkeypatch.setattr("pipeline.probing.fitting.MAX_ROUNDS", 15)
    monkeypatch.setattr("pipeline.probing.fitting.LEARNING_RATES", (0.02,))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> KnownStore:
    return make_store(tmp_path_factory.mktemp("probe"))


def label_tracks(known: KnownStore) -> dict[str, str]:
    return {name: ROCK if is_positive(known, name) else POP for name in known.contents[RECIPE]}


def run(
    capsys: pytest.CaptureFixture[str],
    known: KnownStore,
    annotations: str,
    *words: str,
    task: str = "classification",
) -> tuple[dict[str, Any], str]:
    """Run the command; return its last line, and all that stands before."""
    flags = ["--store", known.location.url, "--task", task, "--annotations", annotations, *words]
    assert probe.main(flags) == 0
    *before, last = capsys.readouterr().out.splitlines()
    return json.loads(last), "\n".join(before)


def refuse(capsys: pytest.CaptureFixture[str], known: KnownStore, annotations: str, *words: str) -> str:
    flags = ["--store", known.location.url, "--task", "classification", "--annotations", annotations, *words]
    assert probe.main(flags) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_classes_that_can_be_read_off_are_learnt(
    known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = label_tracks(known)
    rows = [*labels.items(), ("nowhere", ROCK), ("track 000", ""), ("track 001", labels["track 001"])]
    head = str(tmp_path / "head.safetensors")
    url = write_csv(tmp_path / "labels.csv", ("track_id", "label"), rows)
    line, said = run(capsys, known, url, "--save", head)
    wanted = {"task": "classification", "head": "linear", "recipe": RECIPE, "resolution": "global"}
    assert wanted.items() <= line.items()
    assert line["num_train"] == 28
    assert line["num_test"] == 6
    assert set(line["metrics"]) == set(line["baselines"]["chance"]) == {"accuracy"}
    accuracy, chance = line["metrics"]["accuracy"], line["baselines"]["chance"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] > 0.8 > chance["value"]
    assert "nowhere" in said
    assert sum(line["left_out"].values()) == 2
    spec = load_head(head).spec
    assert set(spec.labels) == {ROCK, POP}
    assert dict(spec.metrics["accuracy"]) == accuracy
    assert spec.recipes == (RECIPE,)


def test_the_same_seed_gives_the_same_figures(
    known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = write_csv(tmp_path / "labels.csv", ("track_id", "label"), label_tracks(known).items())
    first, second, other = (
        run(capsys, known, url, "--seed", seed, "--head", "mlp")[0] for seed in ("7", "7", "8")
    )
    assert first == second
    assert first["head_id"] != other["head_id"]


def test_tracks_are_known_by_their_files_and_given_splits_are_kept(
    known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ["Training", "VAL", "testing", "train"]
    rows = [
        (f"file:///{name}.mp3" if place % 2 else f"/{name}.mp3", place % 3, splits[place % 4])
        for place, name in enumerate(label_tracks(known))
    ]
    line, _ = run(capsys, known, write_csv(tmp_path / "labels.csv", ("uri", "label", "split"), rows))
    assert (line["num_train"], line["num_valid"], line["num_test"], line["split"]) == (20, 10, 10, "given")
    # Without validation tracks some of the training tracks become such.
    rows = [(uri, label, "train" if split != "testing" else split) for uri, label, split in rows]
    line, _ = run(capsys, known, write_csv(tmp_path / "labels.csv", ("uri", "label", "split"), rows))
    assert line["num_train"] + line["num_valid"] == 30
    assert 3 <= line["num_valid"] <= 6
    assert line["num_test"] == 10


def test_tags_and_numbers(known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = list(known.contents[RECIPE])
    rows = [(name, f"tag {value}") for name in ids for value in range(3) if is_positive(known, name, value)]
    untagged = set(ids) - {name for name, _ in rows}
    url = write_csv(tmp_path / "tags.csv", ("track_id", "label"), [*rows, *((name, "") for name in untagged)])
    line, _ = run(capsys, known, url, task="tagging")
    assert set(line["metrics"]) == {"map", "roc_auc"}
    assert line["metrics"]["roc_auc"]["value"] > 0.9
    assert line["baselines"]["chance"]["roc_auc"]["value"] == 0.5
    numbers = [(name, 100 + 20 * is_positive(known, name)) for name in ids]
    url = write_csv(tmp_path / "numbers.csv", ("track_id", "label"), [*numbers, ("track 003", "nan")])
    line, _ = run(capsys, known, url, task="regression")
    assert line["metrics"]["r2"]["value"] > 0.3 > line["baselines"]["chance"]["r2"]["value"]


def test_tiny_classes_are_no_mistake(
    known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(name, place if place < 20 else "x") for place, name in enumerate(known.contents[RECIPE])]
    line, _ = run(capsys, known, write_csv(tmp_path / "labels.csv", ("track_id", "label"), rows))
    assert (line["num_labels"], line["num_train"], line["num_test"]) == (21, 33, 3)
    assert 0 <= line["metrics"]["accuracy"]["value"] < 1


def test_mistakes_are_one_line(known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = list(known.contents[RECIPE])

    def write(names: tuple[str, ...], rows: Sequence[Sequence[object]]) -> str:
        return write_csv(tmp_path / "some.csv", names, rows)

    ones = [(name, "one") for name in ids]
    assert "expected two different labels" in refuse(capsys, known, write(("track_id", "label"), ones))
    assert "track_id,label" in refuse(capsys, known, write(("id", "label"), ones))
    assert "matched by track_id" in refuse(capsys, known, write(("track_id", "label"), [("a", "b")]))
    few = [(name, name) for name in ids[:2]]
    assert "column `split`" in refuse(capsys, known, write(("track_id", "label"), few))
    splits = [(name, name, "part 7") for name in ids]
    assert "part 7" in refuse(capsys, known, write(("track_id", "label", "split"), splits))
    splits = [(name, name, "train") for name in ids]
    assert "to test on" in refuse(capsys, known, write(("track_id", "label", "split"), splits))
    rows = [(name, place % 2) for place, name in enumerate(ids)]
    url = write(("track_id", "label"), rows)
    assert "resolution 8hz" in refuse(capsys, known, url, "--resolution", "8hz")
    assert "found elsewhere" in refuse(capsys, known, url, "--recipe", "elsewhere")
    assert "twice" in refuse(capsys, known, url, "--recipe", RECIPE, "--recipe", RECIPE)
    (tmp_path / "damaged.csv").write_bytes(b'track_id,label\na,"b\n')
    assert "quotation mark" in refuse(capsys, known, str(tmp_path / "damaged.csv"))
    (tmp_path / "latin.csv").write_bytes(b"track_id,label\na,\xe9\n")
    assert "UTF-8" in refuse(capsys, known, str(tmp_path / "latin.csv"))
    assert "gone.csv" in refuse(capsys, known, str(tmp_path / "gone.csv"))


def test_of_several_recipes_one_is_named_or_a_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = make_store(tmp_path)
    other = make_recipe(9)
    known.run(known.contents[RECIPE], recipes=(other,), resolutions=("global",), tracks_per_part=13)
    url = write_csv(tmp_path / "labels.csv", ("track_id", "label"), label_tracks(known).items())
    said = refuse(capsys, known, url)
    assert RECIPE in said
    assert other.recipe_id in said
    assert "--recipe" in said
    line, _ = run(capsys, known, url, "--recipe", RECIPE)
    assert line["recipe"] == RECIPE
    line, _ = run(capsys, known, url, "--recipe", RECIPE, "--recipe", other.recipe_id)
    assert line["recipe"] == f"{RECIPE}+{other.recipe_id}"
    # The answer stands in the first recipe's features; the other's are noise.
    assert line["mix"][RECIPE] > 0.5 > line["mix"][other.recipe_id]
