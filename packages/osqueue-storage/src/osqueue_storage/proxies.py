"""The proxy that the environment names."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .endpoints import is_loopback, is_place
from .errors import ConfigError


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL; none for one of this machine.

    `trust_env` of aiohttp would do that too, but it also takes a password from ~/.netrc, and refuses to send
    an authorization beside it. Raises `ConfigError` if what is named is no proxy; its value, which may hold a
    password, is not shown.
    """
    parts = urlsplit(url)
    # A proxy cannot reach the loopback of this machine, and would read the access token that goes there over http.
    if is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return None
    proxy = getproxies().get(parts.scheme)
    if proxy and not is_place(proxy, may_have_user=True):
        raise ConfigError(f"{parts.scheme}_proxy in the environment must look like http://host:3128")
    return proxy or None
