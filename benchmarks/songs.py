"""Songs: charts in sections whose bounds and labels are known, for what features know of structure.

A verse is a style's plain groove; in a chorus sustained strings join in (MMA's ``Sus``, with its ``Plus`` where
the style has both); in a bridge the drums are silent. Each label has four chords of its own throughout a song, and
where a style has a groove for fills, the last bar of a section is one, but in a bridge. So labels mean the same in
every style, and a boundary is heard by what changes there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from benchmarks.charts import GROOVES, SCALES, Chart, Section, list_styles

LABELS = ("verse", "chorus", "bridge")
NUM_SECTIONS = 5
BARS = (4, 8, 12)  # the four chords one, two or three times
MIN_SECTION_S, MAX_SECTION_S = 8.0, 18.0
TEMPI_BPM = (72, 168)  # as those of charts without sections


@dataclass(frozen=True)
class Arrangement:
    """What a style's sections are played by.

    Args:
        beats_per_bar: 3 or 4.
        grooves: Of each label.
        fill: For the last bar of a section; None where the style has none.
    """

    beats_per_bar: int
    grooves: dict[str, str]
    fill: str | None


def list_arrangements() -> dict[str, Arrangement]:
    """Return how to play sections in each style that has drums, and strings to add to a plain groove."""
    arrangements = {}
    for style, (beats_per_bar, grooves) in list_styles().items():
        text = (GROOVES / f"{style}.mma").read_text(encoding="latin-1")
        plain = [name for name in grooves if not re.search("sus|plus", name, re.IGNORECASE)]
        fuller = [name for name in grooves if re.search("sus", name, re.IGNORECASE)]
        fullest = [name for name in fuller if re.search("plus", name, re.IGNORECASE)] or fuller
        if plain and fuller and re.search(r"^\s*Drum", text, re.MULTILINE):
            fills = re.findall(r"^DefGroove\s+(\S*Fill\S*)", text, re.MULTILINE | re.IGNORECASE)
            chosen = {"verse": plain[0], "chorus": fullest[0], "bridge": plain[0]}
            arrangements[style] = Arrangement(beats_per_bar, chosen, fills[0] if fills else None)
    return arrangements


def draw_songs(number: int, seed: int = 0) -> list[Chart]:
    """Draw songs of about a minute, styles by turns."""
    random = np.random.default_rng(seed)
    arrangements = list_arrangements()
    names = [str(name) for name in random.permutation(sorted(arrangements))]
    return [_draw_song(place, names[place % len(names)], arrangements, random) for place in range(number)]


def _draw_song(place: int, style: str, arrangements: dict[str, Arrangement], random: np.random.Generator) -> Chart:
    arrangement = arrangements[style]
    tempo_bpm, tonic = int(random.integers(*TEMPI_BPM)), int(random.integers(12))
    mode = ("major", "minor")[random.integers(2)]
    bar_s = arrangement.beats_per_bar * 60 / tempo_bpm
    lengths = [number for number in BARS if MIN_SECTION_S <= number * bar_s <= MAX_SECTION_S]
    progressions = {label: _draw_progression(tonic, mode, random) for label in LABELS}
    sections: list[Section] = []
    chords: list[tuple[int, str]] = []
    for _ in range(NUM_SECTIONS):
        others = [label for label in LABELS if not sections or label != sections[-1].label]
        label = str(random.choice(others))
        num_bars = int(random.choice(lengths))
        fill = arrangement.fill if label != "bridge" else None  # fills are the drums'
        sections.append(Section(label, num_bars, arrangement.grooves[label], fill, label != "bridge"))
        chords += progressions[label] * (num_bars // 4)
    return Chart(
        f"song-{place:04d}-{style}",
        style,
        sections[0].groove,
        arrangement.beats_per_bar,
        tempo_bpm,
        tonic,
        mode,
        tuple(chords),
        place,
        tuple(sections),
    )


def _draw_progression(tonic: int, mode: str, random: np.random.Generator) -> list[tuple[int, str]]:
    """Draw four different chords of a key."""
    scale = SCALES[mode]
    return [((tonic + scale[degree][0]) % 12, scale[degree][1]) for degree in random.permutation(len(scale))[:4]]
