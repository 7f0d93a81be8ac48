"""The report's section on embedding health: a verdict first, then the pictures that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from pipeline.report.charts import draw_histogram

MANY_DUPLICATES = 0.05  # of the tracks compared: more are worth a look
NARROW = 0.95  # mean cosine with the mean vector: nearly all vectors point one way


def draw_health(health: Mapping[str, Any]) -> str:
    """Draw one recipe's embedding health.

    Args:
        health: From ``report_health.measure_health``, with near_duplicates, drift, recipe and layer.
    """
    checks = "".join(
        f'<li class="{"good" if is_good else "bad"}"><b>{"✓" if is_good else "!"}</b> '
        f"<span>{escape(text)}</span></li>"
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
        f"Recipe <code>{escape(health['recipe'])}</code>, layer {health['layer']}: {health['num_vectors']:,} "
        f"global vectors of {health['embed_dim']:,} dimensions."
    )
    return f'<h2>Embedding health</h2><p class="note">{note}</p><div class="grid">{"".join(cards)}</div>'


def judge(health: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Return for each check whether it is as it should be, and a sentence.

    Args:
        health: As ``draw_health``.
    """
    bad = health["num_non_finite"]
    checks = [(bad == 0, f"{bad:,} vectors hold NaN or infinity" if bad else "Every value is finite")]
    if "dead" in health:
        dead, loud = health["dead"], health["exploding"]
        checks.append((not dead, _list_dimensions(dead, "do not move") if dead else "No dead dimension"))
        checks.append((not loud, _list_dimensions(loud, "drown the others") if loud else "No exploding dimension"))
        cosine = health["mean_cosine"]
        said = f"Vectors spread over about {health['effective_dimensions']:.0f} effective dimensions"
        narrow = cosine > NARROW
        said += f"; they share a direction (mean cosine {cosine:.2f}), so compare them centred" if narrow else ""
        checks.append((True, said))
    near = health["near_duplicates"]
    if near["score"] is not None:
        many = near["num_members"] > MANY_DUPLICATES * near["num_compared"]
        text = (
            f"{near['num_members']:,} of {near['num_compared']:,} tracks lie in {near['num_clusters']:,} groups "
            f"of near-duplicates (cosine from {near['score']:.4f})"
        )
        checks.append((not many, text if near["num_clusters"] else "No near-duplicates among the tracks compared"))
    drift = health["drift"]
    if drift is None:
        checks.append((True, "No drift to tell: this run, or the store before it, has too few vectors"))
    else:
        moved = drift["num_moved"] > 0.05 * health["embed_dim"]
        checks.append(
            (
                not moved,
                f"Drift of {drift['num_now']:,} new vectors against {drift['num_before']:,} stored before: means "
                f"moved by {drift['mean_shift']:.2f} standard deviations on average (chance alone: "
                f"{drift['expected_shift']:.2f}), {drift['num_moved']:,} dimensions by over "
                f"{drift['threshold']:.2f}; norms × {drift['norm_ratio']:.3f}"
                + (". Compare the sources, codecs and loudness of both" if moved else ""),
            )
        )
    return checks


def _list_dimensions(positions: list[int], verb: str) -> str:
    first = ", ".join(str(position) for position in positions[:8])
    return f"{len(positions):,} dimensions {verb}: {first}{', …' if len(positions) > 8 else ''}"


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
