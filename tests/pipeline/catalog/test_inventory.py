"""S3 Inventory in its three formats, as Amazon's user guide describes them."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from pipeline.catalog.load import load_catalog
from pipeline.errors import CatalogError, StorageError
from pipeline.schema import CATALOG

TIME = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
KEYS = ["a b/1.mp3", "ä+%/2.flac", "notes.txt", 'say "hi", twice.wav', "folder/"]
AUDIO = sorted([*KEYS[:2], KEYS[3]])


def list_objects() -> list[dict[str, Any]]:
    rows = [
        {
            "bucket": "music",
            "key": key,
            "version_id": "v",
            "is_latest": True,
            "is_delete_marker": False,
            "size": 100 + number,
            "last_modified_date": TIME,
            "e_tag": f"etag{number}",
        }
        for number, key in enumerate(KEYS)
    ]
    rows.append(rows[0] | {"is_latest": False, "size": 1, "e_tag": "older"})
    rows.append(rows[0] | {"key": "gone.mp3", "is_delete_marker": True, "size": None, "e_tag": None})
    return rows


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    table = pa.Table.from_pylist(rows)
    return table.set_column(6, "last_modified_date", table["last_modified_date"].cast(pa.timestamp("ms")))


def write_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(as_table(rows), sink)
    return sink.getvalue()


def write_orc(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    orc.write_table(as_table(rows), sink)
    return sink.getvalue()


def write_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for row in rows:
        values = row | {"key": quote_plus(row["key"], safe="/"), "last_modified_date": "2024-05-06T07:08:09.000Z"}
        values |= {name: str(row[name]).lower() for name in ("is_latest", "is_delete_marker")}
        writer.writerow(["" if value is None else value for value in values.values()])
    return gzip.compress(text.getvalue().encode())


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "Parquet": write_parquet,
    "ORC": write_orc,
    "CSV": write_csv,
}


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/lists", recursive=True)


def write_inventory(fs: fsspec.AbstractFileSystem, file_format: str, parts: list[list[dict[str, Any]]]) -> str:
    files = []
    for number, rows in enumerate(parts):
        data, key = FORMATS[file_format](rows), f"music/all/data/{number}"
        fs.pipe_file(f"/lists/{key}", data)
        files.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = {
        "sourceBucket": "music",
        "destinationBucket": "arn:aws:s3:::lists",
        "version": "2016-11-30",
        "fileFormat": file_format,
        "fileSchema": SCHEMA,
        "files": files,
    }
    fs.pipe_file("/lists/music/all/manifest.json", json.dumps(manifest).encode())
    return "inventory:memory://lists/music/all/manifest.json"


@pytest.mark.parametrize("file_format", FORMATS)
def test_objects_are_what_the_inventory_says(file_format: str, bucket: fsspec.AbstractFileSystem) -> None:
    rows = list_objects()
    catalog = load_catalog(write_inventory(bucket, file_format, [rows[:2], rows[2:]]))
    assert catalog.schema == CATALOG
    found = catalog.to_pylist()
    assert [row["track_id"] for row in found] == AUDIO
    assert [row["uri"] for row in found] == [f"memory://music/{key}" for key in AUDIO]
    assert [row["size_bytes"] for row in found] == [100 + KEYS.index(key) for key in AUDIO]
    assert [row["etag"] for row in found] == [f"etag{KEYS.index(key)}" for key in AUDIO]
    assert {row["modified_time"] for row in found} == {TIME}


def test_objects_of_which_little_is_told_are_read_as_well(bucket: fsspec.AbstractFileSystem) -> None:
    number = 200_000
    keys = pa.array([f"{index:07d}.mp3" for index in range(number)])
    table = pa.table(
        {"bucket": pa.repeat("music", number), "key": keys, "size": pa.array(range(number), pa.int64())}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    audio = write_inventory(bucket, "Parquet", [list_objects()])
    bucket.pipe_file("/lists/music/all/data/0", sink.getvalue())
    manifest = json.loads(bucket.cat_file("/lists/music/all/manifest.json"))
    del manifest["files"][0]["MD5checksum"]
    bucket.pipe_file("/lists/music/all/manifest.json", json.dumps(manifest).encode())
    catalog = load_catalog(audio)
    assert catalog["track_id"].to_pylist() == keys.to_pylist()
    assert catalog["etag"].null_count == number


def test_what_is_no_inventory_is_told(bucket: fsspec.AbstractFileSystem) -> None:
    audio = write_inventory(bucket, "Parquet", [list_objects()])
    bucket.pipe_file("/lists/music/all/data/0", b"PAR1 cut off")
    with pytest.raises(CatalogError, match="MD5"):
        load_catalog(audio)
    bucket.pipe_file("/lists/music/all/manifest.json", b'{"files": []}')
    with pytest.raises(CatalogError, match=r"expected the manifest.json of an S3 Inventory"):
        load_catalog(audio)
    with pytest.raises(StorageError, match="found nothing"):
        load_catalog("inventory:memory://lists/none.json")
