"""What a file says of itself: title, artist, album, genre, track number and year, from whatever tags it has.

FFmpeg's demuxers bring the names of ID3, Vorbis comments, MP4 atoms, ASF, APE, RIFF INFO and Matroska to one
spelling (libavformat/metadata.h); what they leave is the encoding of the two that have none, ID3v1 and RIFF INFO.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

import av

from pipeline.catalog.labels import read_track_number, read_year

MAX_TAG_CHARACTERS = 500
"""Longer values are cut: tags hold lyrics, base64 pictures and whole licences where nobody expects them."""

_BREAKS = ("Cc", "Zl", "Zp")  # control characters, and what ends lines and paragraphs


@dataclass(frozen=True)
class Tags:
    """A file's own description; None for what it does not say.

    Args:
        title: Title of the track.
        artist: Its artist.
        album: Its album.
        genre: Its genre; several as the file joins them.
        track_number: Its place on the album, from 1.
        year: Of its date.
    """

    title: str | None = None
    artist: str | None = None
    album: str | None = None
    genre: str | None = None
    track_number: int | None = None
    year: int | None = None


def read_tags(data: bytes) -> Tags:
    """Read the tags of an audio file.

    Args:
        data: The whole file.

    Returns:
        The tags; none of a file that FFmpeg cannot open.
    """
    try:
        # Bytes that are no UTF-8 come as lone surrogates, which say what they were.
        options = {"protocol_whitelist": ""}  # no file leads to others
        with av.open(
            io.BytesIO(data), "r", metadata_encoding="utf-8", metadata_errors="surrogateescape", options=options
        ) as container:
            streams = container.streams.audio
            return choose_tags({**(streams[0].metadata if streams else {}), **container.metadata})
    except (av.FFmpegError, ValueError, OSError):
        return Tags()


def choose_tags(metadata: Mapping[str, str]) -> Tags:
    """Choose ours among a demuxer's names and values.

    Args:
        metadata: Names in any case, values with bytes that are no UTF-8 as lone surrogates.
    """
    texts = {name.lower(): _clean(value) for name, value in metadata.items()}
    return Tags(
        texts.get("title"),
        texts.get("artist") or texts.get("album_artist"),
        texts.get("album"),
        texts.get("genre"),
        read_track_number(texts.get("track") or ""),
        read_year(texts.get("date") or texts.get("year") or ""),
    )


def _clean(value: str) -> str | None:
    """Return a value as one line of text of bounded length, None where nothing is left of it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raw = value.encode(errors="surrogateescape")
        # ID3v1 and RIFF INFO name no encoding; most were written as Windows-1252, and Latin-1 takes any byte.
        try:
            value = raw.decode("cp1252")
        except UnicodeDecodeError:
            value = raw.decode("latin-1")
    text = "".join(" " if unicodedata.category(c) in _BREAKS else c for c in value).strip()
    if len(text) > MAX_TAG_CHARACTERS:
        text = f"{text[: MAX_TAG_CHARACTERS - 1]}…"
    return text or None
