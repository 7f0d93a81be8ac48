import numpy as np
import pytest

pytest.importorskip("mir_eval", reason="mir_eval is not installed: pip install '.[probe]'")

import torch

from benchmarks.chart_tuning import TASK
from benchmarks.probes import (
    NANO,
    TASKS,
    annotate,
    average,
    describe_tuning,
    draw_weights,
    name_file,
    print_rows,
    split_by_style,
    use_log_mel,
)
from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.model import MusicFM25Hz
from tests.benchmarks.test_charts import make_chart


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


def test_a_fine_tuning_is_told_in_the_tables_form(capsys: pytest.CaptureFixture[str]) -> None:
    def figure(value: float) -> dict[str, dict[str, float]]:
        return {name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name in TASKS[TASK]}

    result = {"metrics": figure(0.8), "baselines": {"frozen": figure(0.5), "chance": figure(0.3)}}
    print_rows(describe_tuning(result, 2))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "| frozen, layer 2 | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] |",
        "| fine-tuned, layer 2 | 0.800 [0.700, 0.900] | 0.800 [0.700, 0.900] |",
        "| chance | 0.300 [0.200, 0.400] | 0.300 [0.200, 0.400] |",
    ]


def test_what_is_known_is_said_in_the_tasks_form() -> None:
    chart = make_chart(tempo_bpm=120)
    assert annotate("beat", chart, "test").beats == chart.list_beats()
    assert annotate("chord", chart, "test").spans[0] == (0, 2, "C:maj")
    assert annotate("key", chart, "test").labels == ("C major",)


def test_means_of_rows_have_no_rest() -> None:
    rows = np.arange(14, dtype=np.float32).reshape(7, 2)
    assert average(rows, 3).tolist() == [[2, 3], [8, 9]]
    assert average(rows, 50).tolist() == [[6, 7]]


def test_untrained_weights_have_the_sizes_of_the_trained_and_other_values() -> None:
    trained = load_checkpoint(str(NANO))
    untrained = draw_weights(trained)
    assert untrained.config == trained.config
    wav = torch.randn(1, 24_000)
    first, second = (
        MusicFM25Hz.from_checkpoint(own).get_hidden_states(wav, [0])[0] for own in (trained, untrained)
    )
    assert first.shape == second.shape
    assert not torch.allclose(first, second)


def test_log_mels_stand_beside_their_surroundings() -> None:
    found = use_log_mel()(torch.randn(1, 24_000))
    (matrix,) = found.values()
    assert matrix.shape == (25, 9 * 128)
    np.testing.assert_array_equal(matrix[3].reshape(128, 9)[:, 5], matrix[4].reshape(128, 9)[:, 4])
