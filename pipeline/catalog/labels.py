"""How labels that are numbers are read from the texts that catalogs and files hold."""

from __future__ import annotations

import re

import pyarrow as pa

_NUMBER = re.compile(r"\s*0*(\d{1,9})\s*(?:$|/|of\b)", re.IGNORECASE)
_YEAR = re.compile(r"(?<!\d)[12]\d{3}(?!\d)")


def read_track_number(text: str) -> int | None:
    """Read ``3``, ``03``, ``3/12`` or ``3 of 12`` as 3; None where it is no number from 1."""
    match = _NUMBER.match(text)
    return int(match[1]) or None if match else None


def read_year(text: str) -> int | None:
    """Read the first year, from 1000 to 2999, of a date in whatever order; None where there is none."""
    match = _YEAR.search(text)
    return int(match[0]) if match else None


def convert_labels(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return a label's texts as the catalog has them: of numbers and years whatever can be read as one.

    Args:
        column: Texts, such as ``3/12`` or ``1999-12-31``.
        name: Of ``schema.LABELS``.
    """
    read = {"track_number": read_track_number, "year": read_year}.get(name)
    if read is None:
        return column
    return pa.chunked_array([pa.array([read(text or "") for text in column.to_pylist()], pa.int32())])
