"""Debian packages: downloaded, unpacked beside the system and not into it, and what is wanted of them kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

from training.review import CorpusError, Paragraph

ENDINGS = {b"OggS": ".ogg", b"fLaC": ".flac", b"RIFF": ".wav", b"ID3\x02": ".mp3", b"ID3\x03": ".mp3"}
"""How a file without an ending begins, and which one it is given."""


PART = ".part-"
"""How the name of a folder begins whose content is not whole yet."""

CONTENTS = "contents.json"


def remove_parts(folder: Path) -> None:
    """Remove what a killed run has left half done under a folder."""
    for part in folder.glob(f"*/{PART}*"):
        shutil.rmtree(part, ignore_errors=True)


def download_package(package: str, cache: Path) -> Path:
    """Return a package's file; have ``apt-get`` download it, if the cache has none. Needs no root.

    Args:
        package: Its name.
        cache: Folder of package files; must exist.

    Returns:
        The file. Apt has checked its signed hash.

    Raises:
        CorpusError: There is no apt here, or it has no such package.
    """
    if packages := sorted(cache.glob(f"{package}_*.deb")):
        return packages[-1]
    # Into a folder of its own first: a download that was cut short must not look like a package.
    with tempfile.TemporaryDirectory(prefix=PART, dir=cache) as folder:
        command = ["apt-get", "--quiet", "--option", "Acquire::Retries=3", "download", package]
        _call(command, f"download {package}", Path(folder))
        for file in Path(folder).glob("*.deb"):
            file.rename(cache / file.name)
    if packages := sorted(cache.glob(f"{package}_*.deb")):
        return packages[-1]
    raise CorpusError(f"expected apt-get to download {package}, but no package came; run apt-get update first")


def require_version(file: Path, paragraphs: Sequence[Paragraph]) -> str:
    """Return the version that a package's file name gives, if it is one that was reviewed.

    Raises:
        CorpusError: It is another one: its files and their licences may have changed.
    """
    version = unquote(file.name.split("_")[1])
    for paragraph in paragraphs:
        if not fnmatchcase(version, paragraph.version):
            raise CorpusError(
                f"{paragraph.package} was reviewed in version {paragraph.version}, found {version} in {file}: "
                "read its debian/copyright, then mend corpus.toml"
            )
    return version


def extract_audio(file: Path, paragraphs: Sequence[Paragraph], target: Path) -> None:
    """Unpack the files that a package's paragraphs cover, and its debian/copyright.

    Args:
        file: The package.
        paragraphs: Of this package.
        target: Folder to make, in place of one that is there; it appears whole or not at all. Files lie in it as
            in the package, under their paragraph's folder; those without an ending get one.

    Raises:
        CorpusError: The package cannot be unpacked, or a paragraph covers none of its files.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PART, dir=target.parent) as scratch:
        whole, kept = Path(scratch, "whole"), Path(scratch, "kept")
        kept.mkdir()
        _call(["dpkg-deb", "-x", str(file), str(whole)], f"unpack {file}", Path(scratch))
        for paragraph in paragraphs:
            _open_zip_files(whole, paragraph.folder)
        files = {path.relative_to(whole).as_posix(): path for path in sorted(whole.rglob("*")) if _is_file(path)}
        for paragraph in paragraphs:
            if not any(paragraph.covers(name) for name in files):
                raise CorpusError(f"{file} has nothing that fits {paragraph.files} in {paragraph.folder}")
        for name, path in files.items():
            if any(paragraph.covers(name) for paragraph in paragraphs):
                place = kept / (name if path.suffix else name + _guess_ending(path))
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)
        shutil.copy(whole / f"usr/share/doc/{paragraphs[0].package}/copyright", kept / "copyright")
        sizes = {
            path.relative_to(kept).as_posix(): path.stat().st_size for path in kept.rglob("*") if _is_file(path)
        }
        (kept / CONTENTS).write_text(json.dumps(sizes))
        if target.exists():
            shutil.rmtree(target)
        kept.rename(target)


def is_whole(target: Path) -> bool:
    """Tell whether all files that ``extract_audio`` put into a folder are still there, in their sizes."""
    try:
        sizes = json.loads((target / CONTENTS).read_text())
        return all((target / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _open_zip_files(root: Path, folder: str) -> None:
    """Put a folder of the same name in the place of each zip file (a pk3 is one) that a path leads through."""
    place = root
    for part in folder.split("/"):
        place /= part
        if place.is_file() and zipfile.is_zipfile(place):
            packed = place.rename(place.with_name(place.name + ".packed"))
            with zipfile.ZipFile(packed) as archive:
                archive.extractall(place)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _guess_ending(path: Path) -> str:
    with path.open("rb") as file:
        return ENDINGS.get(file.read(4), "")


def _call(command: Sequence[str], task: str, folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CorpusError(f"cannot {task}: the corpus comes from Debian, and {command[0]} is not here") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        raise CorpusError(f"cannot {task}: {command[0]} ended with {done.returncode}: {said}")
