from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.store.source import open_source, read_vectors
from tests.stores import KnownStore, make_recipe

CATALOG = {f"track{number:02d}": f"content {number}" for number in range(9)}
RECIPE = make_recipe().recipe_id


@pytest.fixture
def known(tmp_path: Path) -> KnownStore:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run(CATALOG)
    return known


@pytest.mark.parametrize("resolution", ["global", "0.5hz", "16hz"])
def test_vectors_come_with_their_tracks_and_only_living_ones(known: KnownStore, resolution: str) -> None:
    known.run({**CATALOG, "track03": "changed", "new": "new content"}, prune=True)
    source = open_source(known.location, resolution)
    found: dict[str, Any] = {}
    for batch in read_vectors(source, source.parts.column("path").to_pylist(), source.ledger):
        bounds = np.cumsum(batch.lengths)[:-1]
        names = batch.keys.column("track_id").to_pylist()
        assert not set(names) & set(found)
        found |= dict(zip(names, np.split(batch.vectors, bounds), strict=True))
    expected = known.features[RECIPE, resolution]
    assert set(found) == set(expected)
    for track_id, features in expected.items():
        assert np.array_equal(found[track_id], features)


def test_parts_without_wanted_tracks_are_not_opened(known: KnownStore) -> None:
    source = open_source(known.location, "0.5hz")
    for path in source.parts.column("path").to_pylist():
        Path(known.location.table_url("frames"), path).unlink()
    assert list(read_vectors(source, source.parts.column("path").to_pylist(), source.ledger.slice(0, 0))) == []


def test_a_source_says_which_snapshot_and_recipe_it_is(known: KnownStore) -> None:
    source = open_source(known.location, "0.5hz", RECIPE)
    assert source.recipe == RECIPE
    assert source.definition == make_recipe().definition
    assert source.ledger.column("track_id").to_pylist() == sorted(CATALOG)
    assert source.store_version > 0


def test_tracks_without_the_resolution_are_left_out(known: KnownStore) -> None:
    known.run({**CATALOG, "late": "late content"}, resolutions=("16hz",))
    assert "late" not in open_source(known.location, "global").ledger.column("track_id").to_pylist()
    assert "late" in open_source(known.location, "16hz").ledger.column("track_id").to_pylist()


def test_an_unknown_recipe_is_refused(known: KnownStore) -> None:
    with pytest.raises(UsageError, match=f"{RECIPE}.*found other"):
        open_source(known.location, "global", "other")
