"""What was decided about each file of each package: read from ``corpus.toml``, written by hand."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import UsageError

NEVER = frozenset(
    {"ufoai-music", "singularity-music", "drascula-music", "davegnukem-data", "btanks-data", "freedink-data"}
)
"""Packages that no review may take in: two are kept for an independent check, the others have unfit terms."""


class CorpusError(UsageError):
    """The review, a package or the files in it are not what the corpus was written down as."""


@dataclass(frozen=True)
class Paragraph:
    """The terms of some files of a package.

    Args:
        package: Debian package.
        version: Pattern of the versions that were reviewed, such as ``1.16.*``.
        folder: Folder within the package, without slashes at its ends; may lead into a zip file.
        files: Patterns of paths under ``folder``; ``*`` goes over slashes, too.
        author: Copyright holder.
        licence: As debian/copyright spells it.
        source: Where the package had the music from.
    """

    package: str
    version: str
    folder: str
    files: tuple[str, ...]
    author: str
    licence: str
    source: str

    def covers(self, path: str) -> bool:
        """Tell whether a file, named by its path within the package, is under these terms."""
        return any(fnmatchcase(path, f"{self.folder}/{pattern}") for pattern in self.files)


@dataclass(frozen=True)
class Review:
    """The whole table.

    Args:
        paragraphs: In the table's order; the first that covers a file counts.
        held_out: Packages that are never trained on.
        aliases: Other spellings of artists' names, to the one that is kept.
        sha256: Of the file.
    """

    paragraphs: tuple[Paragraph, ...]
    held_out: frozenset[str]
    aliases: Mapping[str, str]
    sha256: str

    @property
    def packages(self) -> list[str]:
        """All packages, each once, in the table's order."""
        return list(dict.fromkeys(paragraph.package for paragraph in self.paragraphs))

    def choose_paragraphs(self, package: str) -> list[Paragraph]:
        """Return the paragraphs of one package, in order."""
        return [paragraph for paragraph in self.paragraphs if paragraph.package == package]

    def name_artist(self, tag: str, author: str) -> str:
        """Return the artist: the file's own tag or, where that is empty, the author; in one spelling."""
        name = tag.strip() or author
        return self.aliases.get(name, name)

    def name_split(self, package: str) -> str:
        """Return ``held_out`` or ``train``."""
        return "held_out" if package in self.held_out else "train"


def read_review(path: Path) -> Review:
    """Read the table.

    Args:
        path: TOML file with ``held_out``, ``aliases`` and an array ``tracks`` of the fields of ``Paragraph``.

    Returns:
        The review.

    Raises:
        CorpusError: It is no such file, takes in a package of ``NEVER``, or holds out one that it does not have.
    """
    try:
        content = path.read_bytes()
        table = tomllib.loads(content.decode())
        rows = tuple(Paragraph(**{**row, "files": tuple(row["files"])}) for row in table["tracks"])
        held_out, aliases = frozenset(table["held_out"]), table["aliases"]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise CorpusError(f"expected held_out, [aliases] and [[tracks]] in {path}, found {error!r}") from error
    packages = {row.package for row in rows}
    if refused := packages & NEVER:
        raise CorpusError(f"{', '.join(sorted(refused))} may not be trained on; take it out of {path}")
    if unknown := held_out - packages:
        raise CorpusError(f"held_out of {path} names {', '.join(sorted(unknown))}, of which it has no tracks")
    return Review(rows, held_out, aliases, hashlib.sha256(content).hexdigest())
