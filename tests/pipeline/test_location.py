from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from pipeline.location import StoreLocation, delta_storage_options, open_arrow_filesystem


def test_delta_options_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert delta_storage_options() == {}
    options = {"key": "k", "secret": "s", "endpoint_url": "https://host", "AWS_REGION": "eu-west-1"}
    assert delta_storage_options(options) == {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_ENDPOINT_URL": "https://host",
        "AWS_REGION": "eu-west-1",
    }
    assert delta_storage_options({"endpoint_url": "http://host"})["AWS_ALLOW_HTTP"] == "true"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host")
    assert delta_storage_options() == {"AWS_ALLOW_HTTP": "true"}


def test_a_location_shows_its_url_and_no_option() -> None:
    location = StoreLocation("s3://bucket/store/", {"secret": "sesame"})
    assert repr(location) == "StoreLocation('s3://bucket/store/')"
    assert location.table_url("tracks") == "s3://bucket/store/tracks"


def test_arrow_reads_local_files_and_s3_natively_and_the_rest_through_fsspec() -> None:
    fs, path = open_arrow_filesystem("file:///a/b c")
    assert isinstance(fs, pyarrow.fs.LocalFileSystem)
    assert path == "/a/b c"
    options = {"key": "k", "secret": "s", "endpoint_url": "http://host:1", "AWS_REGION": "eu-west-1"}
    fs, path = open_arrow_filesystem("s3://bucket/a/b", options)
    assert isinstance(fs, pyarrow.fs.S3FileSystem)
    assert (fs.region, path) == ("eu-west-1", "bucket/a/b")
    fs, path = open_arrow_filesystem("memory://bucket/a")
    assert isinstance(fs, pyarrow.fs.PyFileSystem)
    assert path == "/bucket/a"


def test_a_relative_location_means_the_same_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = StoreLocation("features")
    monkeypatch.chdir("/")
    assert location.table_url("tracks") == f"{tmp_path}/features/tracks"
    assert StoreLocation("s3://bucket/features").url == "s3://bucket/features"


@pytest.mark.parametrize(
    ("environment", "endpoint", "proxy"),
    [
        ({}, "https://s3.amazonaws.com", None),
        ({"https_proxy": "http://proxy:3128"}, "https://s3.amazonaws.com", "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128"}, "http://127.0.0.1:8333", None),
        ({"http_proxy": "http://proxy:3128"}, "http://minio:9000", "http://proxy:3128"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "minio"}, "http://minio:9000", None),
        ({"https_proxy": "proxy:3128"}, None, "http://proxy:3128"),
        ({"https_proxy": "socks5://proxy:1080"}, None, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": ".s3.eu-west-1.amazonaws.com"}, None, None),
    ],
)
def test_arrow_is_told_of_the_proxy_that_the_others_find_by_themselves(
    environment: dict[str, str], endpoint: str | None, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told: dict[str, Any] = {}
    monkeypatch.setattr(pyarrow.fs, "S3FileSystem", lambda **settings: told.update(settings))
    open_arrow_filesystem("s3://bucket/features", {"endpoint_url": endpoint} if endpoint else None)
    assert told["proxy_options"] == proxy
