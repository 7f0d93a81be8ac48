import io
import json
import tarfile
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import EXPORT_FORMATS
from pipeline.errors import RunError, UsageError
from pipeline.location import StoreLocation
from pipeline.storage import list_files
from pipeline.store.export import (
    ExportedTrack,
    encode_tar,
    export_features,
    group_into_shards,
    make_key,
)
from pipeline.store.read import FeatureStore
from tests.stores import EMBED_DIM, KnownStore, make_recipe

Matrix = npt.NDArray[np.float32]

# Names that mean something to tar, to WebDataset (a dot ends the name) or to file systems.
ODD_IDS = ["a.b.c", "a.b", "a/b", "../up", "__meta__", "Björk – Jóga", "50%", "50%25", "x" * 180, "sp ace", "~"]


@pytest.fixture
def known(tmp_path: Path) -> KnownStore:
    """A store with dead frames, a departed track, and parts of three tracks."""
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    contents = {track_id: f"content of {track_id}" for track_id in [*ODD_IDS, *(f"track {n}" for n in range(9))]}
    known.run({**contents, "gone": "soon", "track 1": "an older one"})
    known.run(contents, prune=True)
    return known


def expected_of(known: KnownStore, resolution: str) -> dict[str, Matrix]:
    """What the project's own reader gives, which must be what the store was made with."""
    store = FeatureStore(known.location.url)
    if resolution == "global":
        ids, vectors = store.vectors("global")
        found = dict(zip(ids.to_pylist(), vectors, strict=True))
    else:
        rows = [row for table in store.iter_frames(resolution) for row in table.to_pylist()]
        found = {row["track_id"]: np.array(row["embeddings"], np.float32) for row in rows}
    truth = known.features[make_recipe().recipe_id, resolution]
    assert found.keys() == truth.keys()
    assert all(np.array_equal(found[track_id].reshape(-1), truth[track_id].reshape(-1)) for track_id in truth)
    return found


def check_facts(facts: dict[str, Any], resolution: str, num_frames: int) -> None:
    assert facts["title"] == facts["track_id"].upper()
    assert facts["content_hash"] == f"content of {facts['track_id']}"
    assert (facts["recipe"], facts["resolution"]) == (make_recipe().recipe_id, resolution)
    assert (facts["num_frames"], facts["frame_rate_hz"]) == (num_frames, {"16hz": 16.0}.get(resolution))
    assert "uri" not in facts


@pytest.mark.parametrize("resolution", ["16hz", "global"])
@pytest.mark.parametrize("shard_bytes", [1, 4000, 1 << 30])
def test_webdataset_reads_all_values_and_facts_back(
    known: KnownStore, tmp_path: Path, resolution: str, shard_bytes: int
) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed: pip install '.[dev]'")
    out = tmp_path / "out"
    report = export_features(known.location, resolution, "webdataset", str(out), shard_bytes=shard_bytes)
    expected = expected_of(known, resolution)
    assert sorted(report.shards) == sorted(str(path) for path in out.iterdir())
    found = {}
    for sample in webdataset.WebDataset(list(report.shards), shardshuffle=False).decode():
        track_id = sample["json"]["track_id"]
        assert sample["__key__"] == make_key(track_id)
        assert track_id not in found
        found[track_id] = sample["npy"]
        check_facts(sample["json"], resolution, len(found[track_id]) if resolution != "global" else 1)
    assert found.keys() == expected.keys()
    for track_id, vectors in found.items():
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, expected[track_id]), track_id
    num_vectors = len(expected) if resolution == "global" else sum(map(len, expected.values()))
    assert (report.num_tracks, report.num_vectors, report.embed_dim) == (len(expected), num_vectors, EMBED_DIM)
    assert len(report.shards) == {1: len(expected), 1 << 30: 1}.get(shard_bytes, len(report.shards))


@pytest.mark.parametrize("resolution", ["16hz", "global"])
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_the_folder_with_all_values_and_facts(
    known: KnownStore, tmp_path: Path, resolution: str, streaming: bool
) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[dev]'")
    out = tmp_path / "out"
    report = export_features(known.location, resolution, "huggingface", str(out), shard_bytes=4000)
    assert resolution == "global" or len(report.shards) > 1
    expected = expected_of(known, resolution)
    rows = datasets.load_dataset(str(out), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache"))
    column = "embedding" if resolution == "global" else "embeddings"
    found = {}
    for row in rows:
        vectors = np.array(row.pop(column), np.float32)
        check_facts(row, resolution, len(vectors) if resolution != "global" else 1)
        found[row["track_id"]] = vectors
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[track_id], expected[track_id]) for track_id in found)
    kind = rows.features[column]
    assert "float32" in str(kind)
    card = (out / "README.md").read_text()
    assert f"{report.num_tracks} tracks, {report.num_vectors} vectors" in card
    assert "ab" * 32 in card  # the checkpoint's hash, out of the recipe's definition


def test_parquet_of_the_export_opens_anywhere(known: KnownStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export_features(known.location, "16hz", "huggingface", str(out), shard_bytes=4000)
    count = duckdb.execute(f"SELECT count(*), sum(len(embeddings)) FROM '{out}/data/*.parquet'").fetchall()
    assert count == [(report.num_tracks, report.num_vectors)]


@given(st.sets(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=5))
def test_keys_are_single_names_without_dots_and_no_two_alike(track_ids: set[str]) -> None:
    keys = {make_key(track_id) for track_id in track_ids}
    assert len(keys) == len(track_ids)
    assert not any(character in key for key in keys for character in "./\\\0\n")


def test_the_same_tracks_give_the_same_bytes_and_a_plain_tar() -> None:
    facts: dict[str, object] = {"track_id": "a.b", "resolution": "16hz", "title": "Jóga"}
    tracks = [ExportedTrack(facts, np.arange(6, dtype=np.float32).reshape(3, 2))]
    data = encode_tar(tracks)
    assert data == encode_tar(tracks)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["a%2Eb.npy", "a%2Eb.json"]
        assert json.load(tar.extractfile("a%2Eb.json")) == facts  # type: ignore[arg-type]


def test_tracks_are_not_read_ahead_of_their_shard() -> None:
    read = 0

    def tracks() -> Iterator[ExportedTrack]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield ExportedTrack({"track_id": str(number)}, np.zeros((256, 1024), np.float32))  # 1 MiB

    tracemalloc.start()
    sizes = []
    for shard in group_into_shards(tracks(), 10 << 20):
        sizes.append(len(shard))
        assert read == sum(sizes)
        del shard
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sizes == [10] * 100
    assert peak < 22 << 20  # of the 1000 MiB: a shard, and the one that is being gathered


@pytest.mark.parametrize("format_name", EXPORT_FORMATS)
def test_a_folder_with_files_is_left_alone(known: KnownStore, tmp_path: Path, format_name: str) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="expected a new or empty folder, found"):
        export_features(known.location, "16hz", format_name, str(tmp_path))


@pytest.mark.parametrize("format_name", EXPORT_FORMATS)
def test_the_copy_may_lie_in_object_storage(known: KnownStore, format_name: str) -> None:
    out = f"memory://exports-{uuid.uuid4().hex}/16hz"
    report = export_features(known.location, "16hz", format_name, out, shard_bytes=4000)
    written = {path for path in list_files(out)["path"].to_pylist() if path != "README.md"}
    assert written == {url.removeprefix(f"{out}/") for url in report.shards}
    with pytest.raises(UsageError, match="expected a new or empty folder, found"):
        export_features(known.location, "16hz", format_name, out)


def test_what_the_store_lacks_is_named(known: KnownStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"resolution 50hz.*--resolutions 50hz"):
        export_features(known.location, "50hz", "webdataset", str(tmp_path / "out"))
    with pytest.raises(UsageError, match="webdataset or huggingface"):
        export_features(known.location, "16hz", "csv", str(tmp_path / "out"))


def test_a_store_that_lost_a_part_gives_no_whole_looking_copy(known: KnownStore, tmp_path: Path) -> None:
    table = DeltaTable(f"{known.location.url}/frames")
    table.delete("resolution = '16hz' AND track_id = 'track 5'")
    known.run({**known.contents[make_recipe().recipe_id], "new": "one"})  # a snapshot that has the loss
    with pytest.raises(RunError, match=r"is not whole: see musicfm check"):
        export_features(known.location, "16hz", "huggingface", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "README.md").exists()
