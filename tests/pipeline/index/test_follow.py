from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.index import build as index_build
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.index.quality import measure_quality
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.store.maintain import compact_store, vacuum_store
from pipeline.store.source import Source, VectorBatch, read_vectors
from pipeline.store.writer import StoreWriter
from tests.stores import KnownStore

CATALOG = {f"track{number:02d}": f"content {number}" for number in range(30)}
CHANGES = st.dictionaries(
    st.sampled_from([*list(CATALOG)[:6], "new one", "new two"]),
    st.sampled_from(["gone", "content 0", "other content", "third content"]),
    max_size=3,
)


def change(catalog: dict[str, str], changes: dict[str, str]) -> dict[str, str]:
    changed = {**catalog, **changes}
    return {track_id: content for track_id, content in changed.items() if content != "gone"}


def describe(index: VectorIndex) -> list[tuple[str, list[float], set[str]]]:
    """For every track: the scores of its nearest, and the ids of those nearer than the last, which may tie."""
    ids = np.array(index.tracks.column("track_id").to_pylist())
    found = []
    for position, track_id in enumerate(ids):
        scores, rows = index.search(index.vectors_of(position)[:1], 10)
        nearer = scores[0] > scores[0, -1] + 1e-4
        names = set(ids[index.track_of(rows[0][nearer])].tolist())
        found.append((str(track_id), [round(float(score), 4) for score in scores[0]], names))
    return found


@settings(max_examples=6, deadline=None)
@given(
    first=CHANGES,
    second=CHANGES,
    resolution=st.sampled_from(["global", "0.5hz"]),
    kind=st.sampled_from(["exact", "ivf"]),
)
def test_to_follow_is_to_rebuild(
    tmp_path_factory: pytest.TempPathFactory,
    first: dict[str, str],
    second: dict[str, str],
    resolution: str,
    kind: str,
) -> None:
    known = KnownStore(StoreLocation(str(tmp_path_factory.mktemp("store"))))
    known.run(CATALOG, tracks_per_part=10)
    wanted = IndexSettings(resolution, kind=kind)
    built = build_index(known.location, wanted)
    catalog = CATALOG
    for changes in (first, second):
        catalog = change(catalog, changes)
        known.run(catalog, prune=True)
        manifest = build_index(known.location, wanted)
        assert manifest.segments[: len(built.segments)] == built.segments
    followed = VectorIndex.open(known.location, resolution)
    assert followed.tracks.column("track_id").to_pylist() == sorted(catalog)
    for position, track_id in enumerate(sorted(catalog)):
        features = next(iter(known.features.items()))[0][0], resolution
        exact = known.features[features][track_id]
        exact = exact / np.linalg.norm(exact, axis=1, keepdims=True)
        np.testing.assert_allclose(followed.vectors_of(position), exact, atol=1e-3)
    build_index(known.location, IndexSettings(resolution, kind=kind, rebuild=True))
    rebuilt = VectorIndex.open(known.location, resolution)
    assert rebuilt.tracks.drop_columns(["first_row", "map_x", "map_y"]).equals(
        followed.tracks.drop_columns(["first_row", "map_x", "map_y"])
    )
    assert rebuilt.num_rows == rebuilt.manifest.num_vectors  # dead rows are gone
    if kind == "exact":
        assert describe(rebuilt) == describe(followed)


@pytest.fixture
def known(tmp_path: Path) -> KnownStore:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run(CATALOG, tracks_per_part=10)
    return known


def test_a_follow_up_reads_and_writes_what_changed_alone(
    known: KnownStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build_index(known.location, IndexSettings())
    known.run(change(CATALOG, {"track03": "changed", "new": "new", "track04": "gone"}), prune=True)
    read: list[str] = []

    def spy(source: Source, paths: Sequence[str], wanted: pa.Table) -> Iterator[VectorBatch]:
        read.extend(paths if wanted.num_rows else ())
        return read_vectors(source, paths, wanted)

    monkeypatch.setattr("pipeline.index.follow.read_vectors", spy)
    monkeypatch.setattr(index_build, "build", None)  # a rebuild would fail
    followed = build_index(known.location, IndexSettings())
    assert len(read) == 1
    assert followed.segments[:-1] == built.segments
    assert followed.segments[-1].num_rows == 2
    assert followed.files["map"] == built.files["map"]
    assert followed.training == {"num_tracks": 30, "num_changed": 3}


def test_new_metadata_alone_is_taken_over_without_a_segment(known: KnownStore) -> None:
    built = build_index(known.location, IndexSettings())
    known.run(CATALOG)
    followed = build_index(known.location, IndexSettings())
    assert followed.version == 2
    assert followed.store_version > built.store_version
    assert followed.segments == built.segments


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_deleted_track_is_never_returned(known: KnownStore, kind: str) -> None:
    build_index(known.location, IndexSettings(kind=kind))
    old = VectorIndex.open(known.location)
    query = old.vectors_of(old.find_track("track05"))
    known.run(change(CATALOG, {"track05": "gone"}), prune=True)
    build_index(known.location, IndexSettings(kind=kind))
    index = VectorIndex.open(known.location)
    scores, rows = index.search(query, 30)
    ids = index.tracks.column("track_id")
    assert "track05" not in [ids[track].as_py() for track in index.track_of(rows[0][rows[0] >= 0])]
    assert (rows[0] >= 0).sum() == 29
    assert old.search(query, 1)[0][0, 0] > scores[0, 0]  # the open one still serves its own snapshot


def test_drift_asks_for_a_rebuild(known: KnownStore, caplog: pytest.LogCaptureFixture) -> None:
    build_index(known.location, IndexSettings(kind="ivf"))
    known.run(change(CATALOG, {f"track{number:02d}": "changed" for number in range(12)}))
    manifest = build_index(known.location, IndexSettings(kind="ivf"))
    assert manifest.training == {"num_tracks": 30, "num_changed": 0}
    assert "12 tracks changed" in caplog.text


def test_lost_recall_asks_for_a_rebuild(
    known: KnownStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build_index(known.location, IndexSettings("16hz", kind="ivf"))
    known.run({**CATALOG, "new": "new"})
    numbers: list[int] = []

    def measure(index: VectorIndex, num_queries: int) -> dict[str, Any]:
        numbers.append(num_queries)
        return (
            {"recall_at_10": 0.9}
            if index.manifest.training["num_changed"]
            else measure_quality(index, num_queries)
        )

    monkeypatch.setattr(index_build, "measure_quality", measure)
    manifest = build_index(known.location, IndexSettings("16hz", kind="ivf"))
    assert numbers[0] < numbers[1] == numbers[2]  # few queries, then as many as a build asks, then the rebuild
    assert manifest.training["num_changed"] == 0
    assert manifest.quality["recall_at_10"] > 0.9
    assert "recall@10 fell" in caplog.text


def test_compaction_and_vacuum_of_the_store_cost_an_index_nothing(known: KnownStore) -> None:
    built = build_index(known.location, IndexSettings("0.5hz"))
    writer = StoreWriter(known.location, "maintain")
    compact_store(writer)
    vacuum_store(writer, 0)
    followed = build_index(known.location, IndexSettings("0.5hz"))
    assert followed.segments == built.segments
    known.run({**CATALOG, "new": "new"})
    assert build_index(known.location, IndexSettings("0.5hz")).segments[:-1] == built.segments
