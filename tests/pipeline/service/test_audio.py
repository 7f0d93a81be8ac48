import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response, StreamingResponse

from pipeline.errors import StorageError
from pipeline.service.audio import BLOCK_BYTES, AudioFile, answer_with_audio, find_media_type, parse_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-", range(100)),
        ("bytes=0-0", range(1)),
        ("bytes=10-19", range(10, 20)),
        ("bytes=90-1000", range(90, 100)),
        ("bytes=-10", range(90, 100)),
        ("bytes=-1000", range(100)),
        ("bytes=20-10", None),  # not a range at all: the standard has the header ignored
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=٣-", None),
    ],
)
def test_ranges_are_read_as_the_standard_says(text: str, expected: range | None) -> None:
    assert parse_range(text, 100) == expected


@pytest.mark.parametrize("text", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_outside_the_file_is_empty(text: str) -> None:
    found = parse_range(text, 100)
    assert found is not None
    assert not found


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_range_never_leaves_the_file(first: int, last: int, size_bytes: int) -> None:
    found = parse_range(f"bytes={first}-{last}", size_bytes)
    assert not found or 0 <= found[0] <= found[-1] < size_bytes


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("a/b.mp3", "audio/mpeg"),
        ("s3://b/a.FLAC", "audio/flac"),
        ("x.m4a", "audio/mp4"),
        ("x.opus", "audio/ogg"),
        ("x.html", "application/octet-stream"),
        ("x.svg", "application/octet-stream"),
        ("x", "application/octet-stream"),
    ],
)
def test_no_file_is_ever_sent_as_a_page(uri: str, expected: str) -> None:
    assert find_media_type(uri) == expected


async def read(response: Response) -> bytes:
    if not isinstance(response, StreamingResponse):
        return bytes(response.body)
    return b"".join([bytes(block) async for block in response.body_iterator])  # type: ignore[arg-type]


def answer(path: Path, range_header: str | None = None, if_range: str | None = None) -> tuple[Response, bytes]:
    async def run() -> tuple[Response, bytes]:
        response = await answer_with_audio(AudioFile(str(path)), range_header, if_range)
        return response, await read(response)

    return asyncio.run(run())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "track [1] *.mp3"
    path.write_bytes(os.urandom(BLOCK_BYTES + 1000))
    return path


def test_without_a_range_the_whole_file_comes(file: Path) -> None:
    response, body = answer(file)
    assert (response.status_code, body) == (200, file.read_bytes())
    assert response.headers["content-length"] == str(len(body))


def test_a_range_comes_alone(file: Path) -> None:
    response, body = answer(file, "bytes=1000-1999")
    assert (response.status_code, body) == (206, file.read_bytes()[1000:2000])
    assert response.headers["content-range"] == f"bytes 1000-1999/{file.stat().st_size}"


def test_an_open_range_comes_block_by_block_until_the_end(file: Path) -> None:
    found = b""
    while len(found) < file.stat().st_size:
        response, body = answer(file, f"bytes={len(found)}-")
        assert response.status_code == 206
        assert 0 < len(body) <= BLOCK_BYTES
        found += body
    assert found == file.read_bytes()


def test_a_range_outside_is_refused_with_the_size(file: Path) -> None:
    response, _ = answer(file, "bytes=99999999-")
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{file.stat().st_size}"


def test_a_range_of_a_file_that_changed_is_the_new_file(file: Path) -> None:
    etag = answer(file)[0].headers["etag"]
    assert answer(file, "bytes=0-9", etag)[0].status_code == 206
    os.utime(file, (1, 1))
    assert answer(file, "bytes=0-9", etag)[0].status_code == 200


def test_a_file_that_is_gone_says_so_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as found:
        AudioFile(str(tmp_path / "gone.mp3"))
    assert str(tmp_path) not in str(found.value)


def test_a_file_that_goes_while_it_is_played_says_so(file: Path) -> None:
    audio = AudioFile(str(file))
    file.unlink()
    with pytest.raises(FileNotFoundError):
        audio.read(0, 10)


def test_storage_that_refuses_is_another_error(file: Path) -> None:
    class Refusing:
        def cat_file(self, *_: object, **__: object) -> bytes:
            raise PermissionError("no")

    audio = AudioFile(str(file))
    audio._fs = Refusing()
    with pytest.raises(StorageError):
        audio.read(0, 10)
