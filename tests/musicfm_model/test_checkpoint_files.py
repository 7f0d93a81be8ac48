from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import logging as hub_logging

from musicfm_model.checkpoint_files import PUBLISHED, check_md5, find_stats, local_copy, read_stats
from musicfm_model.errors import CheckpointError

GOOD = {"melspec_2048_mean": 6.5, "melspec_2048_std": 18.25}


def write_json(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_a_local_file_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"content")

    for url in (str(path), f"file://{path}"):
        with local_copy(url) as local:
            assert local == path


def test_a_remote_file_is_copied_for_as_long_as_it_is_used() -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/file.bin", b"content")

    with local_copy("memory://bucket/file.bin") as local:
        assert local.read_bytes() == b"content"

    assert not local.exists()


def put_in_hub_cache(cache: Path, files: dict[str, bytes]) -> None:
    """Lay files out as huggingface_hub caches them."""
    repository = cache / "models--minzwon--MusicFM"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


def test_a_published_file_comes_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    put_in_hub_cache(tmp_path, {"fma_stats.json": b"{}"})

    with local_copy(PUBLISHED["fma"].stats_url) as local:
        assert local.read_bytes() == b"{}"
    with (
        pytest.raises(CheckpointError, match=r"cannot read hf://minzwon/MusicFM/pretrained_fma.pt"),
        local_copy(PUBLISHED["fma"].url),
    ):
        pass


def test_a_hub_that_is_not_reached_is_one_error_and_no_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}")
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits longer after each attempt
    before = hub_logging.get_verbosity()
    with pytest.raises(CheckpointError, match=r"cannot read hf://minzwon/MusicFM/fma_stats.json") as found:
        read_stats(PUBLISHED["fma"].stats_url)
    assert "\n" not in str(found.value)
    assert "connection" in str(found.value)
    assert capfd.readouterr() == ("", "")
    assert hub_logging.get_verbosity() == before


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("missing.pt", r"nothing at missing.pt: .* one of the names msd, fma"),
        ("memory://missing/file.pt", "nothing at memory://missing/file.pt"),
        (
            "nosuchscheme://bucket/file.pt",
            "cannot read nosuchscheme://bucket/file.pt: ValueError: Protocol not known",
        ),
        (".", r"cannot read \.: IsADirectoryError"),
    ],
)
def test_an_unreadable_file_is_named(url: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message), local_copy(url):
        pass


def test_a_file_with_another_md5_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")

    check_md5(path, "url", None)
    check_md5(path, "url", hashlib.md5(b"content").hexdigest())
    with pytest.raises(CheckpointError, match=r"url: expected the published file with MD5 0a, found 9a0364b9"):
        check_md5(path, "url", "0a")


@pytest.mark.parametrize(
    ("checkpoint", "present", "expected"),
    [
        ("model.pt", ["model_stats.json", "stats.json", "msd_stats.json"], "model_stats.json"),
        ("model.pt", ["stats.json", "msd_stats.json"], "stats.json"),
        ("pretrained_msd.pt", ["stats.json", "msd_stats.json", "fma_stats.json"], "msd_stats.json"),
        ("pretrained_fma.pt", ["stats.json", "msd_stats.json", "fma_stats.json"], "fma_stats.json"),
    ],
)
def test_the_nearest_statistics_are_found(
    tmp_path: Path, checkpoint: str, present: list[str], expected: str
) -> None:
    for name in present:
        write_json(tmp_path / name, GOOD)

    assert find_stats(f"{tmp_path}/{checkpoint}") == f"{tmp_path}/{expected}"


def test_statistics_are_found_beside_a_bare_file_name_and_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "stats.json", GOOD)
    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("memory").pipe_file("/models/a_stats.json", b"{}")

    assert find_stats("model.pt") == "stats.json"
    assert find_stats("memory://models/a.pt") == "memory://models/a_stats.json"


def test_missing_statistics_name_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tried fma_stats.json, pretrained_fma_stats.json, stats.json"):
        find_stats(f"{tmp_path}/pretrained_fma.pt")


def test_statistics_are_read(tmp_path: Path) -> None:
    assert read_stats(write_json(tmp_path / "stats.json", GOOD | {"count": 3})) == (6.5, 18.25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"melspec_mean": 1, "melspec_std": 2}, "expected the keys .* found melspec_mean, melspec_std"),
        ({}, "expected the keys melspec_2048_mean and melspec_2048_std, found none"),
        ([1, 2], "expected the keys .* found list"),
        (GOOD | {"melspec_2048_mean": "6.5"}, "expected a finite number as melspec_2048_mean, found '6.5'"),
        (GOOD | {"melspec_2048_mean": None}, "expected a finite number as melspec_2048_mean, found None"),
        (GOOD | {"melspec_2048_std": True}, "expected a finite number as melspec_2048_std, found True"),
        (GOOD | {"melspec_2048_mean": float("nan")}, "expected a finite number as melspec_2048_mean, found nan"),
        (GOOD | {"melspec_2048_std": float("inf")}, "expected a finite number as melspec_2048_std, found inf"),
        (GOOD | {"melspec_2048_std": 0}, "expected a positive melspec_2048_std, found 0"),
        (GOOD | {"melspec_2048_std": -18.25}, "expected a positive melspec_2048_std, found -18.25"),
    ],
)
def test_unusable_statistics_are_named(tmp_path: Path, content: Any, message: str) -> None:
    url = write_json(tmp_path / "stats.json", content)

    with pytest.raises(CheckpointError, match=f"stats.json: {message}"):
        read_stats(url)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x02}q", b"{"])
def test_statistics_that_are_no_json_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "stats.json"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"stats.json: expected a JSON file .* found no JSON"):
        read_stats(str(path))
