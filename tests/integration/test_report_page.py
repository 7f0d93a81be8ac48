"""The report of a real run in a real browser: at a desk and on a phone, in light and in dark."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.embed_catalog import main
from tests.corpus import encode_clip, load_music, make_failures

VIEWS = {
    "desk": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 320, "height": 640}, "color_scheme": "light"},
}
HOSTILE = '<img src=x onerror="alert(1)"> & Sons'
NUM_CLIPS = 24

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, local_ray: None) -> dict[str, Path]:
    """Reports of a first run, one that adds to it, one with nothing to do, one that tries a file in vain."""
    folder = tmp_path_factory.mktemp("report")
    audio = folder / "music"
    audio.mkdir()
    rows = []
    for number in range(2 * NUM_CLIPS):
        music = load_music(("caves-later.ogg", "desert.flac")[number % 2], 0.2 * number + 4.0, 24_000)
        path = audio / f"clip{number:02d}.wav"
        encode_clip(path, music[round(0.2 * number * 24_000) :] * (0.2 + number / 60), 24_000)
        rows.append((path.stem, str(path), f"Take {number} {HOSTILE}", HOSTILE, ("rock", "jazz")[number % 2]))
    shutil.copy(audio / "clip03.wav", audio / "copy.wav")
    rows.insert(NUM_CLIPS, ("copy", str(audio / "copy.wav"), "A copy", "Somebody", "rock"))
    bad = [(f"bad-{name}", str(audio / name), name, None, None) for name in make_failures(audio)]
    bad.append(("bad-gone", str(audio / "gone.mp3"), HOSTILE, None, None))
    found = {}
    store = folder / "store"
    first = rows[: NUM_CLIPS + 1] + bad
    for name, part in (("first", first), ("more", rows + bad), ("idle", rows + bad[:-1]), ("vain", rows + bad)):
        manifest = folder / f"{name}.csv"
        with manifest.open("w", newline="") as file:
            csv.writer(file).writerows([("track_id", "uri", "title", "artist", "genre"), *part])
        before = set(store.glob("reports/*.html"))
        arguments = ["--audio", str(manifest), "--store", str(store), "--checkpoint", str(tiny_checkpoint)]
        assert main([*arguments, "--layer", "2"]) == 0
        (found[name],) = set(store.glob("reports/*.html")) - before
    return found


def look(browser: Any, report: Path, view: str, tmp_path: Path) -> dict[str, Any]:
    """Open a report without a network and return what stands on the page."""
    context = browser.new_context(**VIEWS[view], offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
    page.goto(report.as_uri())
    page.screenshot(path=tmp_path / f"{view}.png", full_page=True)
    found: dict[str, Any] = page.evaluate("""() => {
      const box = (element) => element.getBoundingClientRect();
      const scale = (text) => box(text.ownerSVGElement).width / text.ownerSVGElement.viewBox.baseVal.width;
      const drawn = [...document.querySelectorAll("svg text")].filter((text) => text.checkVisibility());
      const seen = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility());
      const scrolled = (element) => element.closest(".scroll");
      return {
        width: document.documentElement.scrollWidth,
        beyond: seen.filter((e) => !scrolled(e) && !e.closest("svg") && box(e).right > innerWidth + 1).length,
        headings: [...document.querySelectorAll("h2")].map((heading) => heading.textContent),
        panels: [...document.querySelectorAll(".card")].map((card) => ({
          name: card.querySelector("h3")?.textContent ?? "",
          marks: card.querySelectorAll("svg :is(rect, circle, path.area), .bars i, td, li").length,
          height: box(card).height,
        })),
        smallest: Math.min(...drawn.map((t) => parseFloat(getComputedStyle(t).fontSize) * scale(t)),
          ...seen.filter((e) => e.childElementCount === 0 && e.textContent.trim() && !e.closest("svg"))
            .map((e) => parseFloat(getComputedStyle(e).fontSize))),
        overlapping: [...document.querySelectorAll("svg")].flatMap((svg) => {
          const texts = [...svg.querySelectorAll("text")].map((t) => ({...box(t).toJSON(), said: t.textContent}));
          return texts.flatMap((a, i) => texts.slice(i + 1).filter((b) => a.left < b.right - 1
            && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1).map((b) => [a.said, b.said]));
        }),
        names: drawn.filter((text) => text.closest(".map")).map((text) => text.textContent),
        text: document.body.innerText,
      };
    }""")
    context.close()
    return {**found, "complaints": complaints}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("run", ["first", "more"])
def test_every_panel_is_legible_and_full(
    browser: Any, reports: dict[str, Path], run: str, view: str, tmp_path: Path
) -> None:
    found = look(browser, reports[run], view, tmp_path)
    assert found["complaints"] == []
    assert found["width"] <= VIEWS[view]["viewport"]["width"]  # type: ignore[index]
    assert found["beyond"] == 0
    assert found["smallest"] >= 10
    assert found["overlapping"] == []
    assert len(found["names"]) >= (3 if run == "first" else 0)  # a map of 25 is small enough to name some
    assert {"Failures", "Where the time went", "The catalog", "Embedding health", "Map of the catalog"} <= set(
        found["headings"]
    )
    assert "Configuration" in found["headings"]
    assert all(panel["marks"] > 0 and panel["height"] > 60 for panel in found["panels"]), found["panels"]
    names = [panel["name"] for panel in found["panels"]]
    assert {"Throughput", "Cost by stage", "Plan and fact", "Placement", "Durations", "Norms"} <= set(names)
    assert (tmp_path / f"{view}.png").stat().st_size > 20_000


def test_it_says_what_happened_and_what_to_do(browser: Any, reports: dict[str, Path], tmp_path: Path) -> None:
    said = look(browser, reports["more"], "desk", tmp_path)["text"]
    facts = json.loads(reports["more"].with_suffix(".json").read_text())
    assert facts["counts"]["embedded"] == NUM_CLIPS
    assert sum(failure["number"] for failure in facts["failures"]) == facts["counts"]["failed"]
    assert "The books close" in said
    assert "truncated" in said
    assert "Upload these files again" in said
    assert f"Take 3 {HOSTILE} · A copy" in said  # shown as text, and found to be one recording
    assert f"Drift of {NUM_CLIPS} new vectors against {NUM_CLIPS + 1} stored before" in said
    assert "cpu" in said
    year = facts["written_time"][:4]
    assert re.search(rf"^Run .*\n+\d+ \w+ {year}, \d\d:\d\d UTC · Store", said)


def test_a_run_with_nothing_to_do_leaves_a_small_one(
    browser: Any, reports: dict[str, Path], tmp_path: Path
) -> None:
    found = look(browser, reports["idle"], "phone", tmp_path)
    assert found["complaints"] == []
    assert found["headings"] == ["Failures", "Where the time went", "Configuration"]  # those known from before
    assert "Nothing had changed" in found["text"]
    assert reports["idle"].stat().st_size < 25_000


def test_a_run_that_only_tries_again_shows_the_failures(
    browser: Any, reports: dict[str, Path], tmp_path: Path
) -> None:
    found = look(browser, reports["vain"], "phone", tmp_path)
    assert found["complaints"] == []
    assert found["headings"] == ["Failures", "Where the time went", "Configuration"]
    assert all(panel["marks"] > 0 for panel in found["panels"])
