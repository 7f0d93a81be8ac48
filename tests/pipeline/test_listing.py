"""S3's listings, of a bucket that answers page by page as S3 does, in either of two orders that servers have."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import listing
from pipeline.listing import LISTING, choose_prefixes, is_rising, list_s3, read_etag, read_modified_time

TIME = datetime(2026, 1, 2, tzinfo=UTC)


class Bucket:
    """Lists keys as ListObjectsV2 does (S3 API Reference), a few a page.

    Args:
        keys: Of its objects.
        page_keys: Keys and folders on a page.
        by_folder: Sort folders by name, as servers on file systems do, and not whole keys.
    """

    def __init__(self, keys: list[str], page_keys: int, by_folder: bool) -> None:
        self.keys = sorted(keys, key=(lambda key: key.split("/")) if by_folder else None)
        self.page_keys = page_keys
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def call(self, operation: str, **asked: str) -> Mapping[str, Any]:
        assert operation == "list_objects_v2"
        with self._lock:
            self.asked.append(asked["Prefix"])
        prefix, delimiter = asked["Prefix"], asked.get("Delimiter")
        found: dict[str, bool] = {}
        for key in self.keys:
            if key.startswith(prefix):
                name, slash, _ = key[len(prefix) :].partition("/")
                found[prefix + name + slash if delimiter and slash else key] = bool(delimiter and slash)
        entries = list(found.items())
        start = int(asked.get("ContinuationToken", 0))
        page = entries[start : start + self.page_keys]
        contents = [
            {"Key": key, "Size": len(key), "ETag": f'"{key}"', "LastModified": TIME}
            for key, is_f in page
            if not is_f
        ]
        more = len(entries) > start + self.page_keys
        return {
            "Contents": contents,
            "CommonPrefixes": [{"Prefix": key} for key, is_folder in page if is_folder],
            "IsTruncated": more,
            **({"NextContinuationToken": str(start + self.page_keys)} if more else {}),
        }


names = st.text("ab-é", min_size=1, max_size=2)
keys = st.lists(st.lists(names, min_size=1, max_size=4).map("/".join), unique=True, max_size=60)


@settings(deadline=None)
@given(keys, st.integers(1, 5), st.booleans(), st.sampled_from(["", "a", "a/b"]))
def test_every_object_is_listed_once_and_in_order(
    some_keys: list[str], page_keys: int, by_folder: bool, folder: str
) -> None:
    bucket = Bucket([*some_keys, "a/"], page_keys, by_folder)
    found = list_s3(bucket.call, f"music/{folder}".rstrip("/"), "s3://music/")
    root = f"{folder}/" if folder else ""
    paths = sorted(key.removeprefix(root) for key in some_keys if key.startswith(root))
    if found is None:
        assert folder
        assert not any(key.startswith(root) for key in bucket.keys)
        return
    assert found.schema == LISTING
    assert found["path"].to_pylist() == paths
    assert found["uri"].to_pylist() == [f"s3://music/{path}" for path in paths]
    assert found["etag"].to_pylist() == [root + path for path in paths]
    assert found["size_bytes"].to_pylist() == [len(root + path) for path in paths]
    assert set(found["modified_time"].to_pylist()) <= {TIME}


def test_what_fits_a_page_is_one_request_and_more_is_asked_for_by_prefix() -> None:
    some_keys = [
        f"set/{artist:02d}/{album}/{track}.mp3" for artist in range(20) for album in "ab" for track in "123"
    ]
    bucket = Bucket(some_keys, 1000, by_folder=False)
    list_s3(bucket.call, "music", "s3://music/")
    assert bucket.asked == [""]
    bucket = Bucket(some_keys, 10, by_folder=False)
    list_s3(bucket.call, "music", "s3://music/")
    # The first page; the only folder in the root; the folders in that, ten a page; each of them.
    assert sorted(bucket.asked) == ["", "", "set/", "set/", *(f"set/{artist:02d}/" for artist in range(20))]


@given(st.lists(names, unique=True, min_size=1), st.integers(1, 6))
def test_each_folder_lies_below_one_prefix(folders: list[str], most: int) -> None:
    below = [f"root/{name}/" for name in folders]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "MAX_PREFIXES", most)
        prefixes = choose_prefixes(below, len("root/"))
    assert len(prefixes) <= most
    for folder in below:
        assert sum(folder.startswith(prefix) for prefix in prefixes) == 1


@given(st.lists(st.lists(st.one_of(st.none(), st.text("ab", max_size=2)), max_size=4), max_size=4))
def test_a_rising_column_is_sorted_and_has_no_value_twice(chunks: list[list[str | None]]) -> None:
    values = [value for chunk in chunks for value in chunk]
    expected = None not in values and values == sorted({value for value in values if value is not None})
    assert is_rising(pa.chunked_array(chunks, pa.string())) == expected


@pytest.mark.parametrize(
    "info",
    [
        {"LastModified": datetime(2024, 2, 29, 12, tzinfo=UTC), "ETag": '"abc"'},  # S3
        {"updated": "2024-02-29T12:00:00.000Z", "etag": "abc"},  # Google Cloud Storage
        {"last_modified": datetime(2024, 2, 29, 14, tzinfo=timezone(timedelta(hours=2))), "etag": "abc"},  # Azure
        {"LastModified": "", "mtime": 1_709_208_000, "created": 0.0, "ETag": "", "etag": "abc"},
        {"created": datetime(2024, 2, 29, 12), "ETag": "abc"},
        {"LastModified": None, "mtime": 1_709_208_000, "blob_id": "abc"},  # Hugging Face has no time
    ],
)
def test_each_scheme_names_time_and_etag_its_own_way(info: dict[str, Any]) -> None:
    assert read_modified_time(info) == datetime(2024, 2, 29, 12, tzinfo=UTC)
    assert read_etag(info) == "abc"
    assert read_modified_time({}) is None
    assert read_etag({}) is None
