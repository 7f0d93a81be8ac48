import pytest

pytest.importorskip("mir_eval", reason="mir_eval is not installed: pip install '.[probe]'")

from benchmarks.chart_tuning import TASK
from benchmarks.probe_rows import TASKS, describe_tuning, print_real, print_rows

FIGURE = {"value": 0.8, "low": 0.7, "high": 0.9}


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


def test_a_second_decoder_has_its_own_columns_and_both_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"task": "beat", "features": "nano", "beat_f": FIGURE, "downbeat_f": FIGURE, "dbn_beat_f": FIGURE},
        {"task": "beat", "features": "chance", "beat_f": FIGURE, "downbeat_f": FIGURE},
    ]
    print_rows(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "| beat | beat_f | downbeat_f | dbn_beat_f |"
    assert lines[-3] == "| chance | 0.800 [0.700, 0.900] | 0.800 [0.700, 0.900] | - |"
    assert "madmom-infer" in lines[-1]
    assert "maxima" in lines[-1]


def test_recordings_have_a_table_for_each_kind_of_heads_and_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    print_real(
        [
            {"task": task, "pieces": pieces, "num_pieces": 3, "features": name, "beat_f": FIGURE}
            for task in ("heads of other pieces", "heads of charts")
            for pieces in ("all", "not heard")
            for name in ("chance", "nano")
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "beat_f" in line] == [
        "| beats of 3 pieces (all), heads of other pieces | beat_f |",
        "| beats of 3 pieces (not heard), heads of other pieces | beat_f |",
        "| beats of 3 pieces (all), heads of charts | beat_f |",
        "| beats of 3 pieces (not heard), heads of charts | beat_f |",
    ]
    assert lines.count("| nano | 0.800 [0.700, 0.900] |") == 4
