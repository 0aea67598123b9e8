"""Why there is no connection, in words: each kind of error that aiohttp has for it."""

from __future__ import annotations

import socket
from unittest.mock import sentinel

import aiohttp
import pytest

from osqueue_storage.unreached import why_not_reached

CHECK = ": check endpoint_url, and that the store runs"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            aiohttp.ClientConnectorError(sentinel.key, ConnectionRefusedError(111, "('h', 1)")),
            f"connection refused{CHECK}",
        ),
        (
            aiohttp.ClientConnectorError(sentinel.key, OSError(113, "No route to host")),
            f"no connection (No route to host){CHECK}",
        ),
        (
            aiohttp.ClientConnectorDNSError(sentinel.key, socket.gaierror(-2, "Name or service not known")),
            f"the host has no address{CHECK}",
        ),
        (aiohttp.ConnectionTimeoutError("to http://SECRET"), f"no connection within 3 s{CHECK}"),
        (
            aiohttp.ClientProxyConnectionError(sentinel.key, ConnectionRefusedError(111, "('h', 1)")),
            "the proxy is not reached (connection refused): check HTTPS_PROXY and HTTP_PROXY",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_missing_connection_says_what_to_check(error: aiohttp.ClientConnectorError, told: str) -> None:
    assert why_not_reached(error) == told
