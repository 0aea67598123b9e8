"""The user and the password in a broker's URL."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import unquote, urlsplit, urlunsplit


def without_userinfo(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without the user and the password, and the headers that tell them instead."""
    parts = urlsplit(url)
    userinfo, at, netloc = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    token = b64encode(unquote(userinfo).encode()).decode()
    return urlunsplit(parts._replace(netloc=netloc)), {"authorization": f"Basic {token}"}
