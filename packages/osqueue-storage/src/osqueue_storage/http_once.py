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

PIECE: Final = 256 * 1024
"""Bytes of a body that are sent before other tasks get a turn."""

_LARGE: Final = 1024 * 1024
"""Bytes from which on a body is put together in a thread: bytes.join gives up the GIL for that much."""


class TooLate(Exception):
    """The answer did not come in time."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered: all of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def open_session(proxy: str | None, **options: Any) -> aiohttp.ClientSession:
    """Return a session for `exchange`; `options` are of `aiohttp.ClientSession`."""
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


async def exchange(
    session: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    headers: Mapping[str, str],
    data: bytes | AsyncIterator[memoryview] | None,
    seconds: float,
) -> Response:
    """Send one request, follow no redirect, and return the whole answer.

    `seconds`: for the request and the head of the answer; its body has as long again as its size allows. Raises
    `TooLate`, and what aiohttp raises.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with (
            limit,
            session.request(method, url, headers=headers, data=data, allow_redirects=False) as response,
        ):
            if response.content_length and (until := limit.when()) is not None:
                limit.reschedule(until + seconds_for(response.content_length, 0))
            return Response(response.status, response.headers, await _whole_body(response))
    except TimeoutError as error:
        if limit.expired():
            raise TooLate(f"no answer within {seconds:g} s") from error
        raise


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
