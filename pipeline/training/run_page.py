"""A pretraining run's page: how it ended, its curves, what was measured on held-out tracks, and its settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape

from musicfm_model.config import ModelConfig
from pipeline.report.charts import draw_curves
from pipeline.report.frame import assemble_page, draw_table, draw_tiles
from pipeline.training.progress import find_best_layer
from pipeline.training.recipe import Recipe
from pipeline.training.state import Progress
from pipeline.training.worker import Figures

KINDS = {"mean.centred": "mean, centred", "mean_std.whitened": "mean + deviation, whitened"}
"""What is shown of retrieval, and as what."""

PREDICTION = "held_out.cross_entropy"


def build_run_page(name: str, config: ModelConfig, recipe: Recipe, progress: Progress) -> str:
    """Build the page.

    Args:
        name: Of the run.
        config: Sizes of the model.
        recipe: What it was trained by.
        progress: Steps and curve.

    Returns:
        A whole HTML document.
    """
    measured = [line for line in progress.curve if PREDICTION in line]
    header = (
        f"<h1>Pretraining {escape(name)}</h1>"
        f'<p class="verdict">{escape(_say_outcome(progress, recipe))}</p>'
        f"{draw_tiles(_list_tiles(measured[-1])) if measured else ''}"
    )
    settings = {**asdict(config), **asdict(recipe)}
    rows = [[key, str(value)] for key, value in settings.items()]
    sections = [
        f'<h2>Curves</h2><div class="grid">{"".join(_draw_charts(progress.curve, measured))}</div>',
        _draw_gates(measured),
        f'<h2>Settings</h2><div class="grid"><div class="card wide">{draw_table(["setting", "value"], rows)}'
        "</div></div>",
    ]
    footer = "Cross-entropy in nats; recall@1 of another excerpt of the same held-out track."
    return assemble_page(f"Pretraining {name}", header, "".join(sections), footer)


def _say_outcome(progress: Progress, recipe: Recipe) -> str:
    skipped = f", {progress.num_skipped} of them skipped" if progress.num_skipped else ""
    return f"{progress.next_step:,} of {recipe.num_steps:,} steps{skipped}."


def _list_tiles(line: Figures) -> list[tuple[str, str]]:
    under = line["held_out.unigram_cross_entropy"] - line[PREDICTION]
    tiles = [
        (f"{line[PREDICTION]:.3f}", "held-out cross-entropy"),
        (f"{under:.3f}", "under the unigram's"),
        (f"{line['held_out.accuracy']:.1%}", "tokens right"),
        (f"{line['held_out.codes_used']:.0%}", "of the codes used"),
    ]
    for kind, said in KINDS.items():
        best = find_best_layer(line, kind)
        if best is not None:
            tiles.append((f"{best[1]:.3f}", f"recall@1, {said}, layer {best[0]}"))
    return tiles


def _draw_charts(curve: Sequence[Figures], measured: Sequence[Figures]) -> list[str]:
    held_out = [
        ("trained on", *_read_series(curve, "cross_entropy")),
        ("held out", *_read_series(curve, PREDICTION)),
        ("unigram", *_read_series(curve, "held_out.unigram_cross_entropy")),
    ]
    parts = sorted(
        {key for line in curve for key in line if key.startswith(("contrast_", "vector_", "regression"))}
    )
    recalls = []
    for kind, said in KINDS.items():
        recall_curve = [
            (line["step"], best[1]) for line in measured if (best := find_best_layer(line, kind)) is not None
        ]
        recalls.append((said, [step for step, _ in recall_curve], [recall for _, recall in recall_curve]))
    charts = {
        "Cross-entropy": held_out,
        "Recall@1 of the best layer": recalls,
        "Other terms": [(part, *_read_series(curve, part)) for part in parts],
        "Gradient norm": [("before clipping", *_read_series(curve, "grad_norm"))],
        "Learning rate": [("learning rate", *_read_series(curve, "lr"))],
        "Audio seconds a second": [("speed", *_read_series(curve, "audio_s_per_s"))],
    }
    drawn = []
    for title, curves in charts.items():
        shown = [each for each in curves if each[1]]
        if shown:
            chart = draw_curves(shown, title, "steps")
            drawn.append(f'<div class="card"><h3>{title}</h3>{chart}</div>')
    return drawn


def _read_series(curve: Sequence[Figures], key: str) -> tuple[list[float], list[float]]:
    points = [(line["step"], line[key]) for line in curve if key in line and math.isfinite(line[key])]
    return [step for step, _ in points], [value for _, value in points]


def _draw_gates(measured: Sequence[Figures]) -> str:
    if not measured:
        return ""
    last = measured[-1]
    head = ["layer", *KINDS.values(), *(f"{said}, a semitone up" for said in KINDS.values())]
    num_layers = sum(key.endswith(".mean.centred") for key in last)
    rows = [
        [
            str(layer),
            *(
                f"{last[f'held_out.layer{layer}.{kind}{suffix}']:.3f}"
                for suffix in ("", "_pitched")
                for kind in KINDS
            ),
        ]
        for layer in range(num_layers)
    ]
    table = f'<div class="scroll" tabindex="0">{draw_table(head, rows)}</div>'
    note = f"Recall@1 by layer after {last['step']:,.0f} steps."
    return (
        f'<h2>Held out</h2><p class="note">{note}</p><div class="grid"><div class="card wide">{table}</div></div>'
    )
