"""Features under new ids: as they were, in few parts, whole tracks in each, whatever parts they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.location import StoreLocation
from pipeline.schema import CATALOG, UNCHANGED
from pipeline.store import takeover
from pipeline.store.parts import Part
from pipeline.store.read import FeatureStore
from pipeline.store.tables import open_table
from pipeline.store.takeover import Match, copy_tracks
from tests.rows import build_catalog
from tests.stores import KnownStore, make_recipe

NUM_TRACKS = 12
RECIPE = make_recipe().recipe_id
CONTENTS = {f"t{number:02d}": f"content {number}" for number in range(NUM_TRACKS)} | {"long": "long one"}


@pytest.fixture
def known(tmp_path: Path) -> KnownStore:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run(CONTENTS, tracks_per_part=1)
    return known


def copy(known: KnownStore, names: dict[str, str]) -> list[Part]:
    """Copy the features of tracks to others, commit them, and return the parts."""
    matches = [Match(new, CONTENTS[old], old, False) for new, old in names.items()]
    catalog = build_catalog({"track_id": new, "uri": f"/new/{new}"} for new in names)
    hashes = [CONTENTS[old] for old in names.values()]
    rows = [{**row, "content_hash": content} for row, content in zip(catalog.to_pylist(), hashes, strict=True)]
    recognised = catalog.from_pylist(rows, schema=UNCHANGED)
    committer = known.run(CONTENTS, close=False)
    ledger, frames = open_table(known.location, "tracks"), committer.writer.frames
    parts, tracks = copy_tracks(matches, recognised, known.location, ledger, frames, [RECIPE], {}, "second")
    assert set(CATALOG.names) <= set(tracks.column_names)
    committer.take_over(parts, tracks)
    committer.counts.planned += len(names)
    committer.counts.unchanged += len(names)
    committer.close()
    return parts


def assert_copied(known: KnownStore, names: dict[str, str]) -> None:
    reader = FeatureStore(known.location.url)
    for resolution in ("16hz", "0.5hz", "global"):
        expected = known.features[RECIPE, resolution]
        rows = reader.frames([*CONTENTS, *names], resolution).to_pylist()
        assert len(rows) == len(CONTENTS) + len(names)
        for row in rows:
            source = names.get(row["track_id"], row["track_id"])
            np.testing.assert_array_equal(np.array(row["embeddings"], np.float32), expected[source])


@pytest.mark.parametrize("order", [1, -1])
def test_many_small_parts_become_one_of_each_resolution(known: KnownStore, order: int) -> None:
    names = dict(zip([f"x/{old}" for old in CONTENTS][::order], CONTENTS, strict=True))
    parts = copy(known, names)
    assert sorted(part.resolution or "" for part in parts) == ["0.5hz", "16hz", "global"]
    assert {(part.min_track_id, part.max_track_id) for part in parts} == {(min(names), max(names))}
    assert_copied(known, names)


def test_parts_end_between_tracks(known: KnownStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "_MAX_VALUES_PER_PART", 3000)  # some tracks of 16 Hz; the long one has far more
    names = {f"x/{old}": old for old in CONTENTS} | {f"copy {number}": "t00" for number in range(40)}
    parts = copy(known, names)
    per_resolution = [part for part in parts if part.resolution == "16hz"]
    assert len(per_resolution) > 3
    assert (
        sum(part.num_rows for part in parts if part.resolution == "0.5hz") == len(names) + 2
    )  # three of the long
    assert_copied(known, names)


def test_few_files_are_in_memory_at_once(known: KnownStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "_MAX_READ_BYTES", 1)
    names = {f"x/{old}": old for old in CONTENTS}
    copy(known, names)
    assert_copied(known, names)
