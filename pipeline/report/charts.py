"""Charts of the report: plain functions that return inline SVG or HTML, coloured by the page's own style sheet.

Each is drawn on a canvas of 360 units, about a phone's width: where there is more room its text only grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from unicodedata import east_asian_width

import numpy as np
import numpy.typing as npt

from pipeline.report.words import say_number

WIDTH, HEIGHT = 360, 176
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 22, 38
MAX_GROUPS = 8  # as many as there are colours
MAX_POINTS = 2500
MAP_HEIGHT = 220
MAX_NAMED = 40  # points of a map that is small enough to name them
NAME_SIZES = {"narrow": 14.5, "broad": 7.0}  # of a name's text: the style sheet shows those that suit the screen
_NAME_LENGTH = 18


def draw_histogram(summary: Mapping[str, Any], name: str, unit: str) -> str:
    """Draw how often values occur, with a mark at their median.

    Args:
        summary: From ``report_health.summarise``.
        name: What the values are, for those who hear the page.
        unit: Stands under the axis.
    """
    edges, counts, middle = summary["edges"], summary["counts"], summary["median"]
    x = _Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = _Scale(0, max(counts), HEIGHT - BOTTOM, TOP)
    bars = [
        f'<rect class="bar" x="{x(edge):.1f}" y="{y(count):.1f}" width="{x(edges[1]) - x(edges[0]) - 1:.1f}" '
        f'height="{y(0) - y(count):.1f}"><title>{_number(edge)} to {_number(edges[i + 1])}: {count}</title></rect>'
        for i, (edge, count) in enumerate(zip(edges[:-1], counts, strict=True))
        if count
    ]
    said = f"median {_number(middle)} {unit}"
    mark = f'<path class="mark" d="M{x(middle):.1f} {TOP - 6}V{y(0):.1f}"><title>{escape(said)}</title></path>'
    axes = _draw_axes(choose_ticks(edges[0], edges[-1], 5), choose_ticks(0, max(counts), 3, True), x, y, unit)
    return _wrap([*axes, *bars, mark], f"Histogram of {name}, {said}")


def draw_course(seconds: Sequence[float], rates: Sequence[float], name: str, unit: str) -> str:
    """Draw a rate over time as steps.

    Args:
        seconds: Where each step begins, and where the last one ends: one more than rates.
        rates: Height of each step.
        name: What it is, for those who hear the page.
        unit: Stands above the axis.
    """
    divisor, time_unit = (3600.0, "hours") if seconds[-1] > 2 * 3600 else (60.0, "minutes")
    if seconds[-1] <= 180:
        divisor, time_unit = 1.0, "seconds"
    at = [second / divisor for second in seconds]
    top = max([*rates, 1e-9])
    x, y = _Scale(0, at[-1], LEFT, WIDTH - RIGHT), _Scale(0, top, HEIGHT - BOTTOM, TOP)
    path = [f"M{x(at[0]):.1f} {y(0):.1f}"]
    for i, rate in enumerate(rates):
        path += [f"V{y(rate):.1f}", f"H{x(at[i + 1]):.1f}"]
    path.append(f"V{y(0):.1f}Z")
    axes = _draw_axes(
        choose_ticks(0, at[-1], 5), choose_ticks(0, top, 3), x, y, f"{time_unit} since the run began"
    )
    label = f'<text x="{LEFT}" y="{TOP - 9}">{escape(unit)}</text>'  # beside the ticks, which may reach the top
    return _wrap([*axes, f'<path class="area" d="{"".join(path)}"/>', label], name)


def draw_curves(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], name: str, unit: str) -> str:
    """Draw values over steps as lines, with their key where there are several.

    Args:
        curves: Of each its name, its steps and its values, at least one; nothing that is not finite.
        name: What they are, for those who hear the page.
        unit: Stands under the axis.
    """
    steps = [step for _, own, _ in curves for step in own]
    values = [value for _, _, own in curves for value in own]
    low, high = min(values), max(values)
    room = 0.05 * ((high - low) or 1.0)
    x = _Scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y = _Scale(low - room, high + room, HEIGHT - BOTTOM, TOP)
    lines = []
    for number, (label, own_steps, own_values) in enumerate(curves):
        points = " ".join(f"{x(step):.1f},{y(v):.1f}" for step, v in zip(own_steps, own_values, strict=True))
        lines.append(
            f'<polyline class="g{number} line" points="{points}"><title>{escape(label)}</title></polyline>'
        )
    axes = _draw_axes(choose_ticks(min(steps), max(steps), 5), choose_ticks(low, high, 3), x, y, unit)
    key = "".join(f'<li class="g{number}">{escape(label)}</li>' for number, (label, _, _) in enumerate(curves))
    return _wrap([*axes, *lines], name) + (f'<ul class="key">{key}</ul>' if len(curves) > 1 else "")


def draw_bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Draw named amounts as bars under each other.

    Args:
        rows: Name, amount, and the amount as people write it.
    """
    top = max((amount for _, amount, _ in rows), default=0.0) or 1.0
    items = [
        f"<li><span>{escape(name)}</span><b>{escape(said)}</b>"
        f'<i style="--share:{max(amount / top, 0.004):.4f}"></i></li>'
        for name, amount, said in rows
    ]
    return f'<ul class="bars">{"".join(items)}</ul>'


def draw_points(points: npt.NDArray[np.float32], groups: Sequence[str | None], titles: Sequence[str]) -> str:
    """Draw a map of points, coloured by group, with its key.

    Args:
        points: (num_points, 2).
        groups: What each belongs to; the most frequent ones get a colour.
        titles: Shown when one points at it.
    """
    named = [group for group in groups if group]
    frequent = sorted(set(named), key=lambda group: (-named.count(group), group))[:MAX_GROUPS]
    room = np.array([WIDTH, MAP_HEIGHT])
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    scale = ((room - 24) / np.maximum(high - low, 1e-9)).min()  # one for both: distances on the map are true
    placed = np.clip((points - (low + high) / 2) * scale * [1, -1] + room / 2, 6, room - 6)
    dots = []
    for (left, down), group, title in zip(placed[:MAX_POINTS], groups, titles, strict=False):
        colour = f"g{frequent.index(group)}" if group in frequent else "other"
        dots.append(
            f'<circle class="{colour}" cx="{left:.1f}" cy="{down:.1f}" r="2.6">'
            f"<title>{escape(title)}</title></circle>"
        )
    key = "".join(f'<li class="g{i}">{escape(group)}</li>' for i, group in enumerate(frequent))
    if len(set(named)) > len(frequent) or len(named) < len(groups):
        key += '<li class="other">other</li>' if frequent else ""
    if len(points) <= MAX_NAMED:
        dots += [name for screen, size in NAME_SIZES.items() for name in _draw_names(placed, titles, screen, size)]
    svg = _wrap(dots, f"Map of {say_number(min(len(points), MAX_POINTS), 'track')}", MAP_HEIGHT)
    return svg + (f'<ul class="key">{key}</ul>' if key else "")


def _draw_names(placed: npt.NDArray[np.float32], titles: Sequence[str], screen: str, size: float) -> list[str]:
    """Name as many points as there is room for, beside them; the browser's own font is a little narrower."""
    taken = [(left - 3, down - 3, left + 3, down + 3) for left, down in placed.tolist()]
    drawn = []
    for (left, down), title in zip(placed.tolist(), titles, strict=True):
        name = title if len(title) <= _NAME_LENGTH else f"{title[: _NAME_LENGTH - 1].rstrip()}…"
        length = size * sum(1.05 if east_asian_width(letter) in "WF" else 0.66 for letter in name)
        for start in (left + 5, left - 5 - length):
            box = (start, down - 0.65 * size, start + length, down + 0.65 * size)
            if start < 0 or box[2] > WIDTH or any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            at, anchor = (start, "start") if start > left else (start + length, "end")
            drawn.append(
                f'<text class="{screen}" x="{at:.1f}" y="{down + 0.35 * size:.1f}" text-anchor="{anchor}">'
                f"{escape(name)}</text>"
            )
            break
    return drawn


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def choose_ticks(low: float, high: float, number: int, whole: bool = False) -> list[float]:
    """Return about so many round numbers between two others."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, number)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


class _Scale:
    """A value's place on the canvas."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self._low, self._unit, self._start = low, (stop - start) / ((high - low) or 1.0), start

    def __call__(self, value: float) -> float:
        return self._start + (float(value) - self._low) * self._unit


def _draw_axes(across: Sequence[float], up: Sequence[float], x: _Scale, y: _Scale, unit: str) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<path class="grid" d="M{LEFT} {y(value):.1f}H{right}"/>'
        f'<text x="{LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        for value in up
    ]
    parts += [
        f'<text x="{x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{_number(value)}</text>'
        for value in across
    ]
    return [*parts, f'<text x="{right}" y="{HEIGHT - 5}" text-anchor="end">{escape(unit)}</text>']


def _wrap(parts: Sequence[str], name: str, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'


def _number(value: float) -> str:
    """Write a number of an axis: 12k rather than 12000, no more digits than it needs."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
