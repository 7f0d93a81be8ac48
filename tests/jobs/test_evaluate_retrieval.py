import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs import evaluate_retrieval
from pipeline.errors import UsageError
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.location import StoreLocation
from pipeline.search.ground_truth import GroundTruth
from tests.indexes import draw_tracks, make_index
from tests.stores import KnownStore, make_recipe

IDS = [f"TRAAA{number:013d}" for number in range(8)]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> KnownStore:
    store = KnownStore(StoreLocation(str(tmp_path_factory.mktemp("evaluate") / "store")))
    store.run({name: f"content {name}" for name in IDS}, resolutions=("global",))
    build_index(store.location, IndexSettings())
    return store


def rank_naively(known: KnownStore, query: str) -> list[str]:
    vectors = known.features[make_recipe().recipe_id, "global"]

    def cosine(other: str) -> float:
        a, b = vectors[query][0].astype(np.float64), vectors[other][0].astype(np.float64)
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    return sorted((name for name in IDS if name != query), key=lambda other: -cosine(other))


def run(capsys: pytest.CaptureFixture[str], known: KnownStore, *arguments: str) -> dict[str, Any]:
    assert evaluate_retrieval.main(["--store", known.location.url, *arguments]) == 0
    output = capsys.readouterr().out
    assert "queries with" in output
    line: dict[str, Any] = json.loads(output.splitlines()[-1])
    return line


def test_figures_of_a_table_of_pairs(
    known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The nearest of the first track, the third nearest of the second, and a query that is nowhere.
    pairs = [(IDS[0], rank_naively(known, IDS[0])[0]), (IDS[1], rank_naively(known, IDS[1])[2]), ("gone", IDS[0])]
    path = tmp_path / "pairs.csv"
    path.write_text("query_id,relevant_id\n" + "".join(f"{query},{other}\n" for query, other in pairs))
    line = run(capsys, known, "--truth", str(path), "-k", "1,3")
    assert (line["num_queries"], line["num_absent"], line["num_without_relevant"]) == (2, 1, 0)
    assert line["recall"] == {"1": 0.5, "3": 1.0}
    assert line["mean_average_precision"] == pytest.approx((1 + 1 / 3) / 2)
    assert line["ndcg"]["3"] == pytest.approx((1 + 1 / np.log2(4)) / 2)


def test_figures_of_cliques(known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clique = [IDS[2], IDS[4], IDS[5]]
    lines = [f"{track_id}<SEP>ARAAA<SEP>-1" for track_id in clique]
    path = tmp_path / "shs.txt"
    path.write_text("\n".join(["# a list", "%1,2, A Song", *lines, "%3, Alone", f"{IDS[6]}<SEP>ARBBB<SEP>7"]))
    line = run(capsys, known, "--truth", str(path), "--format", "cliques", "-k", "3")
    assert (line["num_queries"], line["num_without_relevant"]) == (3, 1)
    found = [len(set(rank_naively(known, query)[:3]) & set(clique)) / 2 for query in clique]
    assert line["recall"]["3"] == pytest.approx(np.mean(found))


def test_tags_go_through_the_artist_filter(
    known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # All share a tag. The first four are by one artist: they find the other four, and these find all.
    path = tmp_path / "tags.csv"
    rows = [f"{name},rock,{'Owls' if number < 4 else f'Crow {number}'}" for number, name in enumerate(IDS)]
    path.write_text("track_id,tag,artist\n" + "\n".join(rows))
    line = run(capsys, known, "--truth", str(path), "--format", "tags", "-k", "4,7")
    assert line["artist_filter"]
    assert line["num_relevant"] == (4 * 4 + 4 * 7) / 8
    assert line["recall"] == pytest.approx({"4": (4 * 1 + 4 * 4 / 7) / 8, "7": 1.0})
    assert line["mean_average_precision"] == 1.0  # the artist's own are not ranked either
    without = run(capsys, known, "--truth", str(path), "--format", "tags", "--no-artist-filter", "-k", "7")
    assert not without["artist_filter"]
    assert without["num_relevant"] == 7


def test_an_artist_filter_without_artists_is_a_mistake(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(3))
    place = index.tracks.schema.get_field_index("artist")
    index.tracks = index.tracks.set_column(place, "artist", pa.nulls(3, pa.string()))
    with pytest.raises(UsageError, match="--no-artist-filter"):
        evaluate_retrieval.evaluate_index(index, GroundTruth([], lambda _: {}), True, (1,), 10, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--truth", "missing.csv"], "missing.csv"),
        (["--truth", "missing.db", "--format", "lastfm-db"], "copy it here first"),
    ],
)
def test_mistakes_exit_with_two(
    known: KnownStore, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_retrieval.main(["--store", known.location.url, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "1,x", ""])
def test_ranks_are_numbers(known: KnownStore, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        evaluate_retrieval.main(["--store", known.location.url, "--truth", "x", "-k", text])
    assert end.value.code == 2
    assert "1,10,100" in capsys.readouterr().err


def test_distances_are_compared_without_touching_the_index(
    known: KnownStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("query_id,relevant_id\n" + "".join(f"{name},{rank_naively(known, name)[0]}\n" for name in IDS))
    before = sorted(Path(known.location.url).rglob("*"))
    line = run(capsys, known, "--truth", str(path), "-k", "1", "--compare-distances")
    assert line["distance"] == "plain"
    # This store has no moments, so that the covariance within tracks is not there to be compared.
    assert list(line["by_distance"]) == ["plain", "centred", "whitened"]
    assert line["by_distance"]["plain"]["recall"] == line["recall"] == {"1": 1.0}
    assert line["by_distance"]["centred"]["recall"]["1"] == pytest.approx(rank_centred(known))
    assert sorted(Path(known.location.url).rglob("*")) == before


def rank_centred(known: KnownStore) -> float:
    """Return how often the nearest by plain cosine is the nearest by centred cosine too."""
    vectors = known.features[make_recipe().recipe_id, "global"]
    unit = np.concatenate([vectors[name] for name in IDS]).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = centred @ centred.T
    np.fill_diagonal(cosines, -2)
    nearest = [IDS[position] for position in cosines.argmax(axis=1)]
    return float(np.mean([rank_naively(known, name)[0] == near for name, near in zip(IDS, nearest, strict=True)]))
