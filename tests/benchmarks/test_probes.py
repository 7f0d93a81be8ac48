import pytest

pytest.importorskip("mir_eval", reason="mir_eval is not installed: pip install '.[probe]'")

from benchmarks.probes import annotate, name_file, split_by_style
from tests.benchmarks.test_charts import make_chart, make_song


def test_no_style_is_on_two_sides() -> None:
    charts = [make_chart(style=f"style {number % 20}") for number in range(50)]
    splits = split_by_style(charts)
    assert {name: list(splits.values()).count(name) for name in ("train", "valid", "test")} == {
        "train": 11,
        "valid": 3,
        "test": 6,
    }


def test_a_chart_is_kept_by_the_soundfont_that_played_it() -> None:
    chart = make_chart(style="waltz")
    names = {split: name_file(chart, {"waltz": split}) for split in ("train", "valid", "test")}
    assert names["train"] == names["valid"] == "chart-FluidR3_GM.flac"
    assert names["test"] == "chart-TimGM6mb.flac"


def test_what_is_known_is_said_in_the_tasks_form() -> None:
    chart = make_chart(tempo_bpm=120)
    assert annotate("beat", chart, "test").beats == chart.list_beats()
    assert annotate("chord", chart, "test").spans[0] == (0, 2, "C:maj")
    assert annotate("key", chart, "test").labels == ("C major",)
    assert annotate("structure", make_song(), "test").spans == ((0, 8, "verse"), (8, 12, "chorus"))
