from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError, UsageError
from pipeline.index.manifest import publish
from pipeline.index.vector_index import VectorIndex
from tests.indexes import Matrix, draw_tracks, make_index

KINDS = pytest.mark.parametrize("kind", ["exact", "ivf"])


def rank(vectors: Matrix, query: Matrix, k: int, wanted: npt.NDArray[np.bool_]) -> tuple[Matrix, list[int]]:
    """Cosines of the nearest wanted vectors, with NumPy in double precision."""
    exact = vectors.astype(float)
    scores = exact @ query / np.linalg.norm(exact, axis=1) / np.linalg.norm(query)
    order = [int(row) for row in np.argsort(-scores, kind="stable") if wanted[row]][:k]
    return scores[order].astype(np.float32), order


@settings(max_examples=25, deadline=None)
@given(
    num_tracks=st.integers(1, 60),
    num_segments=st.integers(1, 3),
    k=st.integers(1, 15),
    seed=st.integers(0, 1000),
    share=st.sampled_from([None, 0.1, 0.5, 1.0]),
    dead_share=st.sampled_from([0.0, 0.2, 0.6]),
    kind=st.sampled_from(["exact", "ivf"]),
)
def test_a_search_returns_what_numpy_ranks_first(
    tmp_path_factory: pytest.TempPathFactory,
    num_tracks: int,
    num_segments: int,
    k: int,
    seed: int,
    share: float | None,
    dead_share: float,
    kind: str,
) -> None:
    random = np.random.default_rng(seed)
    tracks = draw_tracks(num_tracks, seed=seed, max_vectors=3)
    dead = np.flatnonzero(random.random(num_tracks) < dead_share)[: num_tracks - 1]
    index = make_index(tmp_path_factory.mktemp("x"), tracks, kind, "0.5hz", num_segments, dead.tolist())
    allowed = None if share is None else random.random(index.tracks.num_rows) < share
    owner = index.track_of(np.arange(index.num_rows))
    wanted = (owner >= 0) & (True if allowed is None else allowed[owner])
    queries = random.standard_normal((2, 8)).astype(np.float32)
    scores, rows = index.search(queries, k, allowed)
    assert scores.shape == rows.shape == (2, k)
    for query, own_scores, own_rows in zip(queries, scores, rows, strict=True):
        true_scores, true_rows = rank(np.concatenate(tracks), query, k, wanted)
        found = own_rows[own_rows >= 0]
        assert len(found) == len(true_rows) == len(set(found.tolist()))
        assert wanted[found].all()
        np.testing.assert_allclose(own_scores[: len(found)], true_scores, atol=2e-3)
        assert np.isneginf(own_scores[len(found) :]).all()


@KINDS
def test_a_vector_finds_itself_with_score_one_and_the_rest_in_order(tmp_path: Path, kind: str) -> None:
    tracks = draw_tracks(300, embed_dim=64)
    index = make_index(tmp_path, tracks, kind)
    scores, rows = index.search(np.concatenate(tracks) * 7, 5)  # the length of a query changes nothing
    assert rows[:, 0].tolist() == list(range(300))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)
    assert scores.max() <= 1
    assert (np.diff(scores, axis=1) <= 0).all()


@KINDS
def test_a_filter_returns_k_wherever_there_are_k(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.index.vector_index.SCAN_ROWS", 0)  # so that the codes are asked, even for few
    index = make_index(tmp_path, draw_tracks(400, embed_dim=16), kind)
    index.manifest.parameters.update(nprobe=1, depth=1)
    allowed = np.zeros(400, np.bool_)
    allowed[::13] = True
    _, rows = index.search(draw_tracks(1, 16, seed=9)[0], 20, allowed)
    assert (rows >= 0).all()
    assert allowed[index.track_of(rows)].all()


@KINDS
def test_copies_come_in_the_order_of_their_ids_however_many_are_asked_for(tmp_path: Path, kind: str) -> None:
    tracks = draw_tracks(300, embed_dim=16)
    copies = [7, 40, 41, 99, 150, 222, 250, 299]
    for number in copies:
        tracks[number] = tracks[copies[0]]
    index = make_index(tmp_path, tracks, kind)
    for k in range(1, 10):
        _, rows = index.search(tracks[7], k)
        assert rows[0].tolist()[:8] == copies[:k]


def test_scans_of_many_dead_rows_and_of_few_find_the_same(tmp_path: Path) -> None:
    tracks = draw_tracks(200)
    few = make_index(tmp_path / "few", tracks, dead=range(5))
    many = make_index(tmp_path / "many", tracks, dead=range(150))
    query = tracks[3]
    assert few.track_of(few.search(query, 200)[1]).max() == 194
    assert (few.search(query, 200)[1] >= 5).sum() == 195
    assert set(many.search(query, 200)[1].ravel().tolist()) == {-1, *range(150, 200)}


def test_rows_lead_to_tracks_and_spans_and_back(tmp_path: Path) -> None:
    tracks = draw_tracks(4, max_vectors=5, seed=3)
    index = make_index(tmp_path, tracks, resolution="0.5hz", dead=[1])
    lengths = [len(track) for track in tracks]
    assert index.tracks.column("track_id").to_pylist() == ["t0000", "t0002", "t0003"]
    expected = np.repeat([0, -1, 1, 2], lengths)
    assert index.track_of(np.arange(-1, index.num_rows + 1)).tolist() == [-1, *expected.tolist(), -1]
    rows = index.rows_of(1)
    start_s, end_s = index.span_of(rows)
    assert start_s.tolist() == [2.0 * number for number in range(lengths[2])]
    assert (end_s - start_s).tolist() == [2.0] * lengths[2]
    assert np.isnan(index.span_of([-1, lengths[0]])).all()
    unit = tracks[2] / np.linalg.norm(tracks[2], axis=1, keepdims=True)
    np.testing.assert_allclose(index.vectors_of(1), unit, atol=1e-3)
    np.testing.assert_allclose(index.vectors_at(np.array(rows)[::-1]), unit[::-1], atol=1e-3)


def test_global_vectors_have_no_span(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(3))
    assert np.isnan(index.span_of([0, 1, 2])).all()


def test_the_table_of_tracks_says_what_the_ledger_says(tmp_path: Path) -> None:
    row = make_index(tmp_path, draw_tracks(3)).tracks.to_pylist()[2]
    assert row["track_id"] == "t0002"
    assert row["content_hash"] == "hash t0002"
    assert row["artist"] == "artist of it"
    assert row["duration_s"] == 30.0
    assert (row["first_row"], row["num_vectors"]) == (2, 1)


def test_a_track_is_found_by_its_id(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(12))
    assert index.find_track("t0007") == 7
    with pytest.raises(UsageError, match="no track 'nobody'"):
        index.find_track("nobody")


@pytest.mark.parametrize("shape", [(8,), (1, 7), (1, 2, 8)])
def test_queries_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    index = make_index(tmp_path, draw_tracks(3))
    with pytest.raises(UsageError, match=r"expected queries of shape \(n, 8\)"):
        index.search(np.zeros(shape, np.float32), 1)


def test_a_filter_of_another_length_is_refused(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(3))
    with pytest.raises(UsageError, match="expected 3 marks"):
        index.search(np.ones((1, 8), np.float32), 1, np.ones(4, np.bool_))


@KINDS
def test_an_open_index_goes_on_when_its_files_are_removed(tmp_path: Path, kind: str) -> None:
    tracks = draw_tracks(100, embed_dim=16)
    index = make_index(tmp_path, tracks, kind)
    for file in index.manifest.all_files:
        Path(index.location.file_url(file.name)).unlink()
    _, rows = index.search(np.concatenate(tracks), 1)
    assert rows.ravel().tolist() == list(range(100))
    assert index.tracks.column("title").to_pylist() == ["title of it"] * 100


@KINDS
@pytest.mark.parametrize("role", ["segment", "tracks", "codes"])
def test_a_damaged_file_is_refused(tmp_path: Path, kind: str, role: str) -> None:
    index = make_index(tmp_path, draw_tracks(50, embed_dim=16), kind)
    file = index.manifest.segments[0] if role == "segment" else index.manifest.files.get(role)
    if file is None:
        return  # the exact kind has no codes
    path = Path(index.location.file_url(file.name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        VectorIndex(index.location, index.manifest)


def test_opening_finds_what_was_published_last(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(5))
    store = index.location.store
    with pytest.raises(UsageError, match=r"no index for resolution global.*musicfm index"):
        VectorIndex.open(store)
    publish(index.location, index.manifest)
    opened = VectorIndex.open(store)
    assert opened.manifest == index.manifest
    assert opened.open_newer() is None
    publish(index.location, type(index.manifest)(**{**vars(index.manifest), "version": 2}))
    newer = opened.open_newer()
    assert newer is not None
    assert newer.manifest.version == 2
