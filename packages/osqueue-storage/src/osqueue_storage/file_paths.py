"""Object keys to file names and back: injective, and never outside the root.

`queue.json` is `queue.json`; `team/queue.json` is `team%/queue.json`. What is not a small letter, a digit or
one of `_.-~` is percent-encoded, capitals too: `a` and `A` stay apart on a disk that ignores case.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

LOCK_NAME: Final = ".osqueue.lock"
TEMP_PREFIX: Final = ".osqueue.tmp."

LONGEST_NAME: Final = 250
"""Bytes of one part of a key, encoded; file systems allow 255 with the mark of a folder."""

_EMPTY_PART: Final = "%"
_FOLDER_MARK: Final = "%"
"""Ends the name of a folder, so that the keys `a` and `a/b` can both exist. An encoded name never ends so."""

# A percent escape is left whole; its hex digits are capitals, but no plain capital remains beside them.
_CAPITAL: Final = re.compile(r"%..|[A-Z]")


def path_of(root: Path, key: str) -> Path:
    """Return the file of an object. Each part of the key is one folder, the last one the file.

    Raises `ValueError` for an empty key, a part that is too long for a file name, and a lone surrogate.
    """
    if not key:
        raise ValueError("a key must not be empty")
    *folders, name = (_encode(part) for part in key.split("/"))
    return root.joinpath(*(folder + _FOLDER_MARK for folder in folders), name)


def key_of(root: Path, path: Path) -> str | None:
    """Return the key of a file below the root, or None for a file that is no object's."""
    *folders, name = path.relative_to(root).parts
    parts = (*(folder.removesuffix(_FOLDER_MARK) for folder in folders), name)
    try:
        key = "/".join("" if part == _EMPTY_PART else unquote(part, errors="strict") for part in parts)
        return key if path_of(root, key) == path else None
    except ValueError:  # not a name that path_of gives: the lock, a temporary file, or somebody else's
        return None


def _encode(part: str) -> str:
    name = _CAPITAL.sub(_escape_capital, quote(part, safe="")) or _EMPTY_PART
    if name.startswith("."):  # no part may be "..", nor hide among our own files
        name = "%2E" + name[1:]
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a part of it takes {len(name)} bytes as a file name, more than {LONGEST_NAME}")
    return name


def _escape_capital(match: re.Match[str]) -> str:
    found = match.group()
    return found if found.startswith("%") else f"%{ord(found):02X}"
