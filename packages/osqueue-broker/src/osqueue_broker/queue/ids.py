"""The ids of jobs: they begin with the time, so that those of one segment lie close together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_COUNTED: Final = 12
"""Hexadecimal digits at the end of an id that are counted up."""

_SPACE: Final = 16**_COUNTED


def time_ordered(wall_ms: int, random: str) -> str:
    """Return a UUID of version 7 (RFC 9562) with the random bits of one of version 4."""
    time = f"{wall_ms & 0xFFFFFFFFFFFF:012x}"
    return f"{time[:8]}-{time[8:]}-7{random[15:]}"


def numbered(first: str, count: int) -> Iterator[str]:
    """Yield so many ids from a UUID on, each one higher than the one before.

    Two first ids are not met by one another's followers: all other digits would have to be the same.
    """
    head, start = first[:-_COUNTED], int(first[-_COUNTED:], 16)
    for number in range(start, start + count):
        yield f"{head}{number % _SPACE:012x}"
