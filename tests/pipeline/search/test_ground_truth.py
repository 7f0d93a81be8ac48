import json
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UsageError
from pipeline.search.ground_truth import (
    GroundTruth,
    leave_out_same_artist,
    read_cliques,
    read_lastfm_database,
    read_lastfm_folder,
    read_pairs,
    read_tags,
)

A, B, C, D = "TRAAAAA000000000001", "TRAAABB000000000002", "TRBCDEF000000000003", "TRBCDEG000000000004"


def as_dict(truth: GroundTruth) -> dict[str, dict[str, float]]:
    return {query_id: dict(truth.find_relevant(query_id)) for query_id in truth.query_ids}


def write_lastfm(root: Path, track_id: str, artist: str, similars: object, tags: object) -> Path:
    """Write one file of the Last.fm dataset, where its archives put it."""
    folder = root / "lastfm_train" / track_id[2] / track_id[3] / track_id[4]
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "artist": artist,
        "timestamp": "2011-08-01 12:00:00.000000",
        "similars": similars,
        "tags": tags,
        "track_id": track_id,
        "title": "A Song",
    }
    path = folder / f"{track_id}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def lastfm(tmp_path: Path) -> Path:
    write_lastfm(tmp_path, A, "Owls", [[B, 1], [C, 0.25]], [["waltz", "100"], ["slow", "40"], ["rare", "0"]])
    write_lastfm(tmp_path, B, "Owls", [[A, 0.98]], [["waltz", "100"], ["slow", "2"]])
    write_lastfm(tmp_path, C, "Crows", [], [["slow", "77"], ["rare", "1"]])
    write_lastfm(tmp_path, D, "Crows", [], [])
    return tmp_path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_of_pairs(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"pairs.{ending}"
    pairs = {"query_id": ["007", "x", "007"], "relevant_id": ["1", "007", "2"], "grade": [2.0, 1.0, 0.5]}
    if ending == "csv":
        pacsv.write_csv(pa.table(pairs), path, pacsv.WriteOptions(quoting_style="none"))
    else:
        pq.write_table(pa.table(pairs), path)
    assert as_dict(read_pairs(str(path))) == {"007": {"1": 2.0, "2": 0.5}, "x": {"007": 1.0}}


def test_pairs_without_grades_count_one(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("relevant_id,query_id\nb,a\n")
    assert as_dict(read_pairs(str(tmp_path / "pairs.csv"))) == {"a": {"b": 1.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query_id,other\na,b\n", "expected columns query_id, relevant_id"),
        ("query_id,relevant_id,grade\na,b,much\n", "numbers as grades"),
        ("query_id,relevant_id\na,b,c,d\n", "expected a table"),
    ],
)
def test_a_broken_table_of_pairs_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_pairs(str(tmp_path / "pairs.csv"))
    assert "pairs.csv" in str(caught.value)


def test_similar_tracks_of_the_lastfm_folder(lastfm: Path) -> None:
    found = as_dict(read_lastfm_folder(str(lastfm)))
    assert found == {A: {B: 1.0, C: 0.25}, B: {A: 0.98}, C: {}, D: {}}


def test_a_broken_lastfm_file_is_named(lastfm: Path) -> None:
    path = write_lastfm(lastfm, A, "Owls", [[B]], [])
    truth = read_lastfm_folder(str(lastfm))
    with pytest.raises(UsageError, match=path.name):
        truth.find_relevant(A)
    path.write_text("[]")
    with pytest.raises(UsageError, match=path.name):
        truth.find_relevant(A)


def test_a_folder_without_lastfm_files_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(UsageError, match="found none"):
        read_lastfm_folder(str(tmp_path))


def test_similar_tracks_of_the_lastfm_database(tmp_path: Path) -> None:
    path = tmp_path / "lastfm_similars.db"
    with sqlite3.connect(path) as connection:
        for name in ("similars_src", "similars_dest"):
            connection.execute(f"CREATE TABLE {name} (tid TEXT, target TEXT)")
        rows = [(A, f"{B},1,{C},0.0215497"), (B, f"{A},0.98"), (C, ""), (D, f"{A},0.5,{B}")]
        connection.executemany("INSERT INTO similars_src VALUES (?, ?)", rows)
        connection.execute("INSERT INTO similars_dest VALUES (?, ?)", (C, f"{A},0.0215497"))
    truth = read_lastfm_database(str(path))
    assert list(truth.query_ids) == [A, B, C, D]
    assert truth.find_relevant(A) == {B: 1.0, C: 0.0215497}
    assert truth.find_relevant(C) == {}
    with pytest.raises(UsageError, match=f"target of {D}"):
        truth.find_relevant(D)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]


def test_another_database_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "lastfm_tags.db"
    with pytest.raises(UsageError, match="found none"):
        read_lastfm_database(str(path))
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE tids (tid TEXT)")
    with pytest.raises(UsageError, match="similars_src"):
        read_lastfm_database(str(path))


def test_cliques_of_cover_songs(tmp_path: Path) -> None:
    path = tmp_path / "shs_dataset_train.txt"
    path.write_text(
        "# TRAINING SET\n#   %a,b,c, title\n"
        "%12,345, A Song, With a Comma\n"
        f"{A}<SEP>ARAAAAA000000000001<SEP>12\n{B}<SEP>ARBBBBB000000000002<SEP>-1\n"
        f"{C}<SEP>ARCCCCC000000000003<SEP>345\n"
        "%-1, Another\n"
        f"{D}<SEP>ARAAAAA000000000001<SEP>9\n{A}<SEP>ARAAAAA000000000001<SEP>12\n"
    )
    assert as_dict(read_cliques(str(path))) == {
        A: {B: 1.0, C: 1.0, D: 1.0},
        B: {A: 1.0, C: 1.0},
        C: {A: 1.0, B: 1.0},
        D: {A: 1.0},
    }


@pytest.mark.parametrize("text", [f"{A}<SEP>AR<SEP>1\n", "%1, Song\nTRAAA,AR,1\n"])
def test_a_line_that_is_no_performance_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "shs.txt").write_text(text)
    with pytest.raises(UsageError, match=r"in line \d of .*shs\.txt"):
        read_cliques(str(tmp_path / "shs.txt"))


def test_tags_of_the_lastfm_folder_are_graded_by_how_many_are_shared(lastfm: Path) -> None:
    truth = read_tags(str(lastfm))
    assert as_dict(truth) == {A: {B: 2.0, C: 1.0}, B: {A: 2.0, C: 1.0}, C: {A: 1.0, B: 1.0}}
    assert truth.artists == {A: "Owls", B: "Owls", C: "Crows", D: "Crows"}


def test_tags_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text("track_id,tag,artist\n1,rock,X\n2,rock,\n1,slow,X\n3,fast,Y\n")
    truth = read_tags(str(tmp_path / "tags.csv"))
    assert as_dict(truth) == {"1": {"2": 1.0}, "2": {"1": 1.0}, "3": {}}
    assert truth.artists == {"1": "X", "3": "Y"}


def test_the_artist_filter_leaves_out_the_querys_own_artist(lastfm: Path) -> None:
    truth = read_tags(str(lastfm))
    filtered = as_dict(leave_out_same_artist(truth, truth.artists))
    assert filtered == {A: {C: 1.0}, B: {C: 1.0}, C: {A: 1.0, B: 1.0}}


def test_an_unknown_artist_is_not_anybodys_own(lastfm: Path) -> None:
    truth = read_tags(str(lastfm))
    assert as_dict(leave_out_same_artist(truth, {A: None, B: None})) == as_dict(truth)
