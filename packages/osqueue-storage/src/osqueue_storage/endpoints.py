"""Where a store is, and where in it: one rule for `endpoint_url` and `prefix` of every remote backend."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from .errors import ConfigError

_SCHEMES: Final = ("http", "https")


def checked_endpoint(url: str, *, example: str) -> str:
    """Return an endpoint, without a slash at its end.

    Raises `ConfigError` that shows the `example` if it is none. The URL is not repeated: it may hold a password.
    """
    if not is_place(url) or "?" in url:
        raise ConfigError(f"endpoint_url must look like {example}, without user, password, query and #")
    return url.rstrip("/")


def checked_prefix(prefix: str) -> str:
    """Return what is put before each key, as it is. Raises `ConfigError` if no store could take it."""
    try:
        prefix.encode()
    except UnicodeEncodeError:
        raise ConfigError("prefix must be Unicode text") from None
    if not {".", ".."}.isdisjoint(prefix.split("/")[:-1]):
        # Proxies, libraries and stores take such parts out of a path, and with them the bucket's name.
        raise ConfigError(f"prefix must have no part . or .., as {prefix!r} has")
    return prefix


def is_place(url: str, *, may_have_user: bool = False) -> bool:
    """Tell whether a URL names a server that speaks HTTP."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # else it fails when the host is looked up
        is_sound = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    is_text = url.isprintable() and not any(char in url for char in " #\\")
    return is_sound and is_text and (may_have_user or "@" not in url)


def is_loopback(url: str) -> bool:
    """Tell whether a URL stays on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def keeps_secrets(url: str) -> bool:
    """Tell whether nobody on the way can read what is sent to a URL."""
    return urlsplit(url).scheme == "https" or is_loopback(url)
