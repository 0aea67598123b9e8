"""Storage URLs: one line that opens any backend."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .backend import StorageBackend
from .errors import ConfigError
from .file import FileBackend
from .memory import MemoryBackend


@dataclass(frozen=True, slots=True)
class StorageScheme:
    """How the URLs of one scheme look, and what opens them."""

    forms: str
    options: frozenset[str]
    open: Callable[[SplitResult, Mapping[str, str]], StorageBackend]
    """Takes the URL and its options. Raises `ValueError` with what is wrong, without the value that is wrong."""


def open_storage(url: str) -> StorageBackend:
    """Open the backend that a URL names.

    * `memory:`, with the option `latency` in seconds: `memory:?latency=0.02`
    * `file:PATH`, relative to the current folder or absolute: `file:./data`, `file:/abs`, `file:///abs`;
      a `?`, `#` or `%` in the path is written as `%3F`, `%23` or `%25`

    Nothing is read or written yet. Raises `ConfigError` that shows the right forms; what may be secret in the
    URL (user and password, the values of options) is never in it.
    """
    try:
        parts = _split(url)
        scheme = SCHEMES.get(parts.scheme)
        if scheme is None:
            raise ValueError("it begins with none of " + ", ".join(f"{name}:" for name in SCHEMES))
        if parts.fragment:
            raise ValueError("a # is written as %23")
        return scheme.open(parts, _options(parts.query, scheme.options))
    except ValueError as error:
        forms = " or ".join(row.forms for row in SCHEMES.values())
        raise ConfigError(f"the storage URL {redacted(url)} is not right: {error}. Write {forms}") from None


def redacted(url: str) -> str:
    """Return a URL as it may be shown: without user and password, values of options, and fragment."""
    if "@" in url:  # nobody can tell how far a password reaches that holds / or ? unescaped
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url)
        return (scheme.group() if scheme else "") + "***"
    place, question_mark, query = url.partition("#")[0].partition("?")
    options = (f"{name}=***" if equals else "***" for name, equals, _ in
               (option.partition("=") for option in query.split("&")))  # fmt: skip
    return place + question_mark + ("&".join(options) if query else "")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # its message may repeat the password
        raise ValueError("it cannot be taken apart") from None


def _options(query: str, known: frozenset[str]) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if not options.keys() <= known:
        raise ValueError(
            f"it has an option other than {', '.join(known)}" if known else "it takes no options"
        )
    if len(options) < len(pairs):
        raise ValueError("it has an option twice")
    return options


def _open_memory(url: SplitResult, options: Mapping[str, str]) -> StorageBackend:
    if url.netloc or url.path:
        raise ValueError("memory: names no place")
    try:
        latency = float(options.get("latency", "0"))
    except ValueError:
        latency = math.nan
    if not (math.isfinite(latency) and latency >= 0):
        raise ValueError("latency must be 0 or more seconds")
    return MemoryBackend(latency=latency)


def _open_file(url: SplitResult, options: Mapping[str, str]) -> StorageBackend:
    if url.netloc:
        raise ValueError("what follows file:// must begin with a /; a relative path follows file: at once")
    if not url.path:
        raise ValueError("it has no path")
    return FileBackend(unquote(url.path))


SCHEMES: Final[Mapping[str, StorageScheme]] = {
    "memory": StorageScheme("memory: or memory:?latency=0.02", frozenset({"latency"}), _open_memory),
    "file": StorageScheme("file:./data or file:/var/lib/osqueue", frozenset(), _open_file),
}
