import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.charts import (
    NAME_SIZES,
    WIDTH,
    choose_ticks,
    draw_bars,
    draw_course,
    draw_histogram,
    draw_points,
)
from pipeline.report.health import summarise

HOSTILE = "<script>alert('1')</script> & \"x\""
SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(f'<html xmlns="http://www.w3.org/2000/svg">{svg}</html>')


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5), st.integers(1, 9))
def test_ticks_are_round_and_within(low: float, span: float, number: int) -> None:
    ticks = choose_ticks(low, low + span, number)
    assert len(ticks) <= 2.6 * number + 2
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert any(leading == pytest.approx(round_one, rel=1e-3) for round_one in (1, 2, 2.5, 5, 10))


def test_a_histogram_has_a_bar_where_values_are() -> None:
    values = np.concatenate([np.zeros(30), np.full(60, 10.0)])
    summary = summarise(values)
    assert summary is not None
    drawn = parse(draw_histogram(summary, "durations", HOSTILE))
    bars = [bar for bar in drawn.iter(f"{SVG}rect") if bar.get("class") == "bar"]
    heights = sorted(float(bar.get("height", "0")) for bar in bars)
    assert len(bars) == 2
    assert heights[1] / heights[0] == pytest.approx(2.0, rel=0.01)
    assert not list(drawn.iter(f"{SVG}script"))


def test_a_histogram_of_one_value_is_drawn() -> None:
    summary = summarise([3.0])
    assert summary is not None
    assert "NaN" not in draw_histogram(summary, "x", "s").replace("nan", "NaN")


def test_a_course_reaches_from_begin_to_end() -> None:
    drawn = parse(draw_course([0, 60, 120, 400], [1.0, 0.0, 4.0], "n", "tracks"))
    (path,) = [path for path in drawn.iter(f"{SVG}path") if path.get("class") == "area"]
    assert path.get("d", "").startswith("M40.0")
    assert "H350.0" in path.get("d", "")


def test_a_tick_at_the_top_stands_beside_the_unit() -> None:
    drawn = parse(draw_course([0, 60], [3.0], "n", "tracks a second"))
    texts = {text.text: float(text.get("x", "0")) for text in drawn.iter(f"{SVG}text")}
    assert texts["3"] < texts["tracks a second"]  # the one ends where the other begins


def test_names_are_escaped() -> None:
    points = np.zeros((3, 2), np.float32)
    for drawn in (draw_bars([(HOSTILE, 1.0, HOSTILE)]), draw_points(points, [HOSTILE, None, "b"], [HOSTILE] * 3)):
        assert "<script" not in drawn
        parse(drawn)


def test_a_map_has_a_point_a_track_and_a_key_a_group() -> None:
    points = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    groups = ["rock", "jazz", None, "rock"] * 10
    drawn = parse(draw_points(points, groups, [str(i) for i in range(40)]))
    circles = list(drawn.iter(f"{SVG}circle"))
    assert [circle.get("class") for circle in circles[:4]] == ["g0", "g1", "other", "g0"]
    assert len(circles) == 40
    assert [item.text for item in drawn.iter(f"{SVG}li")] == ["rock", "jazz", "other"]


def test_a_small_map_names_its_points_without_overlap() -> None:
    points = np.random.default_rng(1).normal(size=(12, 2)).astype(np.float32)
    titles = [f"Title {number} {HOSTILE}" if number % 2 else f"曲 {number}" for number in range(12)]
    drawn = parse(draw_points(points, [None] * 12, titles))
    for screen, size in NAME_SIZES.items():
        texts = [text for text in drawn.iter(f"{SVG}text") if text.get("class") == screen]
        assert len(texts) >= (10 if screen == "broad" else 3)
        boxes = []
        for text in texts:
            length = size * 0.5 * len(text.text or "")  # narrower than any font's: what overlaps so, overlaps
            start = float(text.get("x", "0")) - (length if text.get("text-anchor") == "end" else 0)
            boxes.append((start, start + length, float(text.get("y", "0"))))
        for i, (start, stop, y) in enumerate(boxes):
            assert 0 <= start < stop <= WIDTH
            assert not any(a < stop and start < b and abs(y - v) < size for a, b, v in boxes[i + 1 :])


def test_a_large_map_is_not_written_over() -> None:
    points = np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)
    assert "<text" not in draw_points(points, [None] * 200, ["a"] * 200)
