"""CSV and TSV, read exactly or refused: no reading of a damaged table drops rows without a word."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.errors import CatalogError

MAX_CELL_CHARACTERS = 131_072
"""Longer cells are no titles and no addresses: a quotation mark was never closed, or this is no catalog."""

_ROWS_PER_BATCH = 65_536
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class _SeveralRowsError(CatalogError):
    """A value between quotation marks may as well be several rows between two lone ones: nobody can tell."""


def read_delimited(data: bytes, delimiter: str, url: str) -> pa.Table:
    r"""Read a delimited text file whose first row names the columns; all values stay text.

    Quotation marks are read as RFC 4180 has them. A tab-separated file has none (IANA, text/tab-separated-values),
    unless all of its are balanced, as spreadsheets and Python's ``csv`` write them. Blank lines do not count.

    Args:
        data: The file's bytes: UTF-8, with or without a byte order mark.
        delimiter: ``,`` or ``\t``.
        url: The file's name, for messages.

    Returns:
        One string column for each name of the first row; of names that stand twice the first counts.

    Raises:
        CatalogError: Another encoding; a quotation mark that is never closed, or closed within a value; a value
            that may as well be several rows between two lone quotation marks; a cell of more than
            ``MAX_CELL_CHARACTERS``; a row with another number of columns than the first one.
    """
    text = _decode(data, url)
    try:
        return _read(text, delimiter, url, quoted=True)
    except _SeveralRowsError:
        raise
    except CatalogError:
        if delimiter != "\t":
            raise
    return _read(text, delimiter, url, quoted=False)


def _decode(data: bytes, url: str) -> str:
    """Decode UTF-8; say which encoding it looks like otherwise, and where."""
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:1000]:
        encoding = "UTF-16 or binary data"
    if encoding is not None:
        raise CatalogError(f"expected text in UTF-8 in {url}, found {encoding}; save it as UTF-8 and try again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CatalogError(
            f"expected text in UTF-8 in {url}, found the byte 0x{data[error.start]:02X} in line {line} "
            "(Latin-1 or Windows-1252 perhaps); save it as UTF-8 and try again"
        ) from error


def _read(text: str, delimiter: str, url: str, quoted: bool) -> pa.Table:
    rows = _iterate_rows(text, delimiter, url, quoted)
    names = next(rows, None)
    if names is None:
        raise CatalogError(f"expected a first row with the columns' names in {url}, found an empty file")
    first_of = {name: position for position, name in reversed(list(enumerate(names)))}
    columns: dict[str, list[pa.Array]] = {name: [] for name in dict.fromkeys(names)}
    while batch := _take(rows, _ROWS_PER_BATCH):
        for name, chunks in columns.items():
            position = first_of[name]
            chunks.append(pa.array([row[position] for row in batch], pa.string()))
    return pa.table({name: pa.chunked_array(chunks, pa.string()) for name, chunks in columns.items()})


def _take(rows: Iterator[list[str]], number: int) -> list[list[str]]:
    return [row for row, _ in zip(rows, range(number), strict=False)]


def _iterate_rows(text: str, delimiter: str, url: str, quoted: bool) -> Iterator[list[str]]:
    """Yield rows, the first one with the names; each is checked against it."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    num_columns, row_number, line = 0, -1, 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _explain(error, row_number + 1, line, url) from error
        if row is None:
            return
        if row:
            row_number += 1
            num_columns = num_columns or len(row)
            _check_row(row, num_columns, delimiter, f"row {row_number} (line {line}) of {url}")
            yield row
        line = reader.line_num + 1


def _check_row(row: Sequence[str], num_columns: int, delimiter: str, where: str) -> None:
    if len(row) != num_columns:
        raise CatalogError(
            f"expected {num_columns} columns, as the first row has them, found {len(row)} in {where}; quote "
            "values that hold the delimiter"
        )
    for column, value in enumerate(row):
        if delimiter in value and _may_be_several_rows(value, column, num_columns, delimiter):
            raise _SeveralRowsError(
                "expected a quotation mark to be closed in its own cell, found one value over several rows in "
                f"{where}: {value[:40]!r}…; double the marks that belong to a value, or give a Parquet file"
            )


def _may_be_several_rows(value: str, column: int, num_columns: int, delimiter: str) -> bool:
    """Say whether a value could be the rest of a row, whole rows and the beginning of one, between two lone marks.

    Such a value has as many delimiters in each of its lines as the columns that it runs over.
    """
    counts = [line.count(delimiter) for line in re.split(r"\r\n|\r|\n", value)]
    whole_row = num_columns - 1
    return counts == [whole_row - column, *[whole_row] * (len(counts) - 2), column] if len(counts) > 1 else False


def _explain(error: csv.Error, row_number: int, line: int, url: str) -> CatalogError:
    """Return what Python's reader found, in words that help."""
    where, found = f"row {row_number} (line {line}) of {url}", str(error)
    if "field limit" in found:
        return CatalogError(
            f"expected cells of at most {MAX_CELL_CHARACTERS:,} characters, found a longer one in {where}: a "
            "quotation mark that is never closed, or no table of tracks"
        )
    if "unexpected end" in found:
        return CatalogError(
            f"expected every quotation mark to be closed in {url}, found one that is open at the end; it "
            f"was opened in row {row_number}, which begins in line {line}"
        )
    return CatalogError(
        f"cannot read {where} exactly: {found}; quote the whole value, and double the marks that belong to it"
    )
