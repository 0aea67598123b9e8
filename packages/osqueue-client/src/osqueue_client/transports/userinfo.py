"""The user and the password in a broker's URL."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit


def without_userinfo(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without the user and the password, and the headers that tell them instead.

    Without a colon all of it is the user, and the password is empty: `https://TOKEN@host`.
    """
    parts = urlsplit(url)
    userinfo, at, netloc = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    name, _, password = userinfo.partition(":")
    token = b64encode(b"%b:%b" % (unquote_to_bytes(name), unquote_to_bytes(password))).decode()
    return urlunsplit(parts._replace(netloc=netloc)), {"authorization": f"Basic {token}"}
