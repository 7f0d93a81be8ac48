from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.store.read import FeatureStore
from pipeline.store.torch_dataset import FrameDataset
from tests.stores import EMBED_DIM, KnownStore, make_recipe

SEVEN, FOUR = make_recipe(7), make_recipe(4)
CONTENTS = {f"track {number:02d}": f"content {number}" for number in range(17)}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> KnownStore:
    known = KnownStore(StoreLocation(str(tmp_path_factory.mktemp("dataset") / "store")))
    known.run(CONTENTS, [SEVEN, FOUR], ["16hz", "global"])
    changed = {**CONTENTS, "track 03": "another", "track 09": "another"}
    known.run({track_id: changed[track_id] for track_id in list(changed)[1:]}, [SEVEN], ["16hz"], prune=True)
    return known


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("recipe", [SEVEN.recipe_id, FOUR.recipe_id])
def test_every_live_track_comes_once_an_epoch(known: KnownStore, recipe: str, num_workers: int) -> None:
    store = FeatureStore(known.location.url)
    store.frames(["track 01"], "16hz", recipe=recipe)  # has both readers at work before the workers are forked
    loader = DataLoader(FrameDataset(store, "16hz", recipe), batch_size=None, num_workers=num_workers)
    expected = known.features[recipe, "16hz"]
    for _ in range(2):
        items = list(loader)
        assert sorted(item["track_id"] for item in items) == sorted(expected)
        for item in items:
            assert item["embeddings"].dtype == torch.float32
            np.testing.assert_array_equal(item["embeddings"].numpy(), expected[item["track_id"]])


def test_workers_share_the_parts(known: KnownStore) -> None:
    dataset = FrameDataset(FeatureStore(known.location.url), "16hz", SEVEN.recipe_id)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=lambda items: items)
    batches = [[item["track_id"] for item in batch] for batch in loader]
    assert {len(batch) for batch in batches[:2]} == {4}  # one batch from each worker
    assert not set(batches[0]) & set(batches[1])


def test_rows_are_those_of_the_snapshot_it_was_made_from(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({"a": "a 1", "b": "b 1"})
    expected = dict(known.features[SEVEN.recipe_id, "16hz"])
    dataset = FrameDataset(FeatureStore(known.location.url), "16hz")
    known.run({"a": "a 2", "c": "c 1"}, prune=True)
    for _ in range(2):
        found = {item["track_id"]: item["embeddings"].numpy() for item in dataset}
        assert sorted(found) == sorted(expected)
        for track_id, matrix in found.items():
            np.testing.assert_array_equal(matrix, expected[track_id])


def test_an_item_is_the_callers_to_change(known: KnownStore) -> None:
    item = next(iter(FrameDataset(FeatureStore(known.location.url), "16hz", FOUR.recipe_id)))
    assert item["embeddings"].shape[1] == EMBED_DIM
    item["embeddings"].zero_()
    assert not item["embeddings"].any()


def test_a_mistake_is_told_before_any_worker_starts(known: KnownStore) -> None:
    store = FeatureStore(known.location.url)
    with pytest.raises(UsageError, match=f"{FOUR.recipe_id}, {SEVEN.recipe_id}"):
        FrameDataset(store, "16hz")
    with pytest.raises(UsageError, match=r"\(16hz, global\), found '8hz'"):
        FrameDataset(store, "8hz", FOUR.recipe_id)
