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
