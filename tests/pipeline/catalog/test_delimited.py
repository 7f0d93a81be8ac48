"""Delimited text against Python's own csv module: read exactly, or refused in one line that says where."""

import csv
import io
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.catalog.delimited import MAX_CELL_CHARACTERS, read_delimited
from pipeline.errors import CatalogError

HOSTILE = st.text(st.sampled_from("ab\"'\n\r\t,;é \u2028\x1f"), max_size=8)


def read(text: str | bytes, delimiter: str = ",") -> list[list[str]]:
    data = text if isinstance(text, bytes) else text.encode()
    table = read_delimited(data, delimiter, "list")
    return [list(row.values()) for row in table.to_pylist()]


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(HOSTILE, min_size=width, max_size=width), min_size=1, max_size=5)
    ),
    st.sampled_from([",", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_python_writes_is_read_as_it_was_or_refused(
    rows: list[list[str]], delimiter: str, quoting: Any
) -> None:
    buffer = io.StringIO()
    names = [f"column{number}" for number in range(len(rows[0]))]
    csv.writer(buffer, delimiter=delimiter, quoting=quoting).writerows([names, *rows])
    try:
        found = read(buffer.getvalue(), delimiter)
    except CatalogError:
        # Only what may as well be several rows is refused of a file that was written correctly.
        assert any(delimiter in value and set(value) & set("\r\n") for row in rows for value in row)
        return
    assert found == rows


@given(st.lists(st.lists(st.text(st.sampled_from('ab" é,'), min_size=1), min_size=3, max_size=3), min_size=1))
def test_tabs_without_quoting_lose_no_row(rows: list[list[str]]) -> None:
    text = "a\tb\tc\n" + "".join("\t".join(row) + "\n" for row in rows)
    try:
        balanced = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))[1:]
    except csv.Error:
        balanced = rows
    assume(len(balanced) == len(rows))
    assert len(read(text, "\t")) == len(rows)
    assert read(text, "\t") in (rows, balanced)


def test_a_tab_and_a_line_break_between_marks_are_refused_and_not_taken_for_rows() -> None:
    with pytest.raises(CatalogError, match=r"one value over several rows in row 1 \(line 2\)"):
        read('uri\ttitle\n"\t\r"\t\n', "\t")


def test_titles_that_begin_with_a_quotation_mark_are_whole_rows_between_tabs() -> None:
    text = 'uri\ttitle\na\tOne\nb\t"Heroes\nc\tTwo\nd\t"12 inch\ne\tThree\n'
    assert read(text, "\t") == [["a", "One"], ["b", '"Heroes'], ["c", "Two"], ["d", '"12 inch'], ["e", "Three"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('uri,title\na,One\nb,"Heroes\nc,Two\n', r"open at the end.* row 2, which begins in line 3"),
        ('uri,title\na,One\nb,"Heroes\nc,12 inch"\n', r"one value over several rows in row 2 \(line 3\)"),
        ('title,uri\nOne,a\n"Heroes,b\nTwo,c\n12 inch",d\n', r"one value over several rows in row 2"),
        ('uri,title\na,"One" again\n', r"row 1 \(line 2\).*exactly"),
        ("uri,title\na,One\nb,Two,too\n", r"expected 2 columns.*found 3 in row 2 \(line 3\)"),
        ("uri,title\na,One\nb\n", r"expected 2 columns.*found 1 in row 2"),
        (f"uri,title\na,{'x' * (MAX_CELL_CHARACTERS + 1)}\n", r"at most 131,072 characters.*row 1"),
        ("", "empty file"),
        ("uri\nx\n".encode("utf-16"), "found UTF-16; save it as UTF-8"),
        ("uri\nx\n".encode("utf-16-le"), "found UTF-16 or binary data"),
        ("uri\nx\n".encode("utf-32"), "found UTF-32"),
        ("uri,title\nx,y\nx,café\n".encode("latin1"), r"0xE9 in line 3"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_with_its_place(text: str | bytes, message: str) -> None:
    with pytest.raises(CatalogError, match=message) as raised:
        read(text)
    assert "\n" not in str(raised.value)
    assert "list" in str(raised.value)


def test_a_value_of_several_lines_that_can_be_nothing_else_is_read() -> None:
    assert read('a,b,c\n1,"Hello, ""World""\nagain",3\n') == [["1", 'Hello, "World"\nagain', "3"]]


def test_the_first_of_two_columns_of_one_name_counts() -> None:
    assert read("a,a,b\n1,2,3\n") == [["1", "3"]]
