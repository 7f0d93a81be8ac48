from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.catalog import manifest as catalog_manifest
from pipeline.catalog.manifest import common_folder, is_manifest, learn_facts, read_manifest
from pipeline.errors import CatalogError, StorageError

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


def read_text(folder: Path, text: str | bytes, name: str = "list.csv") -> list[dict[str, Any]]:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    rows: list[dict[str, Any]] = read_manifest(str(folder / name)).to_pylist()
    return rows


def test_manifests_are_known_by_their_ending() -> None:
    assert [is_manifest(f"s3://b/x{e}") for e in (".parquet", ".CSV", ".tsv", ".mp3", "", ".csv/")] == [
        *[True] * 3,
        *[False] * 3,
    ]


def test_csv_keeps_text_as_it_is(tmp_path: Path) -> None:
    text = (
        "\ufeffURI, Title ,artist,album,genre,TRACK_ID,extra\r\n"
        '/a.mp3,"Hello, ""World""\nagain",NA,null,nan,00123,1\r\n'
        "/é.mp3,Svefn-g-englar,Sigur Rós,true,1.50,7,not a number\r\n"
    )
    assert read_text(tmp_path, text) == [
        {
            "track_id": "00123",
            "uri": "/a.mp3",
            "title": 'Hello, "World"\nagain',
            "artist": "NA",
            "album": "null",
            "genre": "nan",
        },
        {
            "track_id": "7",
            "uri": "/é.mp3",
            "title": "Svefn-g-englar",
            "artist": "Sigur Rós",
            "album": "true",
            "genre": "1.50",
        },
    ]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_track_numbers_and_years_are_whatever_reads_as_one(tmp_path: Path, ending: str) -> None:
    columns = {
        "uri": ["/a", "/b", "/c", "/d"],
        "year": ["1997", "1999-12-31", "", "unknown"],
        "track_number": ["3", "03/12", "", "A"],
    }
    if ending == "csv":
        lines = [list(columns), *(list(row) for row in zip(*columns.values(), strict=True))]
        rows = read_text(tmp_path, "\n".join(",".join(line) for line in lines))
    else:
        pq.write_table(pa.table(columns | {"year": [1997, 1999, None, 0]}), tmp_path / "list.parquet")
        rows = read_manifest(str(tmp_path / "list.parquet")).to_pylist()
    read = [(row["year"], row["track_number"]) for row in rows]
    assert read == [(1997, 3), (1999, 3), (None, None), (None, None)]


def test_tsv_splits_at_tabs_alone(tmp_path: Path) -> None:
    assert read_text(tmp_path, "path\ttitle\n/a,b.mp3\tx, y\n", "list.TSV") == [
        {"uri": "/a,b.mp3", "title": "x, y"}
    ]


def test_numbers_and_times_are_read_and_empty_is_null(tmp_path: Path) -> None:
    text = (
        "uri,size_bytes,modified_time,etag\n/a,12,2024-02-29T12:00:00Z,abc\n/b,,2024-02-29 14:00:00.000+02:00,\n"
        "/c,0,2024-02-29T12:00:00,\n/d,1,,\n"
    )
    rows = read_text(tmp_path, text)
    assert [row["size_bytes"] for row in rows] == [12, None, 0, 1]
    assert [row["modified_time"] for row in rows] == [NOON, NOON, NOON, None]
    assert [row["etag"] for row in rows] == ["abc", None, None, None]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("file,path,url,uri", "4"), ("file,path,url,y", "3"), ("file,path,y,z", "2"), ("File,y,z,w", "1")],
)
def test_the_first_name_for_the_uri_counts(tmp_path: Path, header: str, expected: str) -> None:
    assert read_text(tmp_path, f"{header},x\n/1,/2,/3,/4,/5\n")[0]["uri"] == f"/{expected}"


def test_relative_uris_start_at_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    text = "uri\nx.mp3\n./a/y.mp3\n../up/z.mp3\n/abs/w.mp3\ns3://bucket/../v.mp3\n"
    assert [row["uri"] for row in read_text(tmp_path / "lists", text)] == [
        f"{tmp_path}/lists/x.mp3",
        f"{tmp_path}/lists/a/y.mp3",
        f"{tmp_path}/up/z.mp3",
        "/abs/w.mp3",
        "s3://bucket/../v.mp3",
    ]
    storage.write_file("memory://manifest/lists/m.csv", b"uri\n../a/x.mp3\n")
    try:
        assert read_manifest("memory://manifest/lists/m.csv")["uri"].to_pylist() == ["memory://manifest/a/x.mp3"]
    finally:
        fsspec.filesystem("memory").rm("/manifest", recursive=True)


def test_parquet_of_every_writer(tmp_path: Path) -> None:
    columns = {"track_id": [7, 123], "uri": ["/a", "/b"], "size_bytes": [1, None], "title": ["é", None]}
    url = str(tmp_path / "list.parquet")
    expected = {"track_id": ["7", "123"], "uri": ["/a", "/b"], "size_bytes": [1, None], "title": ["é", None]}
    pq.write_table(pa.table(columns | {"other": [[1], [2]]}), url)
    assert read_manifest(url).select(list(expected)).to_pydict() == expected
    pq.write_table(pa.table(columns | {"size_bytes": pa.array([1.0, None])}), url)  # as pandas keeps gaps
    assert read_manifest(url).select(list(expected)).to_pydict() == expected
    pl.DataFrame(columns).with_columns(pl.col("uri").cast(pl.Categorical)).write_parquet(url)
    assert read_manifest(url).select(list(expected)).to_pydict() == expected


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Paris"])
def test_parquet_times_of_any_unit_and_zone(tmp_path: Path, unit: str, zone: str | None) -> None:
    url = str(tmp_path / "list.parquet")
    times = pa.array([NOON.replace(tzinfo=None)], pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
    pq.write_table(pa.table({"uri": ["/a"], "modified_time": times}), url)
    assert read_manifest(url)["modified_time"].to_pylist() == [NOON]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("track_id", [1.5], "text or whole numbers"),
        ("track_id", [[1]], "text or whole numbers"),
        ("size_bytes", ["12 MB"], "whole numbers"),
        ("size_bytes", [1.5], "whole numbers"),
        ("modified_time", ["yesterday"], "ISO 8601 times"),
        ("modified_time", [1_700_000_000], "ISO 8601 times"),
    ],
)
def test_a_column_of_the_wrong_type_is_named(
    tmp_path: Path, column: str, values: list[Any], expected: str
) -> None:
    url = str(tmp_path / "list.parquet")
    pq.write_table(pa.table({"uri": ["/a"], column: values}), url)
    with pytest.raises(CatalogError, match=rf"^expected {expected} in column {column} of {url}[^\n]*$"):
        read_manifest(url)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("list.parquet", b"PAR1 not really"),
        ("list.parquet", b""),
        ("list.csv", b""),
        ("list.csv", b"uri,title\n/a\n"),
        ("list.csv", "uri\n/é\n".encode("latin1")),
        ("list.csv", "uri\n/é\n".encode("utf-16")),
    ],
)
def test_a_damaged_manifest_is_one_clear_line(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(CatalogError, match=rf"^[^\n]*{tmp_path}/{name}[^\n]*$"):
        read_text(tmp_path, data, name)


def test_facts_of_many_folders_and_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_file("memory://facts/a/x.mp3", b"1")
    storage.write_file("memory://facts/b/y.mp3", b"12")
    (tmp_path / "[z].mp3").write_bytes(b"123")
    uris = pa.chunked_array([[f"{tmp_path}/[z].mp3", None, "memory://facts/b/y.mp3", "memory:///facts/a/x.mp3"]])
    try:
        by_stat = learn_facts(uris)
        monkeypatch.setattr(catalog_manifest, "FEW_FILES", 0)
        assert learn_facts(uris).to_pydict() == by_stat.to_pydict()
    finally:
        fsspec.filesystem("memory").rm("/facts", recursive=True)
    assert by_stat["size_bytes"].to_pylist() == [3, None, 2, 1]


def test_a_folder_that_is_gone_leaves_nulls_but_other_troubles_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_manifest, "FEW_FILES", 0)
    uris = pa.chunked_array([["/no/such/a.mp3", "/no/such/b.mp3", "/c.mp3"]])
    assert learn_facts(uris)["size_bytes"].null_count == 3
    with pytest.raises(StorageError, match="gopher9"):
        learn_facts(pa.chunked_array([["gopher9://x/a.mp3"]]))


def test_common_folders() -> None:
    assert common_folder(["s3://b/x/ab/1", "s3://b/x/ac/2"]) == "s3://b/x"
    assert common_folder(["s3://b/1", "s3://b/2/3"]) == "s3://b"
    assert common_folder(["/a/b/c.mp3"]) == "/a/b"
    assert common_folder(["/a.mp3", "/b.mp3"]) == ""
    assert common_folder([]) == ""
