"""The report's section on predictions: what each head says of the catalog, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.location import StoreLocation
from pipeline.report.charts import draw_bars
from pipeline.report.words import say_number, say_time
from pipeline.store.predictions import sum_up_predictions

MAX_LABELS = 12  # of a head: the most frequent ones
MAX_HEADS = 8
TIMED = ("chord", "structure")


def describe_predictions(store: StoreLocation) -> list[dict[str, Any]]:
    """Return what each head says of the catalog, JSON-ready; empty where there are no predictions.

    Of tags, classes and keys an amount is the sum of their probabilities, the number of tracks to be expected; of
    chords and sections the seconds that they last; of beats how many there are; of numbers their mean.

    Args:
        store: The store.

    Raises:
        StorageError: The table cannot be read.
    """
    heads: dict[str, dict[str, Any]] = {}
    for row in sum_up_predictions(store).to_pylist():
        head = heads.setdefault(row["head"], {"head": row["head"], "task": row["task"], "labels": []})
        head["labels"].append([row["label"], _choose_amount(row)])
        if row["task"] not in (*TIMED, "beat"):  # of those a track has many rows of a label
            head["num_tracks"] = max(head.get("num_tracks", 0), row["num_rows"])
    for head in heads.values():
        head["num_labels"] = len(head["labels"])
        head["labels"] = sorted(head["labels"], key=lambda pair: (-pair[1], pair[0]))[:MAX_LABELS]
    return [heads[name] for name in sorted(heads)][:MAX_HEADS]


def _choose_amount(row: Mapping[str, Any]) -> float:
    if row["task"] in TIMED:
        return float(row["seconds"])
    if row["task"] == "beat":
        return float(row["num_rows"])
    return float(row["score"]) / (row["num_rows"] if row["task"] == "regression" else 1)


def draw_predictions(heads: Sequence[Mapping[str, Any]]) -> str:
    """Draw a card a head; nothing where there are none.

    Args:
        heads: From ``describe_predictions``.
    """
    if not heads:
        return ""
    cards = []
    for head in heads:
        bars = draw_bars([(label, amount, _say_amount(head["task"], amount)) for label, amount in head["labels"]])
        more = head["num_labels"] - len(head["labels"])
        of_tracks = f", {say_number(head['num_tracks'], 'track')}" if "num_tracks" in head else ""
        note = f"<code>{escape(head['head'])}</code>{of_tracks}{f', and {more:,} labels more' if more else ''}"
        cards.append(f'<div class="card"><h3>{escape(head["task"])}</h3><p class="note">{note}</p>{bars}</div>')
    note = "As the heads said it last: of tags, classes and keys how many tracks have it, by their probabilities."
    return f'<h2>Predictions</h2><p class="note">{note}</p><div class="grid">{"".join(cards)}</div>'


def _say_amount(task: str, amount: float) -> str:
    if task in TIMED:
        return say_time(amount)
    return f"{amount:,.0f}" if task == "beat" else f"{amount:,.1f}"
