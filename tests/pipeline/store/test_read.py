import os
import pickle
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import RESOLUTIONS
from pipeline.errors import StorageError, StoreFormatError, UsageError
from pipeline.location import StoreLocation
from pipeline.schema import TRACKS
from pipeline.store import parts, read_parts
from pipeline.store.maintain import compact_store, vacuum_store
from pipeline.store.read import FeatureStore
from pipeline.store.segments import take_rows
from pipeline.store.tables import FORMAT_PROPERTY, open_table
from pipeline.store.writer import StoreWriter
from tests.stores import BAD, EMBED_DIM, KnownStore, Matrix, make_recipe

SEVEN, FOUR = make_recipe(7), make_recipe(4)
FIRST = {track_id: f"{track_id} 1" for track_id in ("Z", "a", "b", "c/d", "e f", "g", "h", "é", "ü", "日本")}
WITH_FRAMES = ("50hz", "16hz", "8hz", "0.5hz")
CHANGED = {**FIRST, "b": "b 2", "new": "new 1", "g": BAD, "broken": BAD}
PRUNED = {track_id: content for track_id, content in CHANGED.items() if track_id not in ("a", "é")}


def build_store(folder: Path) -> KnownStore:
    """Three runs: ten tracks; one changed, one new, two bad, a second recipe and resolution; two removed."""
    known = KnownStore(StoreLocation(str(folder)))
    known.run(FIRST, [SEVEN], ["50hz", "16hz", "0.5hz", "global"])
    known.run(CHANGED, [SEVEN, FOUR], ["50hz", "16hz", "8hz", "0.5hz", "global"], tracks_per_part=4)
    known.run(PRUNED, [SEVEN, FOUR], ["16hz"], prune=True)
    return known


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> KnownStore:
    return build_store(tmp_path_factory.mktemp("read") / "store")


@pytest.fixture(scope="module")
def store(known: KnownStore) -> FeatureStore:
    return FeatureStore(known.location.url)


def as_matrices(frames: pa.Table) -> list[tuple[str, Matrix]]:
    columns = (frames.column(name).to_pylist() for name in ("track_id", "num_frames", "embeddings"))
    found = []
    for track_id, num_frames, embeddings in zip(*columns, strict=True):
        assert num_frames == len(embeddings)
        found.append((track_id, np.array(embeddings, np.float32).reshape(-1, EMBED_DIM)))
    return found


def assert_same(found: list[tuple[str, Matrix]], expected: list[tuple[str, Matrix]]) -> None:
    assert [track_id for track_id, _ in found] == [track_id for track_id, _ in expected]
    for (_, matrix), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(matrix, other)


def test_the_oracle_itself_has_dead_rows_and_several_parts(known: KnownStore) -> None:
    assert set(known.contents[SEVEN.recipe_id]) == set(PRUNED) - {"broken"}  # what turned bad keeps what it had
    assert set(known.contents[FOUR.recipe_id]) == set(PRUNED) - {"broken", "g"}
    frames = open_table(known.location, "frames")
    assert frames.to_pyarrow_table().num_rows > sum(
        len(tracks) for (_, resolution), tracks in known.features.items() if resolution != "global"
    )
    parts = Counter(Path(uri).parent.name for uri in frames.file_uris())
    assert parts["resolution=16hz"] >= 5


@pytest.mark.parametrize("recipe", [SEVEN.recipe_id, FOUR.recipe_id])
@pytest.mark.parametrize("resolution", WITH_FRAMES)
def test_frames_are_those_that_were_stored(
    recipe: str, resolution: str, known: KnownStore, store: FeatureStore
) -> None:
    expected = sorted(known.features[recipe, resolution].items())
    ids = [track_id for track_id, _ in expected]
    found = store.frames(ids, resolution, recipe=recipe)
    assert_same(as_matrices(found), expected)
    assert found.column("content_hash").to_pylist() == [known.contents[recipe][track_id] for track_id in ids]
    assert set(found.column("frame_rate_hz").to_pylist()) == {RESOLUTIONS[resolution].frame_rate_hz}


@pytest.mark.parametrize("recipe", [SEVEN.recipe_id, FOUR.recipe_id])
def test_vectors_are_those_that_were_stored(recipe: str, known: KnownStore, store: FeatureStore) -> None:
    expected = sorted(known.features[recipe, "global"].items())
    ids, matrix = store.vectors(recipe=recipe)
    assert ids.to_pylist() == [track_id for track_id, _ in expected]
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.concatenate([features for _, features in expected]))


def test_every_frame_can_be_a_vector(known: KnownStore, store: FeatureStore) -> None:
    expected = sorted(known.features[SEVEN.recipe_id, "8hz"].items())
    ids, matrix = store.vectors("8hz", SEVEN.recipe_id)
    assert ids.to_pylist() == [track_id for track_id, features in expected for _ in features]
    np.testing.assert_array_equal(matrix, np.concatenate([features for _, features in expected]))


def test_tracks_come_in_the_order_asked_for(known: KnownStore, store: FeatureStore) -> None:
    features = known.features[SEVEN.recipe_id, "16hz"]
    asked = ["日本", "nobody", "Z", "broken", "a", "new", "b", "Z"]
    expected = [(track_id, features[track_id]) for track_id in ("日本", "Z", "new", "b", "Z")]
    for ids in (asked, pa.array(asked)):
        assert_same(as_matrices(store.frames(ids, "16hz", recipe=SEVEN.recipe_id)), expected)


@pytest.mark.parametrize("ids", [[], ["nobody"], ["", "~"]])
def test_no_track_gives_no_row_but_the_same_columns(ids: list[str], store: FeatureStore) -> None:
    whole = store.frames(["Z"], "16hz", recipe=SEVEN.recipe_id)
    empty = store.frames(ids, "16hz", 0.1, 0.2, SEVEN.recipe_id)
    assert empty.num_rows == 0
    assert empty.schema.names == whole.schema.names
    assert empty.schema.types == whole.schema.types


times_s = st.none() | st.integers(-500, 6000).map(lambda ms: ms / 1000) | st.integers(0, 120).map(lambda n: n / 25)


@settings(deadline=None, max_examples=60)
@given(resolution=st.sampled_from(WITH_FRAMES), start_s=times_s, end_s=times_s)
def test_a_cut_is_a_slice_of_the_whole(
    resolution: str, start_s: float | None, end_s: float | None, known: KnownStore, store: FeatureStore
) -> None:
    features = known.features[FOUR.recipe_id, resolution]
    frame_s = 1 / Fraction(RESOLUTIONS[resolution].frame_rate_hz or 0)
    begin = Fraction(start_s).limit_denominator(1000) if start_s is not None else Fraction(0)
    end = Fraction(end_s).limit_denominator(1000) if end_s is not None else Fraction(10**6)
    expected = [
        (id_, matrix[[i for i in range(len(matrix)) if (i + 1) * frame_s > begin and i * frame_s < end]])
        for id_, matrix in features.items()
    ]
    found = store.frames(list(features), resolution, start_s, end_s, FOUR.recipe_id)
    assert_same(as_matrices(found), expected)


def test_a_point_read_touches_no_other_part(tmp_path: Path) -> None:
    known = build_store(tmp_path / "store")
    store = FeatureStore(known.location.url)
    features = known.features[SEVEN.recipe_id, "16hz"]
    for table_name in ("tracks", "frames"):
        files = pa.table(open_table(known.location, table_name).get_add_actions(flatten=True)).to_pylist()
        kept = [file["path"] for file in files if file["min.track_id"] <= "h" <= file["max.track_id"]]
        assert 0 < len(kept) < len(files)
        for file in files:
            if file["path"] not in kept or file.get("partition.resolution", "16hz") != "16hz":
                (tmp_path / "store" / table_name / file["path"]).unlink()
    assert_same(as_matrices(store.frames(["h"], "16hz", recipe=SEVEN.recipe_id)), [("h", features["h"])])
    with pytest.raises(StorageError, match="found one gone"):
        store.frames(["日本"], "16hz", recipe=SEVEN.recipe_id)


@pytest.mark.parametrize("num_shards", [1, 2, 3, 50])
def test_shards_partition_the_rows(num_shards: int, known: KnownStore, store: FeatureStore) -> None:
    features = known.features[SEVEN.recipe_id, "16hz"]
    shards = [list(store.iter_frames("16hz", SEVEN.recipe_id, n, num_shards)) for n in range(num_shards)]
    found = sorted(pair for shard in shards for part in shard for pair in as_matrices(part))
    assert_same(found, sorted(features.items()))
    assert sum(bool(shard) for shard in shards) == min(num_shards, sum(map(len, shards)))


def test_parts_can_be_read_in_another_process(store: FeatureStore) -> None:
    listed = store.list_parts("16hz", SEVEN.recipe_id)
    copy = pickle.loads(pickle.dumps(listed))
    for path in listed.paths:
        assert copy.read(path).equals(listed.read(path))


@pytest.mark.parametrize(("read_bytes", "num_tables"), [(1, 3), (2**26, 1)])
def test_a_part_is_streamed_in_whole_tracks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int, num_tables: int
) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_VALUES", 1)  # a row group a row
    monkeypatch.setattr(read_parts, "READ_BYTES", read_bytes)
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({"a": "long 1", "b": "b", "c": "long 2", "d": "d"}, [SEVEN], ["16hz"], tracks_per_part=4)
    tables = list(FeatureStore(known.location.url).iter_frames("16hz"))
    assert_same(
        [pair for table in tables for pair in as_matrices(table)],
        sorted(known.features[SEVEN.recipe_id, "16hz"].items()),
    )
    assert len(tables) == num_tables


@pytest.mark.parametrize("resolution", ["8hz", "global"])
def test_every_library_gets_the_same_rows(resolution: str, known: KnownStore, store: FeatureStore) -> None:
    recipe = SEVEN.recipe_id
    name = "embedding" if resolution == "global" else "embeddings"
    expected = sorted(known.features[recipe, resolution].items())
    arrow = store.to_arrow(resolution, recipe)
    pandas = store.to_pandas(resolution, recipe)
    polars = store.to_polars(resolution, recipe)
    relation = store.to_duckdb(duckdb.connect(), resolution, recipe).select(f"track_id, {name}")
    for pairs in (
        zip(arrow.column("track_id").to_pylist(), arrow.column(name).to_pylist(), strict=True),
        ((row.track_id, np.stack(list(getattr(row, name)))) for row in pandas.itertuples()),
        zip(polars["track_id"].to_list(), polars[name].to_list(), strict=True),
        relation.fetchall(),
    ):
        found = [(id_, np.array(values, np.float32).reshape(-1, EMBED_DIM)) for id_, values in pairs]
        assert_same(sorted(found, key=lambda pair: pair[0]), expected)


def test_global_vectors_are_read_by_id_as_frames_are(known: KnownStore, store: FeatureStore) -> None:
    expected = known.features[SEVEN.recipe_id, "global"]
    last, *_, first = sorted(expected, reverse=True)
    rows = store.frames([last, first, "nobody"], "global", recipe=SEVEN.recipe_id)
    assert_same(as_matrices(rows), [(last, expected[last]), (first, expected[first])])
    assert set(rows.column("num_frames").to_pylist()) == {1}
    assert set(rows.column("frame_rate_hz").to_pylist()) == {None}


def test_tracks_without_a_global_vector_stay_in_the_table(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({"a": "a 1", "d": "d 1", "b": "b 1"})
    known.run({"c": "c 1", "e": "e 1", "a": "a 2"}, resolutions=["16hz"])
    store = FeatureStore(known.location.url)
    table = store.to_arrow("global")
    assert table.column_names == [*TRACKS.names, "embedding"]
    expected = {
        track_id: vectors[0].tolist() for track_id, vectors in known.features[SEVEN.recipe_id, "global"].items()
    }
    found = dict(zip(table.column("track_id").to_pylist(), table.column("embedding").to_pylist(), strict=True))
    assert list(found) == [*"abcde"]
    assert found == {track_id: expected.get(track_id) for track_id in "abcde"}
    assert {track_id for track_id in found if found[track_id] is None} == {"a", "c", "e"}
    assert store.vectors()[0].to_pylist() == ["b", "d"]


def test_where_no_track_has_a_global_vector_the_table_is_there_all_the_same(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({"b": "b 1", "a": "a 1"}, resolutions=["16hz"])
    store = FeatureStore(known.location.url)
    table = store.to_arrow()
    assert table.select(["track_id", "embedding"]).to_pylist() == [
        {"track_id": "a", "embedding": None},
        {"track_id": "b", "embedding": None},
    ]
    ids, vectors = store.vectors()
    assert (len(ids), vectors.shape) == (0, (0, 0))
    assert store.to_pandas().shape == (2, len(TRACKS) + 1)


def test_the_ledger_can_be_filtered(known: KnownStore, store: FeatureStore) -> None:
    assert store.tracks().schema.names == TRACKS.names
    held = {(recipe, track_id) for recipe, tracks in known.contents.items() for track_id in tracks}
    ledger = store.tracks(["recipe", "track_id"])
    assert ledger.num_rows == len(held)
    assert {tuple(row.values()) for row in ledger.to_pylist()} == held
    named = pc.field("title") == "NEW"
    assert store.tracks(["track_id"], named).to_pylist() == [{"track_id": "new"}] * 2
    assert store.tracks(["track_id"], named, FOUR.recipe_id).to_pylist() == [{"track_id": "new"}]
    assert store.tracks(recipe=FOUR.recipe_id).num_rows == len(known.contents[FOUR.recipe_id])


def test_recipes_say_what_they_stand_for(known: KnownStore, store: FeatureStore) -> None:
    rows = store.recipes().to_pylist()
    assert [row["recipe"] for row in rows] == sorted(known.contents)
    for row in rows:
        assert row["definition"] == {r.recipe_id: r for r in (SEVEN, FOUR)}[row["recipe"]].definition
        assert row["checkpoint"] == "somewhere.pt"
        assert row["num_tracks"] == len(known.contents[row["recipe"]])


def read_all(store: FeatureStore) -> list[tuple[str, Matrix]]:
    return as_matrices(store.to_arrow("16hz"))


def test_published_waits_for_the_run_to_close(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run(FIRST)
    before = sorted(known.features[SEVEN.recipe_id, "16hz"].items())
    known.run({**FIRST, "a": "a 2", "later": "later 1"}, close=False)
    after = sorted(known.features[SEVEN.recipe_id, "16hz"].items())
    assert_same(read_all(FeatureStore(known.location.url)), before)
    assert_same(read_all(FeatureStore(known.location.url, "latest")), after)
    known.run({**FIRST, "a": "a 2", "later": "later 1"})
    assert_same(read_all(FeatureStore(known.location.url)), after)


def test_an_open_snapshot_stays_as_it_is(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    snapshots: list[tuple[FeatureStore, list[tuple[str, Matrix]], datetime]] = []
    for contents in (FIRST, {**FIRST, "a": "a 2", "x": "x 1"}, {"a": "a 2", "b": "b 1"}):
        known.run(contents, prune=True)
        features = sorted(known.features[SEVEN.recipe_id, "16hz"].items())
        time.sleep(0.01)
        snapshots.append((FeatureStore(known.location.url), features, datetime.now(UTC)))
        time.sleep(0.01)
    for store, features, moment in snapshots:
        assert_same(read_all(store), features)
        assert_same(read_all(FeatureStore(known.location.url, store.version)), features)
        at_that_time = FeatureStore(known.location.url, moment)
        assert at_that_time.version == store.version
        assert_same(
            as_matrices(snapshots[-1][0].frames(sorted(FIRST), "16hz", as_of=moment)),
            [item for item in features if item[0] in FIRST],
        )
        assert_same(read_all(at_that_time), features)
    assert FeatureStore(known.location.url, 0).tracks().num_rows == 0


def test_a_snapshot_is_there_for_as_long_as_nobody_vacuums(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run(FIRST)
    old = FeatureStore(known.location.url)
    expected, moment = read_all(old), datetime.now(UTC)
    for month in range(4):
        for path in (tmp_path / "store").glob("*/_delta_log/*"):  # what Delta takes for the age of a commit
            age_s = path.stat().st_mtime - 40 * 86400
            os.utime(path, (age_s, age_s))
        for change in range(3):  # and it clears up whenever it makes a checkpoint, every ten commits
            known.run({**FIRST, "a": f"a {month} {change}"})
    assert list((tmp_path / "store").glob("tracks/_delta_log/*.checkpoint.parquet"))
    assert_same(read_all(FeatureStore(known.location.url, old.version)), expected)
    assert FeatureStore(known.location.url, moment).version == old.version


def test_more_values_than_an_arrow_array_counts_can_be_sorted() -> None:
    # Values that take no memory: what counts is how many there are.
    track = pa.ListArray.from_arrays(
        pa.array([0, 1000], pa.int32()),
        pa.ListArray.from_arrays(
            pa.array(range(0, 1_000_001_000, 1_000_000), pa.int32()), pa.nulls(1_000_000_000)
        ),
    )
    table = pa.table(
        {"track_id": pa.chunked_array([["c"], ["a"], ["b"]]), "embeddings": pa.chunked_array([track] * 3)}
    )
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        table.sort_by("track_id")
    found = take_rows(table, pc.sort_indices(table.column("track_id")))
    assert found.column("track_id").to_pylist() == ["a", "b", "c"]
    assert pc.list_value_length(found.column("embeddings")).to_pylist() == [1000] * 3


@given(st.lists(st.integers(0, 9), max_size=20))
def test_rows_are_taken_as_arrow_takes_them(rows: list[int]) -> None:
    table = pa.table({"n": pa.chunked_array([list(range(4)), list(range(4, 10))])})
    assert take_rows(table, pa.array(rows, pa.int64())).equals(table.take(pa.array(rows, pa.int64())))


def test_a_snapshot_whose_files_a_vacuum_took_says_so(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run(FIRST)
    old = FeatureStore(known.location.url)
    known.run({**FIRST, "a": "a 2"}, prune=True)
    parts = old.list_parts("16hz", SEVEN.recipe_id)
    writer = StoreWriter(known.location, "maintenance")
    compact_store(writer)
    assert vacuum_store(writer, 0) > 0
    for read in (
        lambda: old.frames(["a"], "16hz", recipe=SEVEN.recipe_id),
        lambda: old.tracks(),
        lambda: old.vectors(recipe=SEVEN.recipe_id),
        lambda: parts.read(parts.paths[0]),
        lambda: FeatureStore(known.location.url, old.version).tracks(),
    ):
        with pytest.raises(StorageError, match="a vacuum takes those of earlier versions"):
            read()
    assert FeatureStore(known.location.url).tracks().num_rows > 0


def test_times_may_be_far_and_must_be_numbers(known: KnownStore, store: FeatureStore) -> None:
    ids = list(known.features[FOUR.recipe_id, "16hz"])
    whole = store.frames(ids, "16hz", recipe=FOUR.recipe_id)
    for end_s in (float("inf"), 1e300, 1e12):
        assert store.frames(ids, "16hz", -1.0, end_s, FOUR.recipe_id).equals(whole)
        assert set(store.frames(ids, "16hz", end_s, None, FOUR.recipe_id).column("num_frames").to_pylist()) == {0}
    with pytest.raises(UsageError, match="times in seconds"):
        store.frames(ids, "16hz", float("nan"), recipe=FOUR.recipe_id)
    with pytest.raises(UsageError, match="times in seconds"):
        store.frames(ids, "16hz", 0.0, float("nan"), FOUR.recipe_id)


def test_what_another_tool_compacted_reads_the_same(tmp_path: Path) -> None:
    known = build_store(tmp_path / "store")
    for table_name in ("tracks", "frames"):
        assert open_table(known.location, table_name).optimize.compact()["numFilesRemoved"] > 0
    latest = FeatureStore(known.location.url, "latest")
    known.run({**PRUNED, "x": "x 1"}, [SEVEN, FOUR], ["16hz"])
    published = FeatureStore(known.location.url)
    expected = known.features[SEVEN.recipe_id, "16hz"]
    assert_same(as_matrices(published.to_arrow("16hz", SEVEN.recipe_id)), sorted(expected.items()))
    assert_same(as_matrices(published.frames(["x"], "16hz", recipe=SEVEN.recipe_id)), [("x", expected.pop("x"))])
    assert_same(as_matrices(latest.to_arrow("16hz", SEVEN.recipe_id)), sorted(expected.items()))


def test_content_that_comes_back_is_read_once(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    for contents in (FIRST, {**FIRST, "a": "a 2"}, FIRST, {"a": "a 1"}, FIRST):
        known.run(contents, prune=True)
    store = FeatureStore(known.location.url)
    expected = sorted(known.features[SEVEN.recipe_id, "16hz"].items())
    assert_same(read_all(store), expected)
    assert_same(as_matrices(store.frames(sorted(FIRST), "16hz")), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.frames(["a"], "16hz"), f"{FOUR.recipe_id}, {SEVEN.recipe_id}.*found no recipe named"),
        (lambda s: s.frames(["a"], "16hz", recipe="r"), f"{FOUR.recipe_id}, {SEVEN.recipe_id}.*found r$"),
        (lambda s: s.tracks(recipe="r"), f"{FOUR.recipe_id}, {SEVEN.recipe_id}.*found r$"),
        (lambda s: s.vectors(), "no recipe named"),
        (lambda s: s.frames(["a"], "17hz", recipe=SEVEN.recipe_id), r"50hz, 16hz, 8hz, 0\.5hz.*found '17hz'"),
        (lambda s: s.frames(["a"], "global", 1.0, recipe=SEVEN.recipe_id), "no times beside 'global'.*found 1.0"),
        (lambda s: s.frames(["a"], "25hz", recipe=SEVEN.recipe_id), "50hz.*found '25hz'"),  # nobody stored it
        (lambda s: s.vectors("25hz", SEVEN.recipe_id), "50hz.*found '25hz'"),
        (lambda s: next(s.iter_frames("25hz", SEVEN.recipe_id)), "50hz.*found '25hz'"),
        (lambda s: FeatureStore(s.location.url, "newest"), "'published', 'latest'.*found 'newest'"),
        (lambda s: FeatureStore(s.location.url, datetime(2030, 1, 1)), "with its zone"),
        (lambda s: FeatureStore(s.location.url, 10**6), "no snapshot 1000000"),
        (lambda s: FeatureStore(s.location.url, datetime(2020, 1, 1, tzinfo=UTC)), "no snapshot datetime"),
    ],
)
def test_a_mistake_names_what_there_is(
    call: Callable[[FeatureStore], Any], message: str, store: FeatureStore
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call(store)
    assert "\n" not in str(caught.value)


def test_a_store_without_a_closed_run_has_nothing_published(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run(FIRST, close=False)
    with pytest.raises(UsageError, match="once a run has closed"):
        FeatureStore(known.location.url)


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no feature store at"):
        FeatureStore(str(tmp_path))


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run(FIRST)
    open_table(known.location, "tracks").alter.set_table_properties({FORMAT_PROPERTY: "9"}, False)
    with pytest.raises(StoreFormatError, match="has format 9, this version reads and writes format 4"):
        FeatureStore(known.location.url)
