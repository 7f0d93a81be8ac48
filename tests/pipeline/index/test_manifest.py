import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import RunError, StorageError, UsageError
from pipeline.index.files import IndexFile, IndexLocation, upload_file
from pipeline.index.manifest import (
    IndexManifest,
    find_index,
    list_versions,
    publish,
    read_manifest,
    remove_old_versions,
)
from pipeline.location import StoreLocation
from tests.s3_server import STORE, STORE_BUCKET, S3Server


@pytest.fixture
def location(tmp_path: Path) -> IndexLocation:
    return IndexLocation(StoreLocation(str(tmp_path / "store")), "musicfm-l7-x", "global")


def make_manifest(version: int = 1, segments: tuple[IndexFile, ...] = ()) -> IndexManifest:
    return IndexManifest(
        recipe="musicfm-l7-x",
        definition="{}",
        resolution="global",
        kind="exact",
        embed_dim=3,
        num_vectors=2,
        num_tracks=2,
        store_version=version,
        frames_version=0,
        version=version,
        created_time="2026-01-01T00:00:00+00:00",
        segments=segments,
        files={"tracks": IndexFile("t.arrow", 3, "ab" * 32)},
        quality={"recall_at_10": 0.97},
    )


def put_file(location: IndexLocation, folder: Path, text: str) -> IndexFile:
    path = folder / "draft.rows"
    path.write_text(text)
    return upload_file(location, str(path), 1)


def test_a_manifest_comes_back_as_it_was_published(location: IndexLocation) -> None:
    manifest = make_manifest(segments=(IndexFile("s.rows", 9, "cd" * 32, 4),))
    publish(location, manifest)
    assert read_manifest(location) == manifest
    assert read_manifest(location, 1) == manifest


def test_the_highest_version_is_the_index(location: IndexLocation) -> None:
    for version in (1, 2, 3):
        publish(location, make_manifest(version))
    found = read_manifest(location)
    assert found is not None
    assert found.version == 3
    assert found.version_id == "00000003"


def test_where_nothing_was_built_there_is_no_manifest(location: IndexLocation) -> None:
    assert read_manifest(location) is None
    assert list_versions(location) == []


def test_of_two_builders_that_make_one_version_the_second_is_told(location: IndexLocation) -> None:
    publish(location, make_manifest(1))
    with pytest.raises(RunError, match="another build published"):
        publish(location, replace(make_manifest(1), store_version=9))
    found = read_manifest(location)
    assert found is not None
    assert found.store_version == 1


def test_a_builder_that_slept_cannot_bring_an_older_version_back(location: IndexLocation) -> None:
    publish(location, make_manifest(3))
    with pytest.raises(RunError, match="another build published"):
        publish(location, make_manifest(2))
    assert list_versions(location) == [3]


@pytest.mark.parametrize("where", ["local", "s3"])
def test_of_many_builders_at_once_one_alone_publishes_a_version(
    where: str, location: IndexLocation, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if where == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        store = StoreLocation(f"s3://{STORE_BUCKET}/race-{tmp_path.name}", server.options(STORE))
        location = replace(location, store=store)
    number = 2 if where == "s3" else 6
    start = threading.Barrier(number)

    def publish_together(store_version: int) -> bool:
        start.wait()
        try:
            publish(location, replace(make_manifest(1), store_version=store_version))
        except RunError:
            return False
        return True

    with ThreadPoolExecutor(number) as pool:
        won = list(pool.map(publish_together, range(number)))
    assert sum(won) == 1
    found = read_manifest(location)
    assert found is not None
    assert won[found.store_version]


@pytest.mark.parametrize(
    ("old", "new"), [('"num_tracks": 2', '"num_tracks": 3'), ("{", "["), ('"format": 2', '"format": 7')]
)
def test_a_manifest_that_was_tampered_with_is_refused(location: IndexLocation, old: str, new: str) -> None:
    publish(location, make_manifest())
    path = Path(location.version_url(1))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(StorageError, match="rebuild"):
        read_manifest(location)


def test_an_index_of_the_format_before_is_opened_as_plain(location: IndexLocation) -> None:
    publish(location, make_manifest())
    path = Path(location.version_url(1))
    body = json.loads(path.read_text())["manifest"] | {"format": 1}
    del body["distance"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"manifest": body, "sha256": digest}))
    manifest = read_manifest(location)
    assert manifest is not None
    assert (manifest.format, manifest.distance, manifest.num_tracks) == (1, "plain", 2)


def test_an_index_is_found_by_its_resolution_and_recipe(location: IndexLocation) -> None:
    publish(location, make_manifest())
    assert find_index(location.store, "global") == location
    assert find_index(location.store, "global", "musicfm-l7-x") == location
    with pytest.raises(UsageError, match=r"no index for resolution 0\.5hz.*musicfm-l7-x/global.*musicfm index"):
        find_index(location.store, "0.5hz")
    with pytest.raises(UsageError, match="recipe other"):
        find_index(location.store, "global", "other")


def test_where_two_recipes_are_indexed_one_has_to_be_named(location: IndexLocation) -> None:
    publish(location, make_manifest())
    publish(replace(location, recipe="musicfm-l4-y"), make_manifest())
    with pytest.raises(UsageError, match=r"musicfm-l4-y, musicfm-l7-x.*name one with --recipe"):
        find_index(location.store, "global")
    assert find_index(location.store, "global", "musicfm-l4-y").recipe == "musicfm-l4-y"


def test_the_last_version_but_one_keeps_its_files_until_the_next_build(
    location: IndexLocation, tmp_path: Path
) -> None:
    shared, *own = (put_file(location, tmp_path, text) for text in ("shared", "one", "two", "three"))
    for version, file in enumerate(own, start=1):
        manifest = make_manifest(version, (shared, file))
        publish(location, manifest)
        remove_old_versions(location, manifest)
    left = {path.name for path in Path(location.url, "files").iterdir()}
    assert left == {shared.name, own[1].name, own[2].name}
    assert list_versions(location) == [2, 3]


def test_files_of_a_build_that_runs_stay_and_those_of_one_that_died_go(
    location: IndexLocation, tmp_path: Path
) -> None:
    running, died, own = (put_file(location, tmp_path, text) for text in ("running", "died", "own"))
    long_ago_s = time.time() - 2 * 86400
    for file in (died, own):
        os.utime(location.file_url(file.name), (long_ago_s, long_ago_s))
    manifest = make_manifest(1, (own,))
    publish(location, manifest)
    assert remove_old_versions(location, manifest) == [died.name]
    assert Path(location.file_url(running.name)).exists()
    assert Path(location.file_url(own.name)).exists()


def test_a_manifest_is_readable_json(location: IndexLocation) -> None:
    publish(location, make_manifest())
    body = json.loads(Path(location.version_url(1)).read_text())["manifest"]
    assert body["quality"] == {"recall_at_10": 0.97}
    assert body["store_version"] == 1
