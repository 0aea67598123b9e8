"""Storage URLs: one line that opens any backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from .backend import StorageBackend
from .errors import ConfigError
from .file import FileBackend
from .memory import MemoryBackend

_FORMS: Final = "memory:, memory:?latency=0.02, file:./data or file:/var/lib/osqueue"

Options = dict[str, str]


def open_storage(url: str) -> StorageBackend:
    """Open the backend that a URL names.

    `memory:` (option `latency`, seconds), `file:PATH`, relative to the current folder or absolute.
    Raises `ConfigError` that shows the right forms. What may be secret in a URL is never repeated.
    """
    parts = urlsplit(url)
    opener = _OPENERS.get(parts.scheme)
    if opener is None:
        what = (
            f"no storage has the scheme {parts.scheme!r}" if parts.scheme else "the storage URL has no scheme"
        )
        raise ConfigError(f"{what}; it should look like {_FORMS}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    storage = opener(parts.netloc, unquote(parts.path), options)
    if options:
        raise ConfigError(
            f"a {parts.scheme}: URL has no option {', '.join(sorted(options))}; it should look like {_FORMS}"
        )
    return storage


def _open_memory(host: str, path: str, options: Options) -> StorageBackend:
    if host or path:
        raise ConfigError(f"memory: names no place; it should look like {_FORMS}")
    latency = options.pop("latency", "0")
    try:
        seconds = float(latency)
    except ValueError:
        raise ConfigError(f"latency must be a number of seconds; it should look like {_FORMS}") from None
    return MemoryBackend(latency=seconds)


def _open_file(host: str, path: str, options: Options) -> StorageBackend:
    if host or not path:
        raise ConfigError(f"a file: URL needs a path and no host; it should look like {_FORMS}")
    return FileBackend(path)


_OPENERS: Final[dict[str, Callable[[str, str, Options], StorageBackend]]] = {
    "memory": _open_memory,
    "file": _open_file,
}
