import hashlib
import os
import time
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.index.files import IndexFile, IndexLocation, fetch_file, remove_files, upload_file, working_folder
from pipeline.location import StoreLocation
from tests.s3_server import STORE, STORE_BUCKET, S3Server

CONTENT = b"rows" * 1000


@pytest.fixture
def local(tmp_path: Path) -> IndexLocation:
    return IndexLocation(StoreLocation(str(tmp_path / "store")), "recipe", "0.5hz")


@pytest.fixture
def remote(s3_server: S3Server, tmp_path: Path) -> IndexLocation:
    url = f"s3://{STORE_BUCKET}/index-files-{tmp_path.name}"
    return IndexLocation(StoreLocation(url, s3_server.options(STORE)), "recipe", "0.5hz")


def put(location: IndexLocation, folder: Path, cache: str | None = None) -> IndexFile:
    path = folder / "draft.rows"
    path.write_bytes(CONTENT)
    return upload_file(location, str(path), 7, cache)


def test_a_local_file_is_moved_into_place_and_opened_there(local: IndexLocation, tmp_path: Path) -> None:
    file = put(local, tmp_path)
    assert file.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (file.size_bytes, file.num_rows) == (len(CONTENT), 7)
    assert fetch_file(local, file) == str(tmp_path / f"store/indexes/recipe/0.5hz/files/{file.name}")
    assert not (tmp_path / "draft.rows").exists()


@pytest.mark.parametrize("damage", [b"rowz" + CONTENT[4:], CONTENT[:-1], b""])
def test_a_damaged_file_is_told_by_its_checksum(local: IndexLocation, tmp_path: Path, damage: bytes) -> None:
    file = put(local, tmp_path)
    Path(local.file_url(file.name)).write_bytes(damage)
    with pytest.raises(StorageError, match=f"{file.name} is damaged.*--rebuild"):
        fetch_file(local, file)


def test_a_file_that_is_gone_is_named(local: IndexLocation, tmp_path: Path) -> None:
    file = put(local, tmp_path)
    remove_files(local, [file.name, "never-there"])
    with pytest.raises(StorageError, match=file.name):
        fetch_file(local, file)


def test_from_an_object_store_a_file_is_downloaded_once(remote: IndexLocation, tmp_path: Path) -> None:
    file = put(remote, tmp_path, str(tmp_path / "builder"))
    cache = str(tmp_path / "searcher")
    path = fetch_file(remote, file, cache)
    assert Path(path).read_bytes() == CONTENT
    remove_files(remote, [file.name])
    assert fetch_file(remote, file, cache) == path


def test_who_uploads_a_file_has_it_in_the_cache(remote: IndexLocation, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    file = put(remote, tmp_path, cache)
    remove_files(remote, [file.name])
    assert Path(fetch_file(remote, file, cache)).read_bytes() == CONTENT


def test_a_damaged_copy_is_told_and_downloaded_again(remote: IndexLocation, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    file = put(remote, tmp_path, cache)
    (tmp_path / "cache" / file.sha256).write_bytes(CONTENT[:-1])
    with pytest.raises(StorageError, match="damaged"):
        fetch_file(remote, file, cache)
    assert Path(fetch_file(remote, file, cache)).read_bytes() == CONTENT


def test_the_cache_forgets_what_nobody_opened_for_weeks(remote: IndexLocation, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "old").write_text("x")
    (cache / "new").write_text("x")
    os.utime(cache / "old", (time.time() - 40 * 86400,) * 2)
    put(remote, tmp_path, str(cache))
    assert not (cache / "old").exists()
    assert (cache / "new").exists()


def test_the_working_folder_leaves_nothing_even_after_a_mistake(local: IndexLocation) -> None:
    def work() -> None:
        with working_folder(local) as folder:
            Path(folder, "half").write_text("x")
            raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        work()
    assert list(Path(local.url).iterdir()) == []


def test_an_object_store_that_refuses_is_named_without_its_secret(s3_server: S3Server, tmp_path: Path) -> None:
    options = {**s3_server.options(STORE), "secret": "wrong-secret"}
    location = IndexLocation(StoreLocation(f"s3://{STORE_BUCKET}/refused", options), "recipe", "global")
    with pytest.raises(StorageError, match="refused/indexes/recipe/global") as caught:
        put(location, tmp_path, str(tmp_path / "cache"))
    assert "wrong-secret" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_told_with_what_to_do(remote: IndexLocation, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(StorageError, match="name a folder that can be written with --cache"),
        working_folder(remote, str(tmp_path / "file" / "cache")),
    ):
        pass
