"""The report's section on embedding health: a verdict first, then the pictures that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from pipeline.report.charts import draw_histogram
from pipeline.report.words import say_number

MANY_DUPLICATES = 0.05  # of the tracks compared: more are worth a look
NARROW = 0.95  # mean cosine with the mean vector: nearly all vectors point one way


def draw_health(health: Mapping[str, Any]) -> str:
    """Draw one recipe's embedding health.

    Args:
        health: From ``report_health.measure_health``, with near_duplicates, drift, recipe and layer.
    """
    marks = {True: ("good", "✓"), False: ("bad", "!"), None: ("told", "–")}
    checks = "".join(
        f'<li class="{marks[is_good][0]}"><b>{marks[is_good][1]}</b> <span>{escape(text)}</span></li>'
        for is_good, text in judge(health)
    )
    cards = [f'<div class="card"><h3>Checks</h3><ul class="checks">{checks}</ul></div>']
    for name, summary, unit in (
        ("Norms", health.get("norms"), "length of a track's vector"),
        ("Spread of each dimension", health.get("spreads"), "log10 of its standard deviation"),
    ):
        if summary:
            cards.append(f'<div class="card"><h3>{name}</h3>{draw_histogram(summary, name.lower(), unit)}</div>')
    if health["near_duplicates"]["clusters"]:
        cards.append(_draw_clusters(health["near_duplicates"]))
    note = (
        f"Recipe <code>{escape(health['recipe'])}</code>, layer {health['layer']}: "
        f"{say_number(health['num_vectors'], 'global vector')} of {health['embed_dim']:,} dimensions."
    )
    return f'<h2>Embedding health</h2><p class="note">{note}</p><div class="grid">{"".join(cards)}</div>'


def judge(health: Mapping[str, Any]) -> list[tuple[bool | None, str]]:
    """Return for each check whether it is as it should be, None where nothing could be tested, and a sentence.

    Args:
        health: As ``draw_health``.
    """
    bad = health["num_non_finite"]
    checks: list[tuple[bool | None, str]]
    if health["num_vectors"] == 0:
        checks = [(None, "No vectors to look at")]
    elif bad:
        checks = [(False, f"{say_number(bad, 'vector holds', 'vectors hold')} NaN or infinity")]
    else:
        checks = [(True, "Every value is finite")]
    return [*checks, *_judge_dimensions(health), _judge_duplicates(health), _judge_drift(health)]


def _judge_dimensions(health: Mapping[str, Any]) -> list[tuple[bool | None, str]]:
    if "dead" not in health:
        return [(None, "Dimensions cannot be judged: that takes two vectors of finite values")]
    dead, loud = health["dead"], health["exploding"]
    cosine = health["mean_cosine"]
    said = f"Vectors spread over about {health['effective_dimensions']:.0f} effective dimensions"
    if cosine > NARROW:
        said += f"; they share a direction (mean cosine {cosine:.2f}), so compare them centred"
    return [
        (not dead, _list_dimensions(dead, "does not move", "do not move") if dead else "No dead dimension"),
        (
            not loud,
            _list_dimensions(loud, "drowns the others", "drown the others") if loud else "No exploding dimension",
        ),
        (None, said),
    ]


def _judge_duplicates(health: Mapping[str, Any]) -> tuple[bool | None, str]:
    near = health["near_duplicates"]
    if near["score"] is None:
        return None, "Near-duplicates cannot be told: that takes three tracks"
    if not near["num_clusters"]:
        return True, "No near-duplicates among the tracks compared"
    return (
        near["num_members"] <= MANY_DUPLICATES * near["num_compared"],
        f"{near['num_members']:,} of {say_number(near['num_compared'], 'track')} lie in "
        f"{say_number(near['num_clusters'], 'group')} of near-duplicates (cosine from {near['score']:.4f})",
    )


def _judge_drift(health: Mapping[str, Any]) -> tuple[bool | None, str]:
    drift = health["drift"]
    if drift is None:
        return None, "No drift to tell: this run, or the store before it, has too few vectors"
    has_moved = drift["num_moved"] > 0.05 * health["embed_dim"]
    said = (
        f"Drift of {say_number(drift['num_now'], 'new vector')} against {drift['num_before']:,} stored before: "
        f"means moved by {drift['mean_shift']:.2f} standard deviations on average (chance alone: "
        f"{drift['expected_shift']:.2f}), {say_number(drift['num_moved'], 'dimension')} by over "
        f"{drift['threshold']:.2f}; norms × {drift['norm_ratio']:.3f}"
    )
    return not has_moved, said + (". Compare the sources, codecs and loudness of both" if has_moved else "")


def _list_dimensions(positions: list[int], does: str, do: str) -> str:
    first = ", ".join(str(position) for position in positions[:8])
    said = say_number(len(positions), f"dimension {does}", f"dimensions {do}")
    return f"{said}: {first}{', …' if len(positions) > 8 else ''}"


def _draw_clusters(near: Mapping[str, Any]) -> str:
    items = []
    for cluster in near["clusters"]:
        names = [track["title"] or track["track_id"] for track in cluster[:4]]
        more = f" and {len(cluster) - 4:,} more" if len(cluster) > 4 else ""
        ids = ", ".join(track["track_id"] for track in cluster[:4])
        items.append(f'<li>{escape(" · ".join(names))}{more}<br><span class="note mono">{escape(ids)}</span></li>')
    return (
        '<div class="card wide"><h3>Near-duplicates</h3><p class="note">Groups, likely one recording each. '
        f"Keep one of each group if the catalog should hold a song once.</p>"
        f'<ul class="clusters">{"".join(items)}</ul></div>'
    )
