"""What all pages have around and in them: the document, its tiles, its tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")


def assemble_page(title: str, header: str, main: str, footer: str) -> str:
    """Return a whole HTML document that opens without a network and runs no script.

    Args:
        title: As text.
        header: Markup, as the next two.
        main: Below it.
        footer: At the end.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text()}</style></head><body>"
        f"<header>{header}</header><main>{main}</main><footer>{footer}</footer></body></html>"
    )


def draw_tiles(tiles: Sequence[tuple[str, str]]) -> str:
    """Draw figures with what they are below them."""
    drawn = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span></div>' for figure, what in tiles
    )
    return f'<div class="tiles">{drawn}</div>'


def draw_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a table of texts; the first cell of a row names it."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
