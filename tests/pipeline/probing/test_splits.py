from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.probing.splits import SPLITS, group_tracks, read_split, split_by_artist

NAMES = st.one_of(st.none(), st.sampled_from(["a", "b", "c", "d", "e", "f", " "]))


def flood(artists: list[str | None], albums: list[str | None]) -> list[set[int]]:
    """Find the groups naively: by walking from each track to whatever shares a name with it."""
    known = [
        {(kind, name.strip()) for kind, name in (("artist", artist), ("album", album)) if name and name.strip()}
        for artist, album in zip(artists, albums, strict=True)
    ]
    groups = []
    left = set(range(len(artists)))
    while left:
        reached = {min(left)}
        while more := {row for row in left - reached if any(known[row] & known[other] for other in reached)}:
            reached |= more
        groups.append(reached)
        left -= reached
    return groups


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_groups_are_what_can_be_walked_to(names: list[tuple[str | None, str | None]]) -> None:
    artists, albums = ([pair[side] for pair in names] for side in (0, 1))
    groups = group_tracks([f"t{row}" for row in range(len(names))], artists, albums)
    found = [set(np.flatnonzero(groups == group).tolist()) for group in np.unique(groups)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, flood(artists, albums)))


@given(st.lists(st.tuples(NAMES, NAMES, st.sampled_from("xyz")), min_size=1, max_size=40), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_artist_or_album_is_on_two_sides_and_no_side_is_empty(
    rows: list[tuple[str | None, str | None, str]], seed: int
) -> None:
    ids = [f"t{row}" for row in range(len(rows))]
    artists, albums = ([row[side] for row in rows] for side in (0, 1))
    labels = [(row[2],) for row in rows]
    together = flood(artists, albums)
    if 2 * max(map(len, together)) > len(rows):
        together = flood(artists, [None] * len(rows))
    if len(together) < 3:
        with pytest.raises(UsageError, match="column `split`"):
            split_by_artist(ids, artists, albums, labels, seed)
        return
    splits, _ = split_by_artist(ids, artists, albums, labels, seed)
    assert set(splits) == set(SPLITS)
    for group in together:
        assert len({splits[row] for row in group}) == 1
    order = np.random.default_rng(seed).permutation(len(rows))
    again, _ = split_by_artist(
        [ids[row] for row in order],
        [artists[row] for row in order],
        [albums[row] for row in order],
        [labels[row] for row in order],
        seed,
    )
    assert again == [splits[row] for row in order]


def test_shares_hold_for_tracks_and_for_every_label() -> None:
    ids = [f"t{row:04}" for row in range(1000)]
    labels = [("rare",) if row % 10 == 0 else ("common",) for row in range(1000)]
    splits, _ = split_by_artist(ids, [f"artist {row // 3}" for row in range(1000)], [None] * 1000, labels)
    for name in ("rare", "common"):
        own = Counter(split for split, label in zip(splits, labels, strict=True) if label == (name,))
        assert [own[split] / sum(own.values()) for split in SPLITS] == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_an_album_of_most_tracks_is_none() -> None:
    ids = [f"t{row}" for row in range(12)]
    artists = [f"artist {row % 4}" for row in range(12)]
    splits, how = split_by_artist(ids, artists, ["Soundtrack"] * 12)
    assert len({(artist, split) for artist, split in zip(artists, splits, strict=True)}) == 4
    assert how == "by artist"
    assert split_by_artist(ids, artists, [None] * 12)[1] == "by artist and album"


def test_another_seed_is_another_split() -> None:
    ids = [f"t{row:04}" for row in range(100)]
    first, second = (split_by_artist(ids, [None] * 100, [None] * 100, None, seed) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("Train", "train"), (" training ", "train"), ("VAL", "valid"), ("validation", "valid"), ("Testing", "test")],
)
def test_splits_have_several_spellings(text: str, wanted: str) -> None:
    assert read_split(text) == wanted


def test_what_names_no_split_is_none() -> None:
    assert read_split("") is None
    assert read_split("holdout-7") is None
