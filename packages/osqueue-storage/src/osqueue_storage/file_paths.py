"""Object keys to file names and back: injective, and never outside the root."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

LOCK_NAME: Final = ".osqueue.lock"
TEMP_PREFIX: Final = ".osqueue.tmp."

_LONGEST_NAME: Final = 200
_EMPTY_PART: Final = "%"
_FOLDER_MARK: Final = "%"
"""Ends the name of a folder, so that the keys `a` and `a/b` can both exist. No other name ends with it."""


def path_of(root: Path, key: str) -> Path:
    """Return the file of an object. Each part of the key is one folder, the last one the file.

    Raises `ValueError` for an empty key and for a part that is too long for a file name.
    """
    if not key:
        raise ValueError("a key must not be empty")
    *folders, name = (_encode(part) for part in key.split("/"))
    return root.joinpath(*(folder + _FOLDER_MARK for folder in folders), name)


def key_of(root: Path, path: Path) -> str | None:
    """Return the key of a file below the root, or None for a file of the backend's own."""
    if path.name == LOCK_NAME or path.name.startswith(TEMP_PREFIX):
        return None
    *folders, name = path.relative_to(root).parts
    return "/".join(
        _decode(part) for part in (*(folder.removesuffix(_FOLDER_MARK) for folder in folders), name)
    )


def _encode(part: str) -> str:
    name = quote(part, safe="") or _EMPTY_PART
    if name.startswith("."):  # quote leaves dots alone: no part may be "..", nor hide among our own files
        name = "%2E" + name[1:]
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f"a part of the key takes {len(name)} bytes as a file name, more than {_LONGEST_NAME}"
        )
    return name


def _decode(name: str) -> str:
    return "" if name == _EMPTY_PART else unquote(name)
