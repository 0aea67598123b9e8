"""HTTP for `GCSBackend`: one request, sent once, answered whole or not at all.

The only module that knows `aiohttp`, which comes with the extra `gcs`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from .errors import ConfigError, Outcome, StorageBackendError
from .patience import CONNECT_TIMEOUT, seconds_for

if TYPE_CHECKING:
    from .gcs_auth import Tokens

_PIECE: Final = 256 * 1024
"""Bytes of a body that are sent before other tasks get a turn."""

_LARGE: Final = 1024 * 1024
"""Bytes from which on a body is put together in a thread: bytes.join gives up the GIL for that much."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered: all of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """An object's metadata (JSON) and body, for one multipart request."""

    metadata: bytes
    body: bytes


class GCSConnection:
    """The connections to one endpoint. `tokens` is None to send requests without credentials.

    Nothing is sent twice, and no redirect is followed: a redirect is an answer like any other.
    """

    def __init__(self, endpoint_url: str, tokens: Tokens | None, timeout: float) -> None:
        self._endpoint = URL(endpoint_url)
        self._proxy = _proxy_for(self._endpoint)
        self._tokens = tokens
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def request(
        self, method: str, target: str, *, doing: str, outcome: Outcome, upload: Upload | None = None
    ) -> Answer:
        """Send one request for `target` (path and query, encoded) and return the answer.

        Raises `StorageBackendError` that begins with `doing`, with `outcome` if there was no whole answer to a
        request that may have been sent.
        """
        if self._closed:
            raise StorageBackendError(f"{doing}: the backend is closed", outcome="not_applied")
        headers = await self._tokens.headers(self._timeout) if self._tokens else {}
        url = URL(f"{str(self._endpoint).rstrip('/')}{target}", encoded=True)
        answer = await self._exchange(method, url, headers, upload, doing, outcome)
        if answer.status == 401 and self._tokens:
            self._tokens.refuse(headers)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
        if self._tokens is not None:
            self._tokens.close()

    async def _exchange(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        upload: Upload | None,
        doing: str,
        outcome: Outcome,
    ) -> Answer:
        more, data = _multipart(upload) if upload else ({}, None)
        size = len(upload.body) if upload else 0
        seconds = seconds_for(size, self._timeout)
        try:
            async with (
                asyncio.timeout(seconds) as limit,
                self._opened().request(
                    method, url, headers={**headers, **more}, data=data, allow_redirects=False
                ) as response,
            ):
                if response.content_length and (until := limit.when()) is not None:
                    limit.reschedule(until + seconds_for(response.content_length, 0))
                return Answer(response.status, response.headers, await _whole_body(response))
        except aiohttp.ClientResponseError as error:
            # It keeps the headers of the request, and the token in them: it must not go along.
            reason, cause = f"no valid answer ({error.message})", None
        except (aiohttp.ClientError, OSError) as error:
            late = f"no answer within {seconds:g} s"
            reason, cause = (late if limit.expired() else str(error) or type(error).__name__), error
        raise StorageBackendError(f"{doing}: {reason}", outcome=outcome) from cause

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": "osqueue"},
                proxy=self._proxy,
            )
            # aiohttp sends GET and DELETE again when a connection breaks, though not POST. A test holds it to
            # both.
            self._session._retry_connection = False
        return self._session


def _proxy_for(url: URL) -> str | None:
    """Return the proxy that the environment names for a URL. Raises `ConfigError` if it is none.

    `trust_env` of aiohttp would do that too, but it also takes a password from ~/.netrc, and refuses to send
    an access token beside it.
    """
    proxy = None if url.host is None or proxy_bypass(url.host) else getproxies().get(url.scheme)
    if proxy and not proxy.startswith(("http://", "https://")):
        raise ConfigError(f"{url.scheme}_proxy in the environment must be like http://host:3128")
    return proxy or None


async def _whole_body(response: aiohttp.ClientResponse) -> bytes:
    pieces = [piece async for piece in response.content.iter_any()]
    if sum(len(piece) for piece in pieces) < _LARGE:
        return b"".join(pieces)
    return await asyncio.to_thread(b"".join, pieces)


def _multipart(upload: Upload) -> tuple[dict[str, str], bytes | AsyncIterator[memoryview]]:
    """Return headers and body of a multipart/related request."""
    boundary = secrets.token_hex(16)  # 128 bits that nobody knew before: no body holds them
    start = (
        f"--{boundary}\r\nContent-Type: application/json\r\n\r\n".encode()
        + upload.metadata
        + f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
    )
    parts = (start, upload.body, f"\r\n--{boundary}--\r\n".encode())
    size = sum(len(part) for part in parts)
    headers = {"Content-Type": f"multipart/related; boundary={boundary}", "Content-Length": str(size)}
    return headers, b"".join(parts) if size <= _PIECE else _pieces(parts)


async def _pieces(parts: Sequence[bytes]) -> AsyncIterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _PIECE):
            yield view[start : start + _PIECE]
            await asyncio.sleep(0)  # a fast link takes all of it without ever letting others have a turn
