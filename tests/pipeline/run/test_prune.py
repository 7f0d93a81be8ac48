from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PruneLimit
from pipeline.run.prune import list_roots


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("25%", PruneLimit(0.25)),
        ("2.5%", PruneLimit(0.025)),
        ("100%", PruneLimit(1.0)),
        ("7", PruneLimit(number=7)),
    ],
)
def test_a_limit_is_a_share_or_a_number(text: str, limit: PruneLimit) -> None:
    assert PruneLimit.parse(text) == limit


@pytest.mark.parametrize("text", ["", "%", "x", "-1", "1.5", "10%%", "1e3", "nan%", "5 %5", ".%"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a share such as 25% or a number of tracks"):
        PruneLimit.parse(text)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_tenth_may_leave_and_no_more(num_leaving: int, num_held: int) -> None:
    assert PruneLimit().allows(num_leaving, num_held) == (10 * num_leaving <= num_held)
    assert PruneLimit(number=3).allows(num_leaving, num_held) == (num_leaving <= 3)


def test_tracks_are_counted_by_the_folder_that_their_ids_are_relative_to() -> None:
    tracks = pa.table(
        {
            "track_id": ["x/1.mp3", "2.mp3", "a/3.mp3", "TR1", "moved", "gone", "s3://b/d/4.mp3", "live/a/5.mp3"],
            "uri": [
                "/music/x/1.mp3",
                "/music/2.mp3",
                "s3://b/c/a/3.mp3",
                "/msd/T/TR1.clip.mp3",
                "/m/moved",
                None,
                "s3://b/d/4.mp3",
                "/concerts/a/5.mp3",
            ],
        }
    )
    roots = {"/music": 2, "s3://b/c": 1, "/msd/T": 1, "no file": 1, "s3://b/d": 1, "/concerts": 1}
    assert list_roots(tracks, {"moved"}) == Counter(roots)
