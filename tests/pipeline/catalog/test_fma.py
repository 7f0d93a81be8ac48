import csv
import io
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.fma import load_fma_catalog, read_fma_tracks
from pipeline.errors import CatalogError, StorageError, UsageError
from pipeline.schema import CATALOG

# The order and the repeated names of the published file, with most of its columns left out.
COLUMNS = [
    ("", ""),
    ("album", "id"),
    ("album", "information"),
    ("album", "title"),
    ("artist", "name"),
    ("artist", "title"),
    ("set", "split"),
    ("set", "subset"),
    ("track", "genre_top"),
    ("track", "genres"),
    ("track", "title"),
]
MORE_COLUMNS = [("album", "date_released"), ("track", "number")]
BIOGRAPHY = '<p>two\nlines, "quotes"\r\nand\ttabs</p>' * 10_000
ROWS = [
    ["2", "1", BIOGRAPHY, "AWOL - A Way Of Life", "AWOL", "", "training", "small", "Hip-Hop", "[21]", "Food"],
    ["5", "1", "", "", "Sigur Rós", "", "training", "medium", "", "[]", 'line\nbreak, "quoted"'],
    ["99999", "1", "", "x", "NA", "", "test", "large", "", "[]", "null"],
    ["155320", "1", "", "x", "y", "", "test", "small", "Rock", "[]", ""],
]


DATES = ("2009-01-05 00:00:00", "", "1999", "soon")


def tracks_csv(
    rows: list[list[str]] = ROWS, index: str = "track_id", columns: list[tuple[str, str]] = COLUMNS
) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([group for group, _ in columns])
    writer.writerow([name for _, name in columns])
    writer.writerow([index] + [""] * (len(columns) - 1))
    writer.writerows(rows)
    return text.getvalue().encode()


def make_files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def load_rows(root: str | Path, **settings: Any) -> dict[str, dict[str, Any]]:
    metadata = settings.get("metadata")
    table = load_fma_catalog(str(root), metadata and str(metadata), settings.get("subset"))
    assert table.schema == CATALOG
    ids = table["track_id"].to_pylist()
    assert ids == sorted(set(ids))
    return {row["track_id"]: row for row in table.to_pylist()}


def test_without_metadata_the_catalog_is_the_audio(tmp_path: Path) -> None:
    make_files(
        tmp_path,
        "000/000002.mp3",
        "fma_large/155/155320.MP3",
        "01.mp3",
        "000/intro.mp3",
        "000/0000005.mp3",
        "x.txt",
    )
    rows = load_rows(tmp_path)
    assert {track_id: row["uri"] for track_id, row in rows.items()} == {
        "000002": f"{tmp_path}/000/000002.mp3",
        "155320": f"{tmp_path}/fma_large/155/155320.MP3",
    }
    assert rows["000002"]["title"] is None
    assert rows["000002"]["size_bytes"] == len("000/000002.mp3")


@pytest.mark.parametrize(
    "place", ["root/tracks.csv", "root/fma_metadata/tracks.csv", "tracks.csv", "fma_metadata/tracks.csv"]
)
def test_metadata_is_found_in_the_root_or_beside_it(tmp_path: Path, place: str) -> None:
    make_files(tmp_path, "root/000/000002.mp3", "root/000/000007.mp3", place)
    (tmp_path / place).write_bytes(tracks_csv())
    rows = load_rows(tmp_path / "root")
    described = {name: rows["000002"][name] for name in ("title", "artist", "album", "genre")}
    assert described == {"title": "Food", "artist": "AWOL", "album": "AWOL - A Way Of Life", "genre": "Hip-Hop"}
    assert list(rows) == ["000002", "000007"]
    assert rows["000007"]["title"] is None


def test_track_number_and_year_are_read_where_the_table_has_them(tmp_path: Path) -> None:
    rows = [[*row, date, number] for row, date, number in zip(ROWS, DATES, ("3", "", "12", "x"), strict=True)]
    (tmp_path / "tracks.csv").write_bytes(tracks_csv(rows, columns=[*COLUMNS, *MORE_COLUMNS]))
    table = read_fma_tracks(str(tmp_path / "tracks.csv"))
    assert table["track_number"].to_pylist() == [3, None, 12, None]
    assert table["year"].to_pylist() == [2009, None, 1999, None]


def test_odd_text_of_the_metadata_is_kept(tmp_path: Path) -> None:
    (tmp_path / "tracks.csv").write_bytes(tracks_csv())
    assert read_fma_tracks(str(tmp_path / "tracks.csv")).to_pylist() == [
        {
            "track_id": row[0].zfill(6),
            "title": row[10] or None,
            "artist": row[4],
            "album": row[3] or None,
            "genre": row[8] or None,
            "subset": row[7],
        }
        for row in ROWS
    ]


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("small", ["000002", "155320"]),
        ("medium", ["000002", "000005", "155320"]),
        ("large", ["000002", "000005", "099999", "155320"]),
        ("full", ["000002", "000005", "099999", "155320"]),
    ],
)
def test_subsets_are_cumulative_and_name_the_catalog(tmp_path: Path, subset: str, expected: list[str]) -> None:
    make_files(tmp_path, "root/000/000005.mp3", "root/000/000007.mp3")
    (tmp_path / "meta.csv").write_bytes(tracks_csv())
    rows = load_rows(tmp_path / "root", metadata=tmp_path / "meta.csv", subset=subset)
    assert list(rows) == expected
    assert [track_id for track_id, row in rows.items() if row["uri"]] == [i for i in expected if i == "000005"]
    assert rows["155320"]["artist"] == "y"


def test_a_subset_needs_metadata_and_a_known_name(tmp_path: Path) -> None:
    make_files(tmp_path / "root", "000/000005.mp3")
    with pytest.raises(UsageError, match=r"expected FMA's tracks\.csv at or beside .* name it as metadata"):
        load_rows(tmp_path / "root", subset="small")
    with pytest.raises(UsageError, match="small, medium, large or full, found 'tiny'"):
        load_rows(tmp_path / "root", subset="tiny")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"track_id,title\n2,Food\n", "found no track.title, artist.name"),
        (b"", "found no track.title"),
        (tracks_csv(index="2"), "found no third row that begins with track_id"),
        (tracks_csv().replace(b",genre_top", b",genre"), "found no track.genre_top$"),
        (tracks_csv() + b"7,1,2\n", "cannot read"),
    ],
)
def test_another_file_than_tracks_csv_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "tracks.csv").write_bytes(data)
    with pytest.raises(CatalogError, match=message) as raised:
        read_fma_tracks(str(tmp_path / "tracks.csv"))
    assert str(tmp_path / "tracks.csv") in str(raised.value)


def test_two_subsets_side_by_side_clash_and_both_files_are_named(tmp_path: Path) -> None:
    make_files(tmp_path, "fma_small/000/000002.mp3", "fma_large/000/000002.mp3")
    with pytest.raises(CatalogError, match=r"fma_large/000/000002\.mp3 and .*fma_small/000/000002\.mp3"):
        load_rows(tmp_path)


def test_roots_without_fma_audio(tmp_path: Path) -> None:
    make_files(tmp_path, "intro.mp3")
    with pytest.raises(CatalogError, match=r"expected FMA audio such as 000/000002\.mp3"):
        load_rows(tmp_path)
    with pytest.raises(StorageError, match="/no/root"):
        load_rows("/no/root")
    make_files(tmp_path, "000002.mp3")
    with pytest.raises(StorageError, match=r"/no/tracks\.csv"):
        load_rows(tmp_path, metadata="/no/tracks.csv")
