"""Filters: an SQL expression over tracks' metadata, from people who may be anyone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from threading import Timer
from typing import Any, Literal

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError

SameColumn = Literal["artist", "album"]

MAX_SECONDS = 5.0
_ROW = "__row"
_TAG_COLUMN = "__tag_"
# What stands in quotation marks or in a remark is passed over, so that nothing in it is taken for a call.
_TAG_CALL = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\btag\s*\(\s*'(?P<label>(?:[^']|'')*)'\s*\)""",
    re.IGNORECASE | re.DOTALL,
)
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "lock_configuration": "true",
    "memory_limit": "2GB",
}

# What an expression may be made of, as DuckDB's parser names it. A function that makes much of little (`repeat`,
# `range`) could fill the memory in one step, which neither limit nor interruption reaches; a query inside the
# expression could ask for the engine's settings.
_ALLOWED_CLASSES = {
    *("COLUMN_REF", "CONSTANT", "COMPARISON", "BETWEEN", "CONJUNCTION", "OPERATOR", "CASE", "CAST", "COLLATE"),
    *("FUNCTION", "TYPE"),
}
_ALLOWED_FUNCTIONS = {
    *("+", "-", "*", "/", "//", "%", "abs", "round", "floor", "ceil", "nullif"),
    *("~~", "!~~", "~~*", "!~~*", "~~~"),  # LIKE, ILIKE and GLOB
    *("like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape", "regexp_matches", "regexp_full_match"),
    *("||", "concat", "lower", "upper", "trim", "ltrim", "rtrim", "left", "right", "substr", "substring"),
    *("strip_accents", "length", "contains", "starts_with", "prefix", "ends_with", "suffix"),
}


ReadTag = Callable[[str], pa.Array]
"""Takes a label; returns each row's score of it, float32, null where there is none."""


def filter_tracks(
    tracks: pa.Table, where: str, columns: Sequence[str], read_tag: ReadTag | None = None
) -> npt.NDArray[np.bool_]:
    """Mark the rows of a table for which an expression is true; where it is unknown (null) is no.

    DuckDB takes one expression here, never a statement, of comparisons, arithmetic and simple functions of text;
    it may reach nothing but the table: no file, no network, no setting. ``tag('piano')`` stands for the score that
    a head has given a track.

    Args:
        tracks: Table.
        where: The expression, such as ``artist IS DISTINCT FROM 'X' AND duration_s > 60``.
        columns: Names that it may use.
        read_tag: Answers ``tag('…')``; without it there is no such function.

    Returns:
        bool of shape (num_rows,).

    Raises:
        UsageError: It is no expression, names another column or function, is no condition, or takes too long.
    """
    numbered = tracks.select(list(columns)).append_column(_ROW, pa.array(np.arange(tracks.num_rows)))
    with duckdb.connect(":memory:", config=_SETTINGS) as connection:
        clock = Timer(MAX_SECONDS, connection.interrupt)
        clock.start()
        try:
            condition, labels = (where, []) if read_tag is None else _replace_tags(where)
            if refused := sorted(set(_find_refused(_parse(connection, condition)))):
                raise duckdb.NotImplementedException(f"{', '.join(refused)} may not be used")
            for number, label in enumerate(labels):
                assert read_tag is not None
                numbered = numbered.append_column(f"{_TAG_COLUMN}{number}", read_tag(label))
            selected = connection.from_arrow(numbered).filter(condition).project(_ROW).to_arrow_table()
        except duckdb.InterruptException:
            raise UsageError(f"expected a filter that takes under {MAX_SECONDS:g} s, found {where!r}") from None
        except duckdb.Error as error:
            said = str(error).split("\n")[0]
            raise UsageError(
                f"expected one SQL condition over {', '.join(columns)}, found {where!r}: {said}"
            ) from error
        finally:
            clock.cancel()
    mask = np.zeros(tracks.num_rows, np.bool_)
    mask[selected.column(_ROW).to_numpy()] = True
    return mask


def _parse(connection: duckdb.DuckDBPyConnection, where: str) -> Any:
    """Return the tree that DuckDB reads an expression as; nothing of it is carried out.

    Raises:
        duckdb.Error: It is no expression.
    """
    query = f"SELECT 1 WHERE ({where}\n)"
    ((answer,),) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    tree = json.loads(answer)
    if tree["error"]:
        raise duckdb.ParserException(tree["error_message"])
    return tree


def _replace_tags(where: str) -> tuple[str, list[str]]:
    """Put a column in place of every call of ``tag`` with one label; return the expression and the labels."""
    labels: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match["label"] is None:  # a text, a name or a remark
            return match[0]
        label = match["label"].replace("''", "'")
        if label not in labels:
            labels.append(label)
        return f"{_TAG_COLUMN}{labels.index(label)}"

    return _TAG_CALL.sub(replace, where), labels


def _find_refused(tree: Any) -> Iterator[str]:
    """Name what an expression may not hold."""
    if isinstance(tree, list):
        for item in tree:
            yield from _find_refused(item)
    elif isinstance(tree, dict):
        kind, function = tree.get("class"), tree.get("function_name")
        if kind is not None and kind not in _ALLOWED_CLASSES:
            yield str(kind).lower()
        elif kind == "FUNCTION" and function not in _ALLOWED_FUNCTIONS:
            yield str(function)
        for value in tree.values():
            yield from _find_refused(value)


def differs_from(tracks: pa.Table, position: int, column: SameColumn) -> npt.NDArray[np.bool_]:
    """Mark the tracks whose artist or album is not that of one of them.

    Raises:
        UsageError: The catalog does not know that one's.
    """
    value = tracks.column(column)[position]
    if not value.is_valid:
        track_id = tracks.column("track_id")[position].as_py()
        raise UsageError(f"the catalog knows no {column} of {track_id}; search without --exclude-same {column}")
    return np.asarray(pc.fill_null(pc.not_equal(tracks.column(column), value), True).to_numpy(), np.bool_)
