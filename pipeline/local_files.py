"""Files on this machine's disk: what fsspec does not tell of them."""

from __future__ import annotations

import os
import re
import stat
from typing import Any

_SPELLED_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")  # as `_spell` writes it


def find_local_files(folder: str) -> dict[str, dict[str, Any]]:
    """List the files of a local folder as fsspec's ``find`` does, but follow links and leave out pipes.

    fsspec lists a link to a folder as if it were a file, and would lose the music in it.
    """
    files: dict[str, dict[str, Any]] = {}

    def scan(folder: str, above: frozenset[tuple[int, int]]) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    facts = entry.stat()
                except OSError:  # a link that leads nowhere, or round in a circle
                    files[_spell(entry.path)] = {}
                    continue
                inode = (facts.st_dev, facts.st_ino)
                if stat.S_ISREG(facts.st_mode):
                    files[_spell(entry.path)] = {"size": facts.st_size, "mtime": facts.st_mtime}
                elif stat.S_ISDIR(facts.st_mode) and inode not in above and entry.name != "lost+found":
                    try:
                        scan(entry.path, above | {inode})
                    except PermissionError:
                        # A hidden folder, such as a trash can, is nobody's music.
                        if not entry.name.startswith("."):
                            raise

    top = os.stat(folder)
    scan(folder, frozenset([(top.st_dev, top.st_ino)]))
    return files


def require_regular(path: str) -> None:
    """Refuse what on this machine's disk is no file: who opens a pipe that nobody writes to waits for ever.

    Raises:
        OSError: It is a pipe, a socket or a device; its name is not UTF-8; or it is not there.
        ValueError: Its name holds a NUL.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.lexists(_SPELLED_BYTE.sub(lambda escape: chr(int(escape[1], 16)), path)):
            matter = "is there, but its name is not UTF-8, the only encoding that a table of tracks can hold"
            raise OSError(f"{path} {matter}; rename it (convmv does so for whole folders)") from None
        raise
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(f"expected a file at {path}, found a pipe, a socket or a device")


def _spell(name: str) -> str:
    """Spell out the bytes of a local name that are not UTF-8, since Arrow's strings cannot hold them."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()
