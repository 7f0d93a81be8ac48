import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.watch import MAX_BUCKETS, ProgressLine, RunWatch, Throughput


@given(st.lists(st.tuples(st.floats(0, 1e5), st.integers(0, 50), st.integers(0, 1000)), min_size=1, max_size=60))
def test_throughput_loses_nothing_and_stays_small(events: list[tuple[float, int, int]]) -> None:
    events.sort()
    course = Throughput()
    for at_s, num_tracks, audio_s in events:
        course.add(at_s, num_tracks, audio_s)
    found = course.read()
    assert len(found["tracks"]) == len(found["audio_s"]) <= MAX_BUCKETS
    naive = [0] * len(found["tracks"])
    for at_s, num_tracks, _ in events:
        naive[int(at_s / found["bucket_s"])] += num_tracks
    assert found["tracks"] == naive
    assert sum(found["audio_s"]) == pytest.approx(sum(audio_s for *_, audio_s in events))


def test_a_log_gets_whole_lines() -> None:
    log = io.StringIO()
    line = ProgressLine(10, log, interval_s=0.0)
    line.update(4, "12x real time, 1 failed")
    line.update(6, "13x real time")
    line.close()
    said = log.getvalue()
    assert "\r" not in said
    assert said.endswith("\n")
    assert re.search(r"^embedding:  40% 4/10 \[.*track.*, 12x real time, 1 failed\]$", said, re.MULTILINE)
    assert re.search(r"^embedding: 100% 10/10 \[.*, 13x real time\]$", said.splitlines()[-1])


def test_a_log_is_not_flooded() -> None:
    log = io.StringIO()
    line = ProgressLine(1000, log, interval_s=60.0)
    for _ in range(1000):
        line.update(1, "")
    assert log.getvalue() == ""
    line.close()
    assert log.getvalue().count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_that_moves() -> None:
    terminal = Terminal()
    line = ProgressLine(2, terminal)
    line.update(1, "5x real time")
    line.update(1, "6x real time")
    line.close()
    said = terminal.getvalue()
    assert said.count("\n") == 1
    assert said.count("\r") >= 2
    assert "2/2" in said
    assert "6x real time" in said


def test_the_watch_says_how_fast_and_what_waits() -> None:
    watch = RunWatch()
    assert watch.describe(0) == "the model starts"
    watch.books = {"devices": {"here": "cpu"}}
    assert watch.describe(0) == ""
    watch.start_s -= 10.0
    watch.work_began_s = 0.0
    watch.accept(3, 200.0)
    watch.books = {"waiting": {"embed": 7}}
    assert watch.describe(2) == "20x real time, 2 failed, 7 wait for the model"
    assert watch.first_result_s == watch.work_ended_s == pytest.approx(10.0, abs=1.0)


def test_the_phases_are_the_whole_of_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    watch = RunWatch()
    assert watch.measure_phases() == {}
    watch.start_s -= 1.0  # what was before the first phase began belongs to it
    watch.enter("listing")
    watch.start_s -= 2.0
    watch.enter("starting the model", "3 tracks to embed: starting the model")
    watch.start_s -= 3.0
    watch.accept(1, 30.0)
    watch.start_s -= 4.0
    watch.enter("committing")
    spent_s = watch.measure_phases()
    assert list(spent_s) == ["listing", "starting the model", "embedding", "committing"]
    assert list(spent_s.values()) == pytest.approx([3.0, 3.0, 4.0, 0.0], abs=0.5)
    assert sum(spent_s.values()) == pytest.approx(watch.age_s(), abs=0.01)
    said = capsys.readouterr().err.splitlines()
    assert said == ["listing", "3 tracks to embed: starting the model", "committing"]
