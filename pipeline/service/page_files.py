"""The page's own files over HTTP; none of them holds data."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

PAGE_FOLDER = Path(__file__).with_name("page")

router = APIRouter(include_in_schema=False)


@router.get("/")
def get_page() -> FileResponse:
    """Return the page."""
    return _send_page("index.html")


@router.get("/docs")
def get_docs() -> FileResponse:
    """Return a page that lays out ``/openapi.json``."""
    return _send_page("docs.html")


@router.get("/page/{name}")
def get_page_file(name: str) -> FileResponse:
    """Return a file of the page."""
    if name not in {path.name for path in PAGE_FOLDER.iterdir()}:
        raise HTTPException(404, "no such file")
    return _send_page(name)


def _send_page(name: str) -> FileResponse:
    media_type = "text/javascript" if name.endswith(".js") else None
    return FileResponse(PAGE_FOLDER / name, media_type=media_type, headers={"cache-control": "no-cache"})
