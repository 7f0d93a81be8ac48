import itertools
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.charts import Section, find_programs
from benchmarks.songs import LABELS, MAX_SECTION_S, MIN_SECTION_S, NUM_SECTIONS, draw_songs, list_arrangements
from tests.benchmarks.test_charts import make_song

pytestmark = pytest.mark.skipif(find_programs() is not None, reason=f"not installed: {find_programs()}")


def test_songs_are_drawn_alike_each_time_in_sections_that_differ_from_the_next() -> None:
    songs = draw_songs(100)
    assert songs == draw_songs(100)
    assert len({song.style for song in songs}) > 60
    assert {label for song in songs for _, _, label in song.list_sections()} == set(LABELS)
    for song in songs:
        spans = song.list_sections()
        assert len(spans) == NUM_SECTIONS
        assert spans[-1][1] == pytest.approx(len(song.chords) * song.bar_s)
        assert all(MIN_SECTION_S - 1e-9 <= end_s - start_s <= MAX_SECTION_S + 1e-9 for start_s, end_s, _ in spans)
        assert all(a[2] != b[2] for a, b in itertools.pairwise(spans))


def test_sections_of_one_label_have_the_same_chords() -> None:
    for song in draw_songs(20):
        found: dict[str, set[tuple[tuple[int, str], ...]]] = {}
        bar = 0
        for section in song.sections:
            for start in range(bar, bar + section.num_bars, 4):
                found.setdefault(section.label, set()).add(song.chords[start : start + 4])
            bar += section.num_bars
        assert all(len(chords) == 1 for chords in found.values())


def test_drums_and_strings_play_where_the_labels_say(tmp_path: Path) -> None:
    pretty_midi = pytest.importorskip("pretty_midi")
    arrangement = list_arrangements()["8beat"]
    assert arrangement.grooves["chorus"] == "8BeatSusPlus"
    sections = tuple(
        Section(label, 2, arrangement.grooves[label], None, label != "bridge")
        for label in ("verse", "bridge", "chorus")
    )
    (tmp_path / "song.mma").write_text(replace(make_song(), groove="8Beat", sections=sections).write())
    subprocess.run(["mma", "song.mma", "-f", "song.mid"], cwd=tmp_path, check=True, capture_output=True)
    midi = pretty_midi.PrettyMIDI(str(tmp_path / "song.mid"))
    played: dict[str, set[int]] = {"drums": set(), "strings": set()}
    for instrument in midi.instruments:
        kind = "drums" if instrument.is_drum else "strings" if 48 <= instrument.program <= 51 else None
        if kind is not None:
            played[kind] |= {int((note.start + 0.1) / 4) for note in instrument.notes}
    assert played == {"drums": {0, 2}, "strings": {2}}
