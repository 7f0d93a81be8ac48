"""Where checkpoints come from: published names, URLs, and the statistics file beside a checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from musicfm_model.errors import CheckpointError

Options = Mapping[str, str]

MEAN_KEY = "melspec_2048_mean"
STD_KEY = "melspec_2048_std"


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint that the model's authors publish, with its statistics file.

    Args:
        url: The checkpoint.
        stats_url: The statistics.
        md5: MD5 of the checkpoint file, None where it is not known.
        stats_md5: MD5 of the statistics file, likewise.
    """

    url: str
    stats_url: str
    md5: str | None = None
    stats_md5: str | None = None


PUBLISHED = {
    "msd": PublishedCheckpoint(
        "hf://minzwon/MusicFM/pretrained_msd.pt",
        "hf://minzwon/MusicFM/msd_stats.json",
        md5="df930aceac8209818556c4a656a0714c",
        stats_md5="75ab2e47b093e07378f7f703bdb82c14",
    ),
    "fma": PublishedCheckpoint(
        "hf://minzwon/MusicFM/pretrained_fma.pt",
        "hf://minzwon/MusicFM/fma_stats.json",
    ),
}
"""The names that may stand in place of a checkpoint's URL (README of github.com/minzwon/musicfm)."""

# The published checkpoints do not share a stem with their statistics.
_PUBLISHED_STATS = {"pretrained_msd.pt": "msd_stats.json", "pretrained_fma.pt": "fma_stats.json"}


@contextmanager
def local_copy(url: str, storage_options: Options | None = None) -> Iterator[Path]:
    """Give a URL's file as a local path, inside the block.

    A local file is itself, a file of a Hugging Face model repository comes from the hub's cache, anything
    else is copied into a temporary folder.

    Args:
        url: Any fsspec URL or local path.
        storage_options: Keyword arguments of its file system.

    Raises:
        CheckpointError: The file is missing or cannot be read.
    """
    with ExitStack() as stack:
        try:
            fs, path = _open_filesystem(url, storage_options)
            if isinstance(fs, LocalFileSystem):
                local = Path(path)
                local.open("rb").close()
            elif url.startswith("hf://") and _is_plain_hub_path(path):
                local = _fetch_from_hub(path, fs.token)
            else:
                folder = stack.enter_context(TemporaryDirectory(prefix="musicfm-"))
                local = Path(folder) / "file"
                fs.get_file(path, str(local))
        except Exception as error:
            raise _describe_unreadable(url, error) from error
        yield local


def check_md5(local: Path, url: str, expected: str | None) -> None:
    """Check a file against its published MD5, where there is one.

    Raises:
        CheckpointError: It is another file.
    """
    if expected is None:
        return
    with local.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != expected:
        raise CheckpointError(
            f"{url}: expected the published file with MD5 {expected}, found {digest}: "
            "the copy is damaged or the file was replaced; delete it from the Hugging Face cache and try "
            "again, or name the file by its URL to use it as it is"
        )


def find_stats(url: str, storage_options: Options | None = None) -> str:
    """Return the URL of the statistics file that lies beside a checkpoint.

    Tried in this order: the published companion of ``pretrained_msd.pt`` and ``pretrained_fma.pt``,
    ``<stem>_stats.json``, ``stats.json``.

    Raises:
        CheckpointError: There is none, or its folder cannot be read.
    """
    folder, separator, filename = url.rpartition("/")
    companions = [_PUBLISHED_STATS[filename]] if filename in _PUBLISHED_STATS else []
    candidates = [*companions, f"{filename.rpartition('.')[0]}_stats.json", "stats.json"]
    for candidate in candidates:
        stats_url = f"{folder}{separator}{candidate}"
        try:
            fs, path = _open_filesystem(stats_url, storage_options)
            if fs.exists(path):
                return stats_url
        except Exception as error:
            raise _describe_unreadable(stats_url, error) from error
    raise CheckpointError(
        f"{url}: no statistics file beside it (tried {', '.join(candidates)}); name it explicitly"
    )


def read_stats(url: str, storage_options: Options | None = None, md5: str | None = None) -> tuple[float, float]:
    """Read the mean and standard deviation that normalise the log-mel frames, both in dB.

    Args:
        url: A JSON file with ``melspec_2048_mean`` and ``melspec_2048_std``.
        storage_options: Keyword arguments of its file system.
        md5: Published MD5 of the file, None where it is not known.

    Raises:
        CheckpointError: The file is missing, is not such a JSON file, or its values are unusable.
    """
    with local_copy(url, storage_options) as local:
        check_md5(local, url, md5)
        try:
            content = json.loads(local.read_bytes())
        except ValueError as error:
            raise CheckpointError(
                f"{url}: expected a JSON file with {MEAN_KEY} and {STD_KEY}, found no JSON"
            ) from error
    return parse_stats(content, url)


def parse_stats(content: object, source: str) -> tuple[float, float]:
    """Return the two statistics out of parsed JSON or metadata.

    Args:
        content: A mapping with numbers under the two keys.
        source: What to call it in a message.

    Raises:
        CheckpointError: A key is missing, a value is not a finite number, or the deviation is not positive.
    """
    if not isinstance(content, dict) or not content.keys() >= {MEAN_KEY, STD_KEY}:
        found = ", ".join(sorted(content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{source}: expected the keys {MEAN_KEY} and {STD_KEY}, found {found or 'none'}")
    mean, std = content[MEAN_KEY], content[STD_KEY]
    for key, value in ((MEAN_KEY, mean), (STD_KEY, std)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise CheckpointError(f"{source}: expected a finite number as {key}, found {value!r}")
    if std <= 0:
        raise CheckpointError(f"{source}: expected a positive {STD_KEY}, found {std!r}")
    return float(mean), float(std)


def _open_filesystem(url: str, storage_options: Options | None) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = url_to_fs(url, **(storage_options or {}))
    return fs, path


def _fetch_from_hub(path: str, token: str | bool | None) -> Path:
    """Give the hub's file out of its cache, fetched where it is not there.

    The hub's client warns of every attempt, twice; the error that comes at last says the same once.
    """
    from huggingface_hub import hf_hub_download  # half a second that other places need not wait
    from huggingface_hub.utils import logging as hub_logging

    owner, name, filename = path.split("/", 2)
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return Path(hf_hub_download(f"{owner}/{name}", filename, token=token))
    finally:
        hub_logging.set_verbosity(verbosity)


def _is_plain_hub_path(path: str) -> bool:
    """Return whether a hub path is ``owner/name/file`` of a model repository, at its newest revision."""
    return "@" not in path and path.count("/") >= 2 and not path.startswith(("datasets/", "spaces/", "buckets/"))


def _describe_unreadable(url: str, error: Exception) -> CheckpointError:
    from huggingface_hub.errors import LocalEntryNotFoundError  # of a hub that is not reached: nobody knows

    if isinstance(error, FileNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return CheckpointError(
            f"nothing at {url}: expected an existing file (a checkpoint may also be one of the names "
            f"{', '.join(PUBLISHED)})"
        )
    detail = " ".join(str(error).split())
    return CheckpointError(f"cannot read {url}: {type(error).__name__}: {detail}")
