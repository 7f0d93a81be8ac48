"""What a task counts, and what it tells the monitor of itself."""

import time
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipeline.run.measure import TaskReport, count_work
from pipeline.run.progress import Work
from pipeline.schema import DECODED, EMBEDDED, FEATURE_LIST, RESULTS

WHO = ("task", "decode", "node")


def embedded(duration_s: float | None, wanted: list[str], stage: str | None = None) -> pa.Table:
    row = {"track_id": "t", "wanted": wanted, "held": [], "duration_s": duration_s, "stage": stage}
    return pa.Table.from_pylist([row], schema=EMBEDDED)


def test_windows_are_counted_by_policy() -> None:
    wanted = ["r/50hz", "r/16hz", "r/8hz", "r/global"]
    assert count_work("embed", embedded(61.0, wanted), "shared") == Work(num_tracks=1, audio_s=61.0, num_windows=3)
    expected = 11 + 6 + 3 + 3  # of 6, 12, 24 and 29.1 s
    assert count_work("embed", embedded(61.0, wanted), "task").num_windows == expected
    assert count_work("decode", embedded(61.0, wanted), "shared").num_windows == 0


def test_failed_and_unchanged_tracks_are_no_audio() -> None:
    assert count_work("embed", embedded(None, []), "shared") == Work(num_tracks=1)
    assert count_work("decode", embedded(9.0, ["r/8hz"], "decode"), "shared") == Work(num_tracks=1)


def test_parts_are_counted_by_resolution() -> None:
    parts = [{"resolution": name, "size_bytes": size} for name, size in (("8hz", 5), ("8hz", 6), ("16hz", 7))]
    result = pa.Table.from_pylist([{"parts": parts}, {}][:1], schema=RESULTS)
    assert count_work("write", result, "shared").bytes_written == {"8hz": 11, "16hz": 7}


def test_counting_copies_no_waveforms() -> None:
    row = {"track_id": "t", "wanted": ["r/8hz"], "held": [], "duration_s": 100.0}
    narrow = pa.Table.from_pylist([row], schema=DECODED).drop_columns(["waveform"])
    waveform = pa.array([[0.0] * 2_400_000], FEATURE_LIST)
    decoded = narrow.append_column("waveform", waveform).select(DECODED.names)
    pool = pa.default_memory_pool()
    before_bytes = pool.total_bytes_allocated()
    assert count_work("decode", decoded, "shared").audio_s == 100.0
    assert pool.total_bytes_allocated() - before_bytes < 100_000


class Listener:
    """Hears what a monitor is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *told: self.heard.append((name, *told[3:])))


def test_of_a_short_task_there_is_one_message() -> None:
    listener = Listener()
    report = TaskReport(WHO, listener, ["a", "b"])
    assert not report.advance(Work(num_tracks=1), 1)
    report.end(Work(num_tracks=2))
    assert listener.heard == [("end", Work(num_tracks=2), 2)]


def test_a_task_that_lasts_is_heard_of_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run.measure.ADVANCE_INTERVAL_S", 0.1)
    listener = Listener()
    report = TaskReport(WHO, listener, ["a", "b", "c"])
    assert not report.advance(Work(num_tracks=1), 1)
    deadline_s = time.monotonic() + 60
    while not listener.heard and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert listener.heard == [("begin", 3, "b")], "the track at which it is, not the first"
    time.sleep(0.2)
    assert report.advance(Work(num_tracks=2), 2)
    report.end(Work(num_tracks=1))
    assert listener.heard[1:] == [("advance", Work(num_tracks=2), "c"), ("end", Work(num_tracks=1), 3)]
    time.sleep(0.2)
    assert len(listener.heard) == 3
