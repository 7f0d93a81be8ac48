"""Amounts as people write them."""

from __future__ import annotations

from datetime import UTC, datetime


def say_time(seconds: float) -> str:
    """Write a span of time as people do."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def say_bytes(size_bytes: float) -> str:
    """Write a number of bytes in decimal units."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size_bytes) >= size:
            return (
                f"{size_bytes / size:.3g} {unit}"
                if size_bytes < 1000 * size
                else f"{size_bytes / size:,.0f} {unit}"
            )
    return f"{size_bytes:.0f} bytes"


def say_number(number: int, one: str, many: str | None = None) -> str:
    """Write how many there are of something: 1 track, 2,000 tracks.

    Args:
        number: How many.
        one: What each is called.
        many: What several are called; by itself, with an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def say_date(time: str) -> str:
    """Write a moment, given as ISO 8601 with its offset, as a date and a time of day in UTC."""
    moment = datetime.fromisoformat(time).astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
