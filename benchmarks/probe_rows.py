"""Tables of what probes measured: a row for each features, a figure with its interval in each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.chart_tuning import TASK
from pipeline.probing.dbn import DBN
from pipeline.probing.decoding import PEAK_PICKER
from pipeline.probing.metrics import Estimate
from pipeline.probing.probe import ProbeResult

TASKS = {
    "beat": ("beat_f", "downbeat_f"),
    "chord": ("root", "majmin"),
    "key": ("weighted_score",),
    "structure": ("hit_rate_f", "frame_pair_f"),
}
"""Tasks and the metrics that their tables show."""
OF_DBN = "dbn_"  # how the name of a metric begins where a dynamic Bayesian network has read the outputs

Rows = list[dict[str, Any]]


def describe(task: str, name: str, result: ProbeResult) -> Rows:
    """Return a row of the features' figures, and one of chance's."""
    figures = _name_figures(task, result.metrics)
    if result.dbn_metrics is not None:
        figures |= {OF_DBN + metric: figure for metric, figure in _name_figures(task, result.dbn_metrics).items()}
    return [
        {"task": task, "features": name, **figures},
        {"task": task, "features": "chance", **_name_figures(task, result.baselines["chance"])},
    ]


def describe_tuning(result: dict[str, Any], layer: int) -> Rows:
    """Return rows of a fine-tuning's figures, as those of a probe."""
    figures = {
        f"frozen, layer {layer}": result["baselines"]["frozen"],
        "chance": result["baselines"]["chance"],
        f"fine-tuned, layer {layer}": result["metrics"],
    }
    return [{"task": TASK, "features": name, **own} for name, own in figures.items()]


def print_rows(rows: Rows) -> None:
    """Print the rows of one task as a table, chance once."""
    task = str(rows[0]["task"])
    shown = [row for row in rows if row["features"] != "chance"] + rows[1:2]
    _print_table(task, shown, _list_columns(TASKS[task], rows))


def print_real(rows: Rows) -> None:
    """Print the rows of recordings: a table for each kind of heads, over all pieces and over those not heard."""
    for task in dict.fromkeys(row["task"] for row in rows):
        for pieces in dict.fromkeys(row["pieces"] for row in rows):
            shown = [row for row in rows if (row["task"], row["pieces"]) == (task, pieces)]
            title = f"beats of {shown[0]['num_pieces']} pieces ({pieces}), {task}"
            _print_table(title, shown, _list_columns(("beat_f",), shown))


def _name_figures(task: str, estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return the figures that a table shows, as value, low and high."""
    return {name: estimates[name].as_row() for name in TASKS[task] if name in estimates}


def _list_columns(metrics: Sequence[str], rows: Rows) -> list[str]:
    of_dbn = [OF_DBN + name for name in metrics]
    return [*metrics, *(name for name in of_dbn if any(name in row for row in rows))]


def _print_table(title: str, rows: Rows, columns: Sequence[str]) -> None:
    print(f"\n| {title} | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for row in rows:
        print(f"| {row['features']} | " + " | ".join(_show(row.get(name)) for name in columns) + " |", flush=True)
    if any(name.startswith(OF_DBN) for name in columns):
        print(f"\n{OF_DBN}…: {DBN}; the others: {PEAK_PICKER}")


def _show(figure: Any) -> str:
    if not isinstance(figure, dict) or figure["value"] is None:
        return "-"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
