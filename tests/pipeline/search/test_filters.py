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
        ("duration_s BETWEEN 5 AND 50 AND NOT track_id ILIKE '%C%'", ["a"]),
        ("CASE WHEN artist IS NULL THEN 'none' ELSE artist || '!' END = 'X!'", ["a", "d"]),
        ("CAST(round(duration_s / 10) AS INT) IN (1, 3) AND artist SIMILAR TO '.'", ["a"]),
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


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("list_sum(range(100000000)) > 0", "list_sum, range"),
        ("length(repeat('a', 1000000000)) > 0", "repeat"),
        ("CAST((SELECT value FROM duckdb_settings() LIMIT 1) AS INT) = 1", "subquery"),
        ("getvariable('x') = 1", "getvariable"),
        ("current_setting('secret_directory') = ''", "current_setting"),
        ("[artist FOR x IN [1]] = []", "lambda"),
        ("sum(duration_s) OVER () > 1", "window"),
        ("COLUMNS(*) = 'a'", "star"),
        ("lower(replace(artist, 'X', 'XX')) = 'xx'", "replace"),
    ],
)
def test_what_could_fill_the_memory_or_ask_for_settings_is_refused(where: str, named: str) -> None:
    with pytest.raises(UsageError, match=f"{named}.* may not be used"):
        select(where)


@pytest.mark.parametrize("table", ["read_csv('{}')", "read_text('{}')", "'{}'"])
def test_no_file_can_be_read(tmp_path: Path, table: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nhush\n")
    with pytest.raises(UsageError):
        select(f"EXISTS (SELECT * FROM {table.format(secret)})")


def test_a_condition_that_takes_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.search.filters.MAX_SECONDS", 0.1)
    tracks = pa.table({"track_id": pa.array(["Some name of a track"] * 2_000_000)})
    with pytest.raises(UsageError, match=r"under 0\.1 s"):
        filter_tracks(tracks, "lower(" * 100 + "track_id" + ")" * 100 + " = 'x'", ("track_id",))


def test_many_tracks_are_selected_by_row() -> None:
    tracks = pa.table({"track_id": [f"{number}" for number in range(100_000)], "n": np.arange(100_000)})
    assert (filter_tracks(tracks, "n % 3 = 0", ("n",)) == (np.arange(100_000) % 3 == 0)).all()
