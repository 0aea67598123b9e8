"""HTTP for the backends with a client of our own: a request is sent once, and answered whole or not at all.

The only module that makes an `aiohttp` session: it comes with the extras `gcs` and `azure`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from yarl import URL

from .patience import CONNECT_TIMEOUT, seconds_for
from .unreached import why_not_reached, why_not_trusted

PIECE: Final = 256 * 1024
"""Bytes of a body that are sent before other tasks get a turn."""

_LARGE: Final = 1024 * 1024
"""Bytes from which on a body is put together in a thread: bytes.join gives up the GIL for that much."""


class TooLate(Exception):
    """The answer did not come in time."""


class Unreached(Exception):
    """There is no connection."""


class NotSent(Exception):
    """The request was surely not sent: the client is closed, or whom it speaks to cannot be trusted."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered: all of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class OnceClient:
    """Connections that are opened at the first request, and not again once they are closed.

    `options` are of `aiohttp.ClientSession`.
    """

    def __init__(self, proxy: str | None, **options: Any) -> None:
        self._proxy = proxy
        self._options = options
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def exchange(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        data: bytes | AsyncIterator[memoryview] | None,
        seconds: float,
    ) -> Response:
        """Send one request, follow no redirect, and return the whole answer.

        `seconds`: for the request and the head of the answer; its body has as long again as its size allows.
        Raises `NotSent`, `TooLate`, `Unreached`, and what aiohttp raises.
        """
        limit = asyncio.timeout(seconds)
        try:
            async with (
                limit,
                self._opened().request(
                    method, url, headers=headers, data=data, allow_redirects=False
                ) as response,
            ):
                if response.content_length and (until := limit.when()) is not None:
                    limit.reschedule(until + seconds_for(response.content_length, 0))
                return Response(response.status, response.headers, await _whole_body(response))
        except TimeoutError as error:
            if limit.expired():
                raise TooLate(f"no answer within {seconds:g} s") from error
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise Unreached(why_not_reached(error)) from None
            raise
        except aiohttp.ClientSSLError as error:  # that of a handshake
            raise NotSent(why_not_trusted(error, "SSL_CERT_FILE")) from error
        except aiohttp.ClientConnectorError as error:
            raise Unreached(why_not_reached(error)) from error.os_error

    async def aclose(self) -> None:
        """Close the connections. Safe to call twice, and while a request waits for its access token."""
        self._is_closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise NotSent("the backend is closed")
        if self._session is None:
            self._session = _session(self._proxy, self._options)
        return self._session


def _session(proxy: str | None, options: Mapping[str, Any]) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "osqueue"},
        proxy=proxy,
        **options,
    )
    # aiohttp sends a GET, PUT or DELETE again when a connection breaks, and a write that had landed would then be
    # told as a conflict. There is no public way to forbid it (aiohttp#10790); tests hold it to that.
    session._retry_connection = False
    return session


async def pieces(*parts: bytes) -> AsyncIterator[memoryview]:
    """Yield the parts in pieces, and give others a turn after each: a fast link takes all of them at once."""
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]
            await asyncio.sleep(0)


async def _whole_body(response: aiohttp.ClientResponse) -> bytes:
    arrived = [piece async for piece in response.content.iter_any()]
    if sum(len(piece) for piece in arrived) < _LARGE:
        return b"".join(arrived)
    return await asyncio.to_thread(b"".join, arrived)
