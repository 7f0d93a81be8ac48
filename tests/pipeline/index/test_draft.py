import pytest

from pipeline.index.draft import EXACT_VALUES, choose_kind


@pytest.mark.parametrize(
    ("share", "previous", "expected"),
    [
        (0.5, None, "exact"),
        (1.0, None, "exact"),
        (1.1, None, "ivf"),
        (1.1, "exact", "exact"),
        (1.3, "exact", "ivf"),
        (0.8, "ivf", "ivf"),
        (0.7, "ivf", "exact"),
    ],
)
def test_the_kind_follows_the_size_and_does_not_flicker(share: float, previous: str | None, expected: str) -> None:
    assert choose_kind(int(share * EXACT_VALUES), previous) == expected


def test_a_hundred_thousand_tracks_are_scanned_and_a_million_are_not() -> None:
    assert choose_kind(100_000 * 1024) == "exact"
    assert choose_kind(1_000_000 * 1024) == "ivf"
