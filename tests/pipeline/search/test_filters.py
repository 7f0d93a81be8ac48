from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import UsageError
from pipeline.search.filters import filter_tracks

COLUMNS = ("track_id", "artist", "duration_s")
TRACKS = pa.table(
    {
        "track_id": ["a", "b", "c", "d"],
        "artist": ["X", "O'Neill", None, "X"],
        "duration_s": [10.0, 200.0, 30.0, None],
        "first_row": [0, 1, 2, 3],
    }
)


def select(where: str) -> list[str]:
    mask = filter_tracks(TRACKS, where, COLUMNS)
    return [name for name, chosen in zip("abcd", mask, strict=True) if chosen]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("artist != 'X'", ["b"]),  # in SQL an unknown artist is neither X nor not X
        ("artist IS DISTINCT FROM 'X'", ["b", "c"]),
        ("artist = 'O''Neill' OR duration_s < 20", ["a", "b"]),
        ("track_id IN ('a', 'd') AND duration_s IS NULL -- and a remark", ["d"]),
        ("lower(artist) LIKE 'o%'", ["b"]),
        ("false", []),
    ],
)
def test_a_condition_selects_tracks(where: str, expected: list[str]) -> None:
    assert select(where) == expected


@pytest.mark.parametrize(
    "where",
    [
        "",
        "artist = 'X'; DROP TABLE tracks",
        "true) UNION ALL (SELECT 1",
        "artist = 'X' LIMIT 1",
        "artist = 'X', true",
        "artist",
        "first_row = 1",
        "nonsense ~~~",
        "SET threads = 8",
    ],
)
def test_anything_but_one_condition_is_refused_with_the_columns_there_are(where: str) -> None:
    with pytest.raises(UsageError, match="track_id, artist, duration_s"):
        select(where)


@pytest.mark.parametrize("table", ["read_csv('{}')", "read_text('{}')", "'{}'"])
def test_no_file_can_be_read(tmp_path: Path, table: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nhush\n")
    with pytest.raises(UsageError):
        select(f"EXISTS (SELECT * FROM {table.format(secret)})")


def test_a_condition_that_takes_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.search.filters.MAX_SECONDS", 0.3)
    with pytest.raises(UsageError, match=r"under 0\.3 s"):
        select("(SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b) = artist")


def test_many_tracks_are_selected_by_row() -> None:
    tracks = pa.table({"track_id": [f"{number}" for number in range(100_000)], "n": np.arange(100_000)})
    assert (filter_tracks(tracks, "n % 3 = 0", ("n",)) == (np.arange(100_000) % 3 == 0)).all()
