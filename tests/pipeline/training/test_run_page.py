"""The page of a pretraining run, and the events that TensorBoard reads."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tensorboardX import proto

from pipeline.training.progress import watch_run
from pipeline.training.recipe import PRESETS
from pipeline.training.run_page import build_run_page
from pipeline.training.state import Progress

CONFIG, RECIPE = PRESETS["nano"]


def make_curve() -> list[dict[str, float]]:
    curve: list[dict[str, float]] = []
    for step in range(50, 301, 50):
        line = {"step": step, "cross_entropy": 8 - step / 100, "grad_norm": 1.5, "lr": 1e-4, "audio_s_per_s": 20.0}
        curve.append({**line, "contrast_2": math.nan if step == 100 else 2.0})
    gates = {
        f"held_out.layer{layer}.{kind}{suffix}": 0.4 + layer / 10
        for layer in range(3)
        for kind in ("mean.centred", "mean.whitened", "mean_std.centred", "mean_std.whitened")
        for suffix in ("", "_pitched")
    }
    prediction = {"cross_entropy": 3.25, "unigram_cross_entropy": 4.5, "accuracy": 0.125, "codes_used": 0.31}
    curve.append({"step": 300, **{f"held_out.{key}": value for key, value in prediction.items()}, **gates})
    return curve


def test_the_page_shows_how_the_run_ended() -> None:
    page = build_run_page("<first>", CONFIG, RECIPE, Progress(300, 2, make_curve()))
    assert "<first>" not in page
    assert "&lt;first&gt;" in page
    assert "300 of 3,000 steps, 2 of them skipped." in page
    for figure in ("3.250", "1.250", "12.5%", "31%", "0.600"):
        assert f"<b>{figure}</b>" in page
    assert "<script" not in page
    assert "nan" not in page
    body = page[page.index("<body>") : page.index("</html>")]
    charts = list(ElementTree.fromstring(body).iter("svg"))  # well formed
    assert len(charts) == 6
    assert len(list(charts[0].iter("polyline"))) == 3


def test_a_run_without_a_line_has_a_page_too() -> None:
    page = build_run_page("none", CONFIG, RECIPE, Progress(0, 0, []))
    assert "0 of 3,000 steps." in page


def test_tensorboard_reads_the_curve(tmp_path: Path) -> None:
    with watch_run(300, events_folder=tmp_path) as tell:
        for line in make_curve():
            tell(line)
    (file,) = tmp_path.glob("events.*")
    content, place = file.read_bytes(), 0
    found: dict[tuple[int, str], float] = {}
    while place < len(content):  # TFRecord: length, its checksum, data, its checksum
        length = int.from_bytes(content[place : place + 8], "little")
        event = proto.event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
        found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        place += 16 + length
    assert found[150, "cross_entropy"] == pytest.approx(6.5)
    assert found[300, "held_out/cross_entropy"] == pytest.approx(3.25)
