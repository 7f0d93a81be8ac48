import os
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline import storage
from pipeline.errors import Reason, StorageError
from pipeline.location import StoreLocation, honours_exclusive_writes
from tests.s3_server import STORE, STORE_BUCKET, S3Server

ODD_NAMES = [
    "a[1].mp3",
    "b*.mp3",
    "c?.mp3",
    "d e.mp3",
    "e%20f.mp3",
    "g#h.mp3",
    "new\nline.mp3",
    "s3:x.mp3",
    "sub/deep/x.mp3",
    "~tilde.mp3",
    "Sigur Rós — ( ).mp3",
]


@pytest.fixture
def memory_root() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    bucket = f"bucket-{uuid.uuid4().hex}"  # fsspec's memory is one for the whole process
    yield f"memory://{bucket}"
    memory.rm(f"/{bucket}", recursive=True)


@pytest.fixture(params=["local", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        yield request.getfixturevalue("memory_root")
    else:
        yield f"file://{tmp_path}" if request.param == "file" else str(tmp_path)


def test_odd_names_survive_write_list_stat_and_read(root: str) -> None:
    for name in ODD_NAMES:
        storage.write_file(storage.join_url(root, name), name.encode())
    listing = storage.list_files(root)
    assert listing.schema == storage.LISTING
    assert listing["path"].to_pylist() == sorted(ODD_NAMES)
    expected = [name.encode() for name in sorted(ODD_NAMES)]
    uris = listing["uri"].to_pylist()
    assert storage.read_files(uris) == expected
    assert [storage.read_file(uri) for uri in uris] == expected
    assert listing["size_bytes"].to_pylist() == [len(content) for content in expected]
    for uri, stat, row in zip(uris, storage.stat_files(uris), listing.to_pylist(), strict=True):
        assert stat == {name: row[name] for name in ("size_bytes", "etag", "modified_time")}, uri


def test_a_local_name_with_two_colons_is_no_chain_of_file_systems(tmp_path: Path) -> None:
    path = tmp_path / "Foo :: Bar.mp3"
    storage.write_file(str(path), b"12")
    assert path.read_bytes() == b"12"
    assert storage.read_files([str(path)]) == [b"12"]
    assert storage.list_files(str(tmp_path))["path"].to_pylist() == [path.name]


def test_uris_keep_the_spelling_of_their_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.mp3").touch()
    monkeypatch.chdir(tmp_path)
    assert storage.list_files(".")["uri"].to_pylist() == [f"{tmp_path}/x.mp3"]
    assert storage.list_files(f"{tmp_path}/")["uri"].to_pylist() == [f"{tmp_path}/x.mp3"]
    assert storage.list_files(f"file://{tmp_path}")["uri"].to_pylist() == [f"file://{tmp_path}/x.mp3"]


def test_a_single_file_is_listed_by_its_name(root: str) -> None:
    storage.write_file(f"{root}/a/x y.mp3", b"123")
    storage.write_file(f"{root}/a/other.mp3", b"1")
    listing = storage.list_files(f"{root}/a/x y.mp3")
    assert listing["path"].to_pylist() == ["x y.mp3"]
    assert storage.read_files(listing["uri"].to_pylist()) == [b"123"]


@pytest.mark.parametrize(
    "url", ["/no/such/folder", "memory://no/such", "file:///no/such.mp3", "gopher9://x/y", "https9::s3://x"]
)
def test_a_root_out_of_reach_is_one_clear_line(url: str) -> None:
    for call in (storage.list_files, storage.read_file):
        with pytest.raises(StorageError, match=r"^[^\n]+$") as raised:
            call(url)
        assert url in str(raised.value)


def test_an_empty_folder_lists_nothing(tmp_path: Path) -> None:
    listing = storage.list_files(str(tmp_path))
    assert listing.num_rows == 0
    assert listing.schema == storage.LISTING


def test_local_links_are_followed_and_circles_and_pipes_are_not(tmp_path: Path) -> None:
    music, elsewhere = tmp_path / "music", tmp_path / "elsewhere"
    (music / "album").mkdir(parents=True)
    (elsewhere / "inner").mkdir(parents=True)
    (elsewhere / "inner" / "x.mp3").write_bytes(b"123")
    (music / "link").symlink_to(elsewhere)
    (music / "link.mp3").symlink_to(elsewhere / "inner" / "x.mp3")
    (music / "album" / "up").symlink_to(music)
    (elsewhere / "back").symlink_to(music)
    (music / "gone.mp3").symlink_to(tmp_path / "gone")
    os.mkfifo(music / "pipe.mp3")
    listing = storage.list_files(str(music))
    sizes = dict(zip(listing["path"].to_pylist(), listing["size_bytes"].to_pylist(), strict=True))
    assert sizes == {"link/inner/x.mp3": 3, "link.mp3": 3, "gone.mp3": None}


def test_a_pipe_that_is_named_fails_alone_and_nobody_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "good.mp3").write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe.mp3")
    uris = [str(tmp_path / name) for name in ("pipe.mp3", "good.mp3", "gone.mp3", "nul\0.mp3")]
    pipe, good, gone, nul = storage.read_files(uris)
    assert good == b"1"
    assert "found a pipe" in str(pipe)
    assert storage.classify_read_error(pipe) is Reason.FETCH_FAILED  # type: ignore[arg-type]
    assert isinstance(gone, FileNotFoundError)
    assert isinstance(nul, ValueError)
    assert "found a pipe" in str(storage.stat_files(uris)[0])
    with pytest.raises(StorageError, match="found a pipe"):
        storage.list_files(uris[0])


def test_a_hidden_folder_that_may_not_be_read_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("music", ".Trash-0"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp3").write_bytes(b"1")
    scan = os.scandir

    def refuse(path: str) -> Any:  # root may read everything
        if path.endswith(refused):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr("pipeline.local_files.os.scandir", refuse)
    refused = ".Trash-0"
    assert storage.list_files(str(tmp_path))["path"].to_pylist() == ["music/a.mp3"]
    refused = "music"
    with pytest.raises(StorageError, match="refused"):
        storage.list_files(str(tmp_path))


def test_a_local_name_that_is_not_utf8_is_listed_and_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "good.mp3").write_bytes(b"1")
    with open(os.fsencode(tmp_path) + b"/lat\xe9.mp3", "wb"):
        pass
    listing = storage.list_files(str(tmp_path))
    assert listing["path"].to_pylist() == ["good.mp3", r"lat\udce9.mp3"]
    good, bad = storage.read_files(listing["uri"].to_pylist())
    assert good == b"1"
    assert isinstance(bad, OSError)
    assert not isinstance(bad, FileNotFoundError)
    assert "name is not UTF-8" in str(bad)


def test_a_key_of_s3_may_hold_what_looks_like_a_version(s3_server: S3Server) -> None:
    options = s3_server.options(STORE)
    url = f"s3://{STORE_BUCKET}/names/a.mp3?versionId=7.mp3"
    storage.write_file(f"s3://{STORE_BUCKET}/names/a.mp3", b"another", options)
    storage.write_file(url, b"this", options)
    assert storage.read_files([url], options) == [b"this"]
    (facts,) = storage.stat_files([url], options)
    assert isinstance(facts, dict)
    assert facts["size_bytes"] == 4
    assert storage.list_files(f"s3://{STORE_BUCKET}/names", options)["path"].to_pylist() == [
        "a.mp3",
        "a.mp3?versionId=7.mp3",
    ]


def test_the_modified_time_is_the_file_systems(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    path.touch()
    os.utime(path, (1_600_000_000.25, 1_600_000_000.25))
    expected = datetime(2020, 9, 13, 12, 26, 40, 250_000, tzinfo=UTC)
    assert storage.list_files(str(tmp_path))["modified_time"].to_pylist() == [expected]


def test_stat_files_answers_each_uri_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    path.write_bytes(b"123")
    uris = [str(path), str(tmp_path / "none.mp3"), str(tmp_path), "gopher9://x"]
    found, missing, folder, unknown = storage.stat_files(uris)
    assert isinstance(found, dict)
    assert found["size_bytes"] == 3
    assert isinstance(missing, FileNotFoundError)
    assert isinstance(folder, IsADirectoryError)
    assert isinstance(unknown, StorageError)
    assert storage.stat_files([]) == []


def test_read_files_keeps_order_over_schemes_and_returns_errors(tmp_path: Path, memory_root: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"local")
    (tmp_path / "empty").touch()
    storage.write_file(f"{memory_root}/x", b"memory")
    uris = [f"{memory_root}/x", str(path), f"{memory_root}/none", str(tmp_path), f"{tmp_path}/empty", str(path)]
    found = storage.read_files(uris)
    assert [found[i] for i in (0, 1, 4, 5)] == [b"memory", b"local", b"", b"local"]
    reasons = [storage.classify_read_error(found[i]) for i in (2, 3)]  # type: ignore[arg-type]
    assert reasons == [Reason.OBJECT_MISSING, Reason.OBJECT_MISSING]
    assert storage.read_files([]) == []


def test_read_errors_are_classified() -> None:
    assert storage.classify_read_error(PermissionError("403")) == Reason.PERMISSION_DENIED
    for missing in (FileNotFoundError(), IsADirectoryError(), NotADirectoryError()):
        assert storage.classify_read_error(missing) == Reason.OBJECT_MISSING
    assert storage.classify_read_error(TimeoutError()) == Reason.FETCH_FAILED


@pytest.mark.skipif(os.geteuid() == 0, reason="needs another user than root, who may read everything")
def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(StorageError, match="refused"):
        storage.list_files(str(tmp_path))


def test_write_file_replaces_and_reports(tmp_path: Path) -> None:
    url = f"{tmp_path}/new/folder/x"
    storage.write_file(url, b"one")
    storage.write_file(url, b"two")
    assert storage.read_file(url) == b"two"
    with pytest.raises(StorageError, match="cannot reach"):
        storage.write_file(f"{url}/below-a-file", b"")


def test_absolute_url_and_join_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute_url("s3://bucket/a/../b") == "s3://bucket/a/../b"
    assert storage.absolute_url("music/../x.mp3") == "/usr/x.mp3"
    assert storage.absolute_url("~/music") == "/home/someone/music"
    assert storage.join_url("s3://bucket/", "a", "b") == "s3://bucket/a/b"
    assert storage.join_url("s3://bucket") == "s3://bucket"


def test_a_disk_honours_exclusive_writes_and_keeps_no_trace_of_the_question(tmp_path: Path) -> None:
    assert honours_exclusive_writes(str(tmp_path / "store" / "probe"))
    assert list((tmp_path / "store").iterdir()) == []


def test_a_listing_of_s3_tells_what_asking_for_each_object_tells(s3_server: S3Server) -> None:
    options, root = s3_server.options(STORE), f"s3://{STORE_BUCKET}/listed"
    for name in ("b.mp3", "a/1 é.wav", "a/2?versionId=3.wav"):
        storage.write_file(f"{root}/{name}", name.encode(), options)
    found = storage.list_files(root, options)
    assert found["path"].to_pylist() == ["a/1 é.wav", "a/2?versionId=3.wav", "b.mp3"]
    rows = found.select(["size_bytes", "etag", "modified_time"]).to_pylist()
    stated = storage.stat_files(found["uri"].to_pylist(), options)
    assert [(row["size_bytes"], row["etag"]) for row in rows] == [
        (facts["size_bytes"], facts["etag"]) for facts in stated if isinstance(facts, dict)
    ]
    for row, facts in zip(rows, stated, strict=True):
        assert isinstance(facts, dict)
        # A header has whole seconds.
        assert abs((row["modified_time"] - facts["modified_time"]).total_seconds()) < 1
    assert storage.list_files(f"{root}/b.mp3", options)["path"].to_pylist() == ["b.mp3"]
    with pytest.raises(StorageError, match="found nothing"):
        storage.list_files(f"{root}/missing", options)


def test_an_s3_server_that_honours_exclusive_writes_is_told_from_one_that_does_not(s3_server: S3Server) -> None:
    url = f"s3://{STORE_BUCKET}/probe"
    assert honours_exclusive_writes(url, s3_server.options(STORE))
    assert not s3_server.open().exists(url)
    with ThreadingHTTPServer(("127.0.0.1", 0), CarelessServer) as careless:
        threading.Thread(target=careless.serve_forever, daemon=True).start()
        careless_url = f"http://127.0.0.1:{careless.server_address[1]}"
        assert not honours_exclusive_writes(url, s3_server.options(STORE, careless_url))
        with pytest.raises(StorageError, match="ignores conditional writes"):
            StoreLocation(f"s3://{STORE_BUCKET}/x", s3_server.options(STORE, careless_url)).check_writable()
        careless.shutdown()


class CarelessServer(BaseHTTPRequestHandler):
    """An object store that takes whatever it is sent, whatever the condition."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("ETag", '"d41d8cd98f00b204e9800998ecf8427e"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PUT = do_DELETE = do_HEAD = do_POST = answer  # noqa: N815 - the library's names

    def log_message(self, *args: Any) -> None:
        pass
