"""Charts with known answers: chords that are drawn, played by MMA's grooves, and heard through a soundfont.

MMA (Musical MIDI Accompaniment) turns a chart of chords and the name of a groove into MIDI, FluidSynth turns that
into audio. So beats, downbeats, chords and key are known exactly, but for the few milliseconds by which a groove
plays a note early or late. Both come with Debian (``mma``, ``fluidsynth``), as do the soundfonts
(``fluid-soundfont-gm``, ``timgm6mb-soundfont``).
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

GROOVES = Path("/usr/share/mma/lib/stdlib")
SOUNDFONTS = {name: Path(f"/usr/share/sounds/sf2/{name}.sf2") for name in ("FluidR3_GM", "TimGM6mb")}
SAMPLE_RATE_HZ = 24_000
LENGTH_S = 24.0  # about: whole bars
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# Triads of the scale by semitones above the tonic; in minor with the major dominant.
SCALES = {
    "major": ((0, "maj"), (2, "min"), (4, "min"), (5, "maj"), (7, "maj"), (9, "min")),
    "minor": ((0, "min"), (3, "maj"), (5, "min"), (7, "maj"), (8, "maj"), (10, "maj")),
}
DOMINANT = (7, "maj")


@dataclass(frozen=True)
class Section:
    """A part of a piece, whole bars.

    Args:
        label: What it is, such as ``chorus``.
        num_bars: Its length.
        groove: What it is played by, in place of the chart's.
        fill: Groove of its last bar; None for the same.
        has_drums: Whether drums play.
    """

    label: str
    num_bars: int
    groove: str
    fill: str | None
    has_drums: bool


@dataclass(frozen=True)
class Chart:
    """A piece to play.

    Args:
        name: Its id.
        style: The file of grooves; charts of one style sound alike.
        groove: Name of the groove.
        beats_per_bar: 3 or 4.
        tempo_bpm: Quarter notes a minute.
        tonic: Semitones above C.
        mode: ``major`` or ``minor``.
        chords: One a bar: semitones above C, and ``maj`` or ``min``.
        seed: Of what the groove itself leaves to chance.
        sections: One after the other, as many bars as there are chords; empty for a piece without.
    """

    name: str
    style: str
    groove: str
    beats_per_bar: int
    tempo_bpm: int
    tonic: int
    mode: str
    chords: tuple[tuple[int, str], ...]
    seed: int
    sections: tuple[Section, ...] = ()

    @property
    def bar_s(self) -> float:
        """Length of a bar."""
        return self.beats_per_bar * 60 / self.tempo_bpm

    @property
    def key(self) -> str:
        """The key, as ``C# minor``."""
        return f"{PITCHES[self.tonic]} {self.mode}"

    def list_beats(self) -> tuple[tuple[float, int], ...]:
        """Return time in seconds and place in the bar of every beat; 1 is a downbeat."""
        number = len(self.chords) * self.beats_per_bar
        return tuple((beat * 60 / self.tempo_bpm, beat % self.beats_per_bar + 1) for beat in range(number))

    def list_chords(self) -> tuple[tuple[float, float, str], ...]:
        """Return start and end in seconds and Harte's name of every bar's chord."""
        return tuple(
            (bar * self.bar_s, (bar + 1) * self.bar_s, f"{PITCHES[root]}:{kind}")
            for bar, (root, kind) in enumerate(self.chords)
        )

    def list_sections(self) -> tuple[tuple[float, float, str], ...]:
        """Return start and end in seconds and label of every section."""
        edges = list(itertools.accumulate((section.num_bars for section in self.sections), initial=0))
        return tuple(
            (first * self.bar_s, stop * self.bar_s, section.label)
            for section, first, stop in zip(self.sections, edges, edges[1:], strict=False)
        )

    def write(self) -> str:
        """Return the chart in MMA's language."""
        changes = self._list_changes()
        lines = [f"RndSeed {self.seed}", f"Tempo {self.tempo_bpm}", f"Groove {self.groove}"]
        for bar, (root, kind) in enumerate(self.chords):
            lines += changes.get(bar, [])
            lines.append(f"{bar + 1} {PITCHES[root]}{'m' if kind == 'min' else ''}")
        return "\n".join(lines) + "\n"

    def _list_changes(self) -> dict[int, list[str]]:
        """Return what changes before a bar, by the bar's number from 0, in MMA's language."""
        changes: dict[int, list[str]] = {}
        bar = 0
        for section in self.sections:
            drums = f"AllTracks Drum {'On' if section.has_drums else 'Off'}"
            changes[bar] = [f"Groove {section.groove}", drums]
            bar += section.num_bars
            if section.fill is not None:
                changes[bar - 1] = [f"Groove {section.fill}", drums]
        return changes


def find_programs() -> str | None:
    """Return what is missing to play charts, None where all is there."""
    missing = [name for name in ("mma", "fluidsynth") if shutil.which(name) is None]
    missing += [str(path) for path in (GROOVES, *SOUNDFONTS.values()) if not path.exists()]
    return ", ".join(missing) or None


def list_styles() -> dict[str, tuple[int, list[str]]]:
    """Return the beats of a bar and the grooves of each style that is in three or four quarters all through."""
    styles = {}
    for path in sorted(GROOVES.glob("*.mma")):
        text = path.read_text(encoding="latin-1")
        beats = {int(number) for number in re.findall(r"^Time\s+(\d+)", text, re.MULTILINE)}
        signatures = re.findall(r"^TimeSig\s+(\S+\s+\S+)", text, re.MULTILINE | re.IGNORECASE)
        grooves = re.findall(r"^DefGroove\s+(\S+)", text, re.MULTILINE)
        played = [name for name in grooves if not re.search(r"Intro|End|Fill|Metronome", name, re.IGNORECASE)]
        if beats <= {3, 4} and len(beats) == 1 and played and all(own.split()[1] == "4" for own in signatures):
            styles[path.stem] = (beats.pop(), played)
    return styles


def draw_charts(number: int, seed: int = 0) -> list[Chart]:
    """Draw charts, styles by turns."""
    random = np.random.default_rng(seed)
    styles = list_styles()
    names = [str(name) for name in random.permutation(sorted(styles))]
    charts = []
    for place in range(number):
        style = names[place % len(names)]
        beats_per_bar, grooves = styles[style]
        tempo_bpm, tonic = int(random.integers(72, 168)), int(random.integers(12))
        mode = ("major", "minor")[random.integers(2)]
        num_bars = max(4, round(LENGTH_S / (beats_per_bar * 60 / tempo_bpm)))
        chords = draw_chords(tonic, mode, num_bars, random)
        groove = str(random.choice(grooves))
        charts.append(
            Chart(f"{place:04d}-{style}", style, groove, beats_per_bar, tempo_bpm, tonic, mode, chords, place)
        )
    return charts


def draw_chords(tonic: int, mode: str, num_bars: int, random: np.random.Generator) -> tuple[tuple[int, str], ...]:
    """Draw a chord a bar out of a key: from the tonic to a cadence, none twice in a row."""
    scale = SCALES[mode]
    degrees = [scale[0]]
    while len(degrees) < num_bars - 2:
        others = [degree for degree in scale if degree != degrees[-1]]
        degrees.append(others[random.integers(len(others))])
    degrees += [DOMINANT, scale[0]]
    return tuple(((tonic + semitones) % 12, kind) for semitones, kind in degrees)


def play(chart: Chart, soundfont: str, folder: Path) -> npt.NDArray[np.float32]:
    """Play a chart.

    Args:
        chart: The piece.
        soundfont: One of ``SOUNDFONTS``.
        folder: For files on the way.

    Returns:
        Mono samples at 24 kHz, float32, from the first beat to the end of the last bar.

    Raises:
        subprocess.CalledProcessError: A program failed; its output is the error's.
    """
    text, midi, wav = (folder / f"{chart.name}{ending}" for ending in (".mma", ".mid", ".wav"))
    text.write_text(chart.write())
    run(["mma", "-w", str(text), "-f", str(midi)])
    run(
        [
            "fluidsynth",
            "-ni",
            "-q",
            "-r",
            str(SAMPLE_RATE_HZ),
            "-F",
            str(wav),
            str(SOUNDFONTS[soundfont]),
            str(midi),
        ]
    )
    samples, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    for path in (text, midi, wav):
        path.unlink()
    mono = samples.mean(axis=1)[: round(len(chart.chords) * chart.bar_s * SAMPLE_RATE_HZ)]
    return np.asarray(mono / max(1e-6, float(np.abs(mono).max())), np.float32)


def run(command: list[str]) -> None:
    """Run a program, quietly."""
    subprocess.run(command, check=True, capture_output=True, text=True)
