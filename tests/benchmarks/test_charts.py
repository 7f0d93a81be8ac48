from pathlib import Path

import numpy as np
import pytest

from benchmarks.charts import (
    LENGTH_S,
    SAMPLE_RATE_HZ,
    SOUNDFONTS,
    Chart,
    Section,
    draw_charts,
    find_programs,
    play,
)

needs_programs = pytest.mark.skipif(find_programs() is not None, reason=f"not installed: {find_programs()}")


def make_chart(groove: str = "Metronome44", style: str = "metronome", tempo_bpm: int = 90) -> Chart:
    chords = ((0, "maj"), (9, "min"), (7, "maj"), (0, "maj"))
    return Chart("chart", style, groove, 4, tempo_bpm, 0, "major", chords, 1)


def make_song() -> Chart:
    """Return six bars of two seconds."""
    sections = (Section("verse", 4, "Swing", "SwingFill", True), Section("chorus", 2, "SwingSus", None, False))
    chords = ((0, "maj"),) * 6
    return Chart("song", "swing", "Swing", 4, 120, 0, "major", chords, 1, sections)


def test_sections_follow_each_other_and_are_written_before_their_bars() -> None:
    song = make_song()
    assert song.list_sections() == ((0, 8, "verse"), (8, 12, "chorus"))
    assert song.write().splitlines()[3:] == [
        *(
            "Groove Swing",
            "AllTracks Drum On",
            "1 C",
            "2 C",
            "3 C",
            "Groove SwingFill",
            "AllTracks Drum On",
            "4 C",
        ),
        *("Groove SwingSus", "AllTracks Drum Off", "5 C", "6 C"),
    ]


def test_what_is_known_of_a_chart_follows_from_it() -> None:
    chart = make_chart(tempo_bpm=120)
    assert chart.list_beats()[:6] == ((0, 1), (0.5, 2), (1, 3), (1.5, 4), (2, 1), (2.5, 2))
    assert len(chart.list_beats()) == 16
    assert chart.list_chords()[1] == (2, 4, "A:min")
    assert chart.key == "C major"
    assert chart.write().splitlines()[-3:] == ["2 Am", "3 G", "4 C"]


@needs_programs
def test_charts_are_drawn_alike_each_time_within_their_keys() -> None:
    charts = draw_charts(120)
    assert charts == draw_charts(120)
    assert len({chart.style for chart in charts}) > 60
    for chart in charts:
        assert chart.chords[0] == chart.chords[-1]
        assert chart.chords[0][0] == chart.tonic
        assert abs(len(chart.chords) * chart.bar_s - LENGTH_S) <= 2
        assert all(a != b for a, b in zip(chart.chords[:-2], chart.chords[1:-2], strict=False))


@needs_programs
@pytest.mark.parametrize("soundfont", SOUNDFONTS)
def test_beats_are_heard_when_the_chart_says(soundfont: str, tmp_path: Path) -> None:
    chart = make_chart(groove="Metronome4", style="metronome")
    samples = play(chart, soundfont, tmp_path)
    assert len(samples) == round(4 * chart.bar_s * SAMPLE_RATE_HZ)
    frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::120] * np.hanning(512)  # 5 ms apart
    spectrum = np.log1p(100 * np.abs(np.fft.rfft(frames)))
    flux = np.maximum(np.diff(spectrum, axis=0), 0).sum(axis=1)
    for time_s, _ in chart.list_beats()[1:]:
        first = round(time_s * 200) - 30
        heard_s = (first + int(np.argmax(flux[first : first + 60]))) / 200 + 256 / SAMPLE_RATE_HZ
        assert heard_s == pytest.approx(time_s, abs=0.02)
