"""The report's page: facts in, one HTML file out, that opens without a network and runs no script.

Titles, addresses and messages come from strangers' files: every text goes through ``escape``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from pipeline.report.advice import ADVICE
from pipeline.report.charts import draw_bars, draw_course, draw_histogram, draw_points
from pipeline.report.frame import assemble_page, draw_table, draw_tiles
from pipeline.report.health_page import draw_health
from pipeline.report.predictions import draw_predictions
from pipeline.report.words import say_bytes, say_date, say_number, say_time

STAGE_NAMES = {"decode": "fetch and decode", "embed": "model and pooling", "write": "encode and write"}
PLAN_ROWS = (
    ("seconds", "wall time", "time"),
    ("num_tracks", "tracks to look at", "count"),
    ("audio_s", "audio", "time"),
    ("bytes_read", "read", "bytes"),
    ("bytes_written", "written", "bytes"),
    ("model_s", "model time", "time"),
    ("decode_core_s", "decoding, core time", "time"),
    ("model_core_s", "model, core time", "time"),
    ("write_core_s", "writing, core time", "time"),
)

MAX_STEPS = 24

Facts = Mapping[str, Any]


def build_page(facts: Facts) -> str:
    """Build the page.

    Args:
        facts: From ``report.gather_facts``.

    Returns:
        A whole HTML document.
    """
    sections = [
        _draw_failures(facts["failures"]),
        _draw_work(facts),
        _draw_catalog(facts["distributions"]),
        *(draw_health(health) for health in facts["health"]),
        _draw_map(facts["map"]),
        draw_predictions(facts["predictions"]),
        _draw_configuration(facts["configuration"]),
    ]
    run_id = escape(facts["run_id"])
    footer = (
        f"Run {run_id}, written {escape(facts['written_time'])}. The same facts as JSON: "
        f"<code>reports/{run_id}.json</code>."
    )
    return assemble_page(f"Run {facts['run_id']}", _draw_head(facts), "".join(sections), footer)


def _draw_head(facts: Facts) -> str:
    counts = facts["counts"]
    if facts["broke_off"]:
        verdict = f'<span class="bad">The run broke off: {escape(facts["broke_off"])}</span>'
    elif facts["closed"]:
        planned = counts["planned"]
        outcomes = "the one track has an outcome" if planned == 1 else f"all {planned:,} tracks have an outcome"
        verdict = (
            f'<span class="good">The books close</span>: {outcomes}, and '
            f"version {facts['store_version']} of the ledger is what readers see."
        )
    else:
        verdict = (
            '<span class="bad">The books do not close</span>: tracks without outcome are left. Run the same '
            "command again."
        )
    if facts["closed"] and not (counts["embedded"] or counts["deleted"]):
        verdict += " Nothing had changed, so the catalog was not read for this report."
    if counts.get("prune_refusal"):
        verdict += f' <span class="bad">{escape(counts["prune_refusal"])}.</span>'
    audio_s = facts["stages"].get("embed", {}).get("audio_s", 0.0)
    tiles = [
        (f"{counts['embedded']:,}", "embedded"),
        (f"{counts['unchanged']:,}", "unchanged"),
        (f"{counts['failed']:,}", "failed"),
        *((f"{counts[name]:,}", name) for name in ("moved", "copied", "withheld", "deleted") if counts.get(name)),
        (say_time(facts["seconds"]), "wall time"),
        (say_time(audio_s), "of audio embedded") if audio_s else None,
        (f"{audio_s / facts['seconds']:,.0f}×", "real time, start-up included") if audio_s else None,
        (say_bytes(facts["bytes_written"]), "written") if facts["bytes_written"] else None,
    ]
    drawn = draw_tiles([tile for tile in tiles if tile])
    written = facts["written_time"]
    return (
        f"<h1>Run {escape(facts['run_id'])}</h1>"
        f'<p class="note"><time datetime="{escape(written)}">{say_date(written)}</time>'
        f' · Store <span class="mono">{escape(facts["store"])}</span></p>'
        f'<p class="verdict">{verdict}</p>{drawn}'
    )


def _draw_failures(failures: Sequence[Facts]) -> str:
    if not failures:
        return ""
    cards = []
    for failure in failures:
        told = "".join(
            f'<li><span class="mono">{escape(str(example["track_id"]))}</span><br>'
            f"{escape(str(example['message']))}"
            + (f'<br><span class="note mono">{escape(example["uri"])}</span>' if example["uri"] else "")
            + "</li>"
            for example in failure["examples"]
        )
        old = failure["number"] - failure["num_new"]
        known = f", {'all' if old == failure['number'] else f'{old:,}'} known from earlier runs" if old else ""
        advice = ADVICE.get(failure["reason"], "See the messages.")
        cards.append(
            '<div class="card failure">'
            f"<h3>{failure['number']:,} × {escape(failure['reason'].replace('_', ' '))}</h3>"
            f'<p class="note">at stage {escape(failure["stage"])}{known}</p><p class="do">{escape(advice)}</p>'
            f"<ul>{told}</ul></div>"
        )
    note = "A file that failed is tried again when it changes, or with <code>--retry-failures</code>."
    return f'<h2>Failures</h2><p class="note">{note}</p><div class="grid">{"".join(cards)}</div>'


def _draw_work(facts: Facts) -> str:
    stages = facts["stages"]
    spent = [(name, seconds, say_time(seconds)) for name, seconds in facts["phases"].items()]
    cards = [f'<div class="card"><h3>Wall time</h3>{draw_bars(spent)}</div>'] if spent else []
    if not any(stage["num_tracks"] for stage in stages.values()):
        return f'<h2>Where the time went</h2><div class="grid">{"".join(cards)}</div>' if cards else ""
    if sum(facts["throughput"]["tracks"]):
        cards.append(f'<div class="card"><h3>Throughput</h3>{_draw_throughput(facts)}</div>')
    costs = [
        (STAGE_NAMES[name], stage["cpu_seconds"], f"{say_time(stage['cpu_seconds'])} of processor")
        for name, stage in stages.items()
    ]
    per_clip = sum(stage["cpu_seconds"] for stage in stages.values()) / max(1e-9, stages["decode"]["audio_s"]) * 30
    note = f'<p class="note">{per_clip * 1000:,.0f} core-milliseconds for 30 s of audio, all stages.</p>'
    cards.append(f'<div class="card"><h3>Cost by stage</h3>{draw_bars(costs)}{note}</div>')
    cards.append(f'<div class="card figures"><h3>Plan and fact</h3>{_draw_plan(facts["plan"])}</div>')
    cards.append(f'<div class="card wide"><h3>Placement</h3>{_draw_placement(facts)}</div>')
    return f'<h2>Where the time went</h2><div class="grid">{"".join(cards)}</div>'


def _draw_throughput(facts: Facts) -> str:
    """Draw tracks a second in a few steps: results come back in blocks, so that short ones show only those."""
    course = facts["throughput"]
    num_joined = -(-len(course["tracks"]) // MAX_STEPS)
    tracks = [sum(course["tracks"][i : i + num_joined]) for i in range(0, len(course["tracks"]), num_joined)]
    step_s = num_joined * course["bucket_s"]
    edges = [i * step_s for i in range(len(tracks) + 1)]
    rates = [number / step_s for number in tracks]
    return draw_course(edges, rates, "Tracks finished a second over the run's time", "tracks a second")


def _draw_plan(plan: Facts | None) -> str:
    if plan is None:
        return ""
    predicted, actual = plan["predicted"], plan["actual"]
    say: dict[str, Callable[[float], str]] = {"time": say_time, "bytes": say_bytes, "count": "{:,.0f}".format}
    rows = []
    for name, label, kind in PLAN_ROWS:
        cells = [say[kind](actual[name])]
        if predicted:
            off = (predicted[name] / actual[name] - 1) * 100 if actual[name] else 0.0
            cells = [say[kind](predicted[name]), *cells, f"{round(off):+d}%"]
        rows.append([label, *cells])
    head = ["", "plan", "fact", "off by"] if predicted else ["", "fact"]
    note = (
        ""
        if predicted
        else (
            '<p class="note">No plan was made of this run. <code>musicfm plan</code> with the same flags predicts '
            "these figures before a run, and its report then shows both.</p>"
        )
    )
    return draw_table(head, rows) + note


def _draw_placement(facts: Facts) -> str:
    placement = facts["placement"]
    nodes = sorted({node for nodes_of_stage in placement.values() for node in nodes_of_stage})
    rows = []
    for node in nodes:
        row = [node, facts["devices"].get(node, "–")]
        for stage in STAGE_NAMES:
            work = placement[stage].get(node)
            row.append(f"{work['num_tracks']:,} in {say_time(work['seconds'])}" if work else "–")
        rows.append(row)
    head = ["node", "model on", *STAGE_NAMES.values()]
    note = (
        '<p class="note">Tracks that passed each stage on each node, and the task time that they took there.</p>'
    )
    return f'{note}<div class="scroll" tabindex="0">{draw_table(head, rows)}</div>'


def _draw_catalog(catalog: Facts | None) -> str:
    if not catalog:
        return ""
    charts = [
        (catalog["duration_s"], "Durations", "seconds"),
        (catalog["loudness_dbfs"], "Loudness (RMS)", "dBFS"),
    ]
    cards = [
        f'<div class="card"><h3>{name}</h3>{draw_histogram(summary, name.lower(), unit)}</div>'
        for summary, name, unit in charts
        if summary
    ]
    rates = [
        (f"{int(rate) / 1000:g} kHz" if rate.isdigit() else rate, float(n), f"{n:,}")
        for rate, n in catalog["sample_rates_hz"]
    ]
    codecs = [(name, float(n), f"{n:,}") for name, n in catalog["codecs"]]
    clipped = say_number(catalog["num_clipped"], "track clips", "tracks clip")
    silent = say_number(catalog["num_half_silent"], "is", "are")
    odd = (
        f'<p class="note">{clipped} in over a thousandth of the samples; '
        f"{silent} silent for over half of the length.</p>"
    )
    cards.append(
        f'<div class="card"><h3>Sample rates and codecs</h3>{draw_bars(rates)}<hr>{draw_bars(codecs)}{odd}</div>'
    )
    total = catalog["num_total"]
    if catalog["num_sampled"] < total:
        note = (
            f"A sample: {say_number(catalog['num_sampled'], 'track')}, spread evenly over {total:,} of the store."
        )
    else:
        note = "The store's one track." if total == 1 else f"All {total:,} tracks of the store."
    note += " The upright line of a histogram marks the median."
    return f'<h2>The catalog</h2><p class="note">{note}</p><div class="grid">{"".join(cards)}</div>'


def _draw_map(summary: Facts | None) -> str:
    if not summary:
        return ""
    chart = draw_points(np.asarray(summary["points"], np.float32), summary["groups"], summary["titles"])
    colour = (
        f"coloured by {summary['colour']}" if summary["colour"] else "no genre or artist is known to colour it by"
    )
    note = (
        f"{say_number(len(summary['points']), 'track')} on the two directions in which their vectors differ most "
        f"({summary['share']:.0%} of the variance), {colour}. Near means alike to the model."
    )
    return (
        f'<h2>Map of the catalog</h2><p class="note">{escape(note)}</p>'
        f'<div class="grid"><div class="card wide map">{chart}</div></div>'
    )


def _draw_configuration(configuration: Facts) -> str:
    if not configuration:
        return ""
    rows = [[name, _say_value(value)] for name, value in configuration.items()]
    table = draw_table(["flag", "value"], rows)
    return f'<h2>Configuration</h2><div class="grid"><div class="card wide">{table}</div></div>'


def _say_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "none"
    return "not given" if value is None or value == {} else str(value)
