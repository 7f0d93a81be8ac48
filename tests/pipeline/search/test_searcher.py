from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from pipeline.errors import UsageError
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.index.space import fit_whitening, place_vectors
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.search.hits import Hit, Match
from pipeline.search.recognise import EmbeddedFile
from pipeline.search.searcher import Searcher
from pipeline.store.takedown import take_down
from pipeline.store.writer import StoreWriter
from tests.indexes import draw_tracks, make_index
from tests.stores import KnownStore

Matrix = npt.NDArray[np.float32]


def set_column(index: VectorIndex, name: str, values: list[str | None]) -> None:
    place = index.tracks.schema.get_field_index(name)
    index.tracks = index.tracks.set_column(place, name, pa.array(values, pa.string()))


def draw_music(num_tracks: int, seed: int = 0, num_frames: int = 40) -> list[Matrix]:
    """Draw tracks of moments as models give them: far from the origin, each near its own place, few directions."""
    random = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.05, 32)
    tracks = []
    for _ in range(num_tracks):
        place, changes = random.standard_normal(32) * spread, random.standard_normal((num_frames, 32)) * spread
        tracks.append((3 + place + changes).astype(np.float32))
    return tracks


def ids(hits: list[Hit]) -> list[str]:
    return [hit.track_id for hit in hits]


@pytest.fixture
def globals_index(tmp_path: Path) -> VectorIndex:
    return make_index(tmp_path, draw_tracks(60))


def test_hits_are_those_of_exact_cosine(globals_index: VectorIndex) -> None:
    vectors = np.concatenate(draw_tracks(60)).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query in (0, 17, 59):
        cosines = unit @ unit[query]
        expected = [number for number in np.argsort(-cosines) if number != query][:10]
        hits = Searcher(globals_index).search_track(f"t{query:04d}")
        assert ids(hits) == [f"t{number:04d}" for number in expected]
        assert [hit.score for hit in hits] == pytest.approx(cosines[expected], abs=1e-3)
        assert [hit.rank for hit in hits] == list(range(1, 11))
        assert (hits[0].title, hits[0].start_s, hits[0].end_s) == ("title of it", None, None)


def test_vectors_find_the_track_they_are_of(globals_index: VectorIndex) -> None:
    vector = globals_index.vectors_of(23)
    hit = Searcher(globals_index).search_vectors(7 * vector, k=1)[0]
    assert hit.track_id == "t0023"
    assert hit.score == pytest.approx(1, abs=1e-4)
    assert hit.near_duplicate
    assert "t0023" not in ids(Searcher(globals_index).search_vectors(vector, k=60, exclude_track="t0023"))


def test_a_model_s_vectors_are_placed_in_the_space_of_the_index(tmp_path: Path) -> None:
    tracks = [5 + vectors for vectors in draw_tracks(60)]
    space = fit_whitening(place_vectors(np.concatenate(tracks), None), max_dimensions=6)
    index = make_index(tmp_path, tracks, space=space)
    searcher = Searcher(index)
    hits = searcher.search_vectors(7 * tracks[23], k=5)
    assert hits[0].track_id == "t0023"
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    by_track = searcher.search_track("t0023", k=4)
    assert ids(hits)[1:] == ids(by_track)
    placed = space.place(np.concatenate(tracks))
    expected = np.sort(placed @ placed[23])[::-1][1:5]
    assert [hit.score for hit in by_track] == pytest.approx(expected, abs=1e-3)
    assert ids(searcher.search_file(EmbeddedFile(tracks[23], None), k=5)) == ids(hits)
    with pytest.raises(UsageError, match=r"\(num_frames, 8\)"):
        searcher.search_vectors(index.vectors_of(3))


def test_filters_leave_k_hits_wherever_there_are_k(globals_index: VectorIndex) -> None:
    searcher = Searcher(globals_index)
    hits = searcher.search_track("t0004", k=5, where="track_id >= 't0050'")
    assert len(hits) == 5
    assert all(hit.track_id >= "t0050" for hit in hits)
    everything = [name for name in ids(searcher.search_track("t0004", k=60)) if name >= "t0050"]
    assert ids(hits) == everything[:5]
    assert searcher.search_track("t0004", where="track_id = 't0004'") == []


@pytest.mark.parametrize("column", ["artist", "album"])
def test_tracks_of_the_same_artist_or_album_are_left_out(globals_index: VectorIndex, column: str) -> None:
    names = [None if number % 5 == 0 else f"name {number % 5}" for number in range(60)]
    set_column(globals_index, column, names)
    hits = Searcher(globals_index).search_track(
        "t0001", k=60, exclude_same="artist" if column == "artist" else "album"
    )
    assert set(ids(hits)) == {f"t{number:04d}" for number in range(60) if names[number] != "name 1"}


def test_an_unknown_artist_cannot_be_left_out(globals_index: VectorIndex) -> None:
    set_column(globals_index, "artist", [None] * 60)
    with pytest.raises(UsageError, match="knows no artist of t0001"):
        Searcher(globals_index).search_track("t0001", exclude_same="artist")


def test_mistakes_are_told(globals_index: VectorIndex) -> None:
    searcher = Searcher(globals_index)
    with pytest.raises(UsageError, match="no track 'nobody'"):
        searcher.search_track("nobody")
    with pytest.raises(UsageError, match="one hit or more"):
        searcher.search_track("t0001", k=0)
    with pytest.raises(UsageError, match=r"shape \(num_frames, 8\)"):
        searcher.search_vectors(np.ones((1, 9), np.float32))
    with pytest.raises(UsageError, match="one global vector, found 2"):
        searcher.search_vectors(np.ones((2, 8), np.float32))


@pytest.mark.parametrize("num_tracks", [30, 150], ids=["all are aligned", "candidates are"])
@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_passage_is_found_in_its_track_and_place(tmp_path: Path, num_tracks: int, kind: str) -> None:
    tracks = draw_music(num_tracks)
    searcher = Searcher(make_index(tmp_path, tracks, kind, "0.5hz"))
    random = np.random.default_rng(1)
    for _ in range(10):
        number, place = int(random.integers(num_tracks)), int(random.integers(35))
        # As a codec does: noise, and a shift of all frames.
        heard = tracks[number][place : place + 5] + random.normal(0, 0.05, (5, 32)) + random.normal(0, 0.1, 32)
        hit = searcher.search_vectors(heard.astype(np.float32), k=3)[0]
        assert (hit.track_id, hit.start_s, hit.end_s) == (f"t{number:04d}", 2 * place, min(2 * place + 10, 30.0))
        assert hit.near_duplicate


def test_a_track_has_one_hit_with_its_best_span_and_is_none_of_its_own(tmp_path: Path) -> None:
    tracks = draw_music(12)
    tracks[7][20:26] = tracks[3][8:14]  # a sample of track 3
    searcher = Searcher(make_index(tmp_path, tracks, resolution="0.5hz"))
    hits = searcher.search_track("t0003", k=20, start_s=16, end_s=28)
    assert sorted(ids(hits)) == [f"t{number:04d}" for number in range(12) if number != 3]
    assert (hits[0].track_id, hits[0].start_s) == ("t0007", 40.0)
    assert hits[0].score == pytest.approx(1, abs=1e-2)
    assert [hit.near_duplicate for hit in hits] == [True] + [False] * 10


def test_one_moment_is_searched_by_its_frame(tmp_path: Path) -> None:
    tracks = draw_music(12)
    searcher = Searcher(make_index(tmp_path, tracks, resolution="0.5hz"))
    hit = searcher.search_vectors(tracks[5][9:10], k=1)[0]
    assert (hit.track_id, hit.start_s, hit.end_s) == ("t0005", 18.0, 20.0)


def test_tracks_of_many_moments_do_not_crowd_out_the_others(tmp_path: Path) -> None:
    tracks = draw_music(130, num_frames=3)
    loop = tracks[0] + np.random.default_rng(2).normal(0, 0.01, (400, 3, 32))
    tracks += [track.astype(np.float32) for track in loop.reshape(4, 300, 32)]
    hits = Searcher(make_index(tmp_path, tracks, resolution="0.5hz")).search_vectors(tracks[0][:1], k=60)
    assert len(hits) == len(set(ids(hits))) == 60


def test_passages_are_found_through_filters(tmp_path: Path) -> None:
    tracks = draw_music(12)
    searcher = Searcher(make_index(tmp_path, tracks, resolution="0.5hz"))
    hits = searcher.search_vectors(tracks[5][9:14], k=3, where="track_id != 't0005'", exclude_track="t0001")
    assert len(hits) == 3
    assert not {"t0005", "t0001"} & set(ids(hits))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> KnownStore:
    store = KnownStore(StoreLocation(str(tmp_path_factory.mktemp("known") / "store")))
    store.run({f"track {number}": f"content {number}" for number in range(9)})
    build_index(store.location, IndexSettings())
    build_index(store.location, IndexSettings(resolution="0.5hz"))
    return store


def test_a_section_is_searched_by_the_mean_of_its_frames(known: KnownStore) -> None:
    recipe = next(iter(known.contents))
    frames = known.features[recipe, "16hz"]
    name = max(frames, key=lambda track_id: len(frames[track_id]))
    end_s = len(frames[name]) / 16 / 2
    searcher = Searcher(VectorIndex.open(known.location))
    tracks = searcher.index.tracks  # the made-up store knows no durations
    place = tracks.schema.get_field_index("duration_s")
    searcher.index.tracks = tracks.set_column(place, "duration_s", pa.array([5.0] * tracks.num_rows))
    hits = searcher.search_track(name, start_s=0.25, end_s=end_s)
    section = frames[name][4 : int(np.ceil(end_s * 16))].mean(axis=0, dtype=np.float64)
    others = {other: known.features[recipe, "global"][other][0] for other in frames if other != name}
    cosines = {
        other: float(vector @ section / np.linalg.norm(vector) / np.linalg.norm(section))
        for other, vector in others.items()
    }
    assert ids(hits) == sorted(cosines, key=lambda other: -cosines[other])
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines.values(), reverse=True), abs=1e-3)
    assert name not in ids(hits)


@pytest.mark.parametrize("span", [(-1.0, None), (3.0, 2.0), (2.0, 2.0), (31.0, None), (31.0, 40.0)])
@pytest.mark.parametrize("resolution", ["global", "0.5hz"])
def test_a_section_outside_the_track_is_a_mistake(
    tmp_path: Path, resolution: str, span: tuple[float, float | None]
) -> None:
    searcher = Searcher(make_index(tmp_path, draw_tracks(3), resolution=resolution))
    with pytest.raises(UsageError, match=r"a section within the 30 s of t0001"):
        searcher.search_track("t0001", start_s=span[0], end_s=span[1])


def test_a_file_of_the_catalog_is_known_by_its_bytes(known: KnownStore) -> None:
    searcher = Searcher(VectorIndex.open(known.location))
    hashes = searcher.index.tracks.column("content_hash").to_pylist()
    place = searcher.index.tracks.schema.get_field_index("content_hash")
    hashes[4] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc" (FIPS 180-2, B.1)
    searcher.index.tracks = searcher.index.tracks.set_column(place, "content_hash", pa.array(hashes))
    assert searcher.holds_content(b"abc")
    assert not searcher.holds_content(b"abcd")


@pytest.mark.parametrize("resolution", ["global", "0.5hz"])
def test_what_is_taken_down_while_a_search_goes_on_is_not_in_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resolution: str
) -> None:
    store = KnownStore(StoreLocation(str(tmp_path / "store")))
    store.run({f"track {number}": f"content {number}" for number in range(6)})
    build_index(store.location, IndexSettings(resolution=resolution))
    searcher = Searcher(VectorIndex.open(store.location, resolution))
    assert "track 3" in ids(searcher.search_track("track 0", k=10))
    match = searcher._match_globals if resolution == "global" else searcher._match_moments
    found: list[Match] = []

    def match_while_it_is_taken_down(vectors: Matrix, k: int, allowed: npt.NDArray[np.bool_]) -> list[Match]:
        found.extend(match(vectors, k, allowed))
        take_down(StoreWriter(store.location, "take-down"), ["track 3"])
        return found

    monkeypatch.setattr(searcher, match.__name__, match_while_it_is_taken_down)
    hits = searcher.search_track("track 0", k=10)
    assert sorted(ids(hits)) == ["track 1", "track 2", "track 4", "track 5"]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert len(found) == 5
