"""HTTP for `AzureBackend`: one signed request, sent once, answered whole or not at all.

The only module here that knows `aiohttp`, which comes with the extra `azure`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from .azure_auth import Request, Signer
from .errors import Outcome, StorageBackendError
from .patience import CONNECT_TIMEOUT, seconds_for

API_VERSION: Final = "2023-11-03"

_PIECE: Final = 256 * 1024
"""Bytes of a body that are sent before other tasks get a turn."""

_LARGE: Final = 1024 * 1024
"""Bytes from which on a body is put together in a thread: bytes.join gives up the GIL for that much."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What Azure answered, all of it. `code` and `etag` are empty if it did not say."""

    status: int
    code: str
    etag: str
    body: bytes


class AzureConnection:
    """The connections to one account.

    Nothing is sent twice, and no redirect is followed: a redirect is an answer like any other.
    """

    def __init__(self, endpoint_url: str, signer: Signer, timeout: float) -> None:
        parts = urlsplit(endpoint_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._base_path = parts.path
        self._signer = signer
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def send(self, request: Request, *, doing: str, outcome: Outcome) -> Answer:
        """Sign a request for a path of the account, send it and return the answer, whatever that is.

        Raises `StorageBackendError` that begins with `doing`: with `outcome` if there was no whole answer to a
        request that may have been sent.
        """
        if self._closed:
            raise StorageBackendError(f"{doing}: the backend is closed", outcome="not_applied")
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": API_VERSION, **request.headers}
        path = f"{self._base_path}{request.path}"
        signed = Request(request.method, path, request.query, headers, request.body)
        headers |= await self._signer.headers(signed)
        answer = await self._exchange(signed, headers, doing, outcome)
        if answer.status == 401:
            self._signer.forget()
        return answer

    async def aclose(self) -> None:
        """Close the connections. Safe to call twice."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._signer.aclose()

    async def _exchange(
        self, request: Request, headers: dict[str, str], doing: str, outcome: Outcome
    ) -> Answer:
        secret = self._signer.secret_query
        query = "&".join(part for part in (urlencode(request.query, quote_via=quote), secret) if part)
        url = URL(f"{self._origin}{request.path}{'?' if query else ''}{query}", encoded=True)
        if request.method == "PUT":
            headers["content-length"] = str(len(request.body))
        seconds = seconds_for(len(request.body), self._timeout)
        try:
            async with (
                asyncio.timeout(seconds) as limit,
                self._opened().request(
                    request.method, url, headers=headers, data=_data(request.body), allow_redirects=False
                ) as response,
            ):
                if response.content_length and (until := limit.when()) is not None:
                    limit.reschedule(until + seconds_for(response.content_length, 0))
                code, etag = (response.headers.get(name, "") for name in ("x-ms-error-code", "ETag"))
                return Answer(response.status, code, etag, await _whole_body(response))
        except (aiohttp.ClientError, OSError) as error:
            # Some of these errors repeat the URL, and with it a SAS token; some keep the headers of the request.
            if limit.expired():
                reason = f"no answer within {seconds:g} s"
            elif secret or isinstance(error, aiohttp.ClientResponseError):
                reason = type(error).__name__
            else:
                reason = str(error) or type(error).__name__
            is_safe = not secret and not isinstance(error, aiohttp.ClientResponseError)
            failure = StorageBackendError(f"{doing}: {reason}", outcome=outcome)
            raise failure from (error if is_safe else None)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": "osqueue"},
                skip_auto_headers=("Content-Type",),
                proxy=_proxy_for(self._origin),
            )
            # aiohttp sends a PUT again when a connection breaks, and what had landed would then be told as a
            # conflict. There is no public way to forbid it (aiohttp#10790); a test holds it to that.
            self._session._retry_connection = False
        return self._session


def _proxy_for(origin: str) -> str | None:
    """Return the proxy that the environment names for a URL.

    `trust_env` of aiohttp would do that too, but it also takes a password from ~/.netrc, and refuses to send
    an authorization beside it.
    """
    parts = urlsplit(origin)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _data(body: bytes) -> bytes | AsyncIterator[memoryview] | None:
    if not body:
        return None
    return body if len(body) <= _PIECE else _pieces(memoryview(body))


async def _pieces(body: memoryview) -> AsyncIterator[memoryview]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]
        await asyncio.sleep(0)  # a fast link takes all of it without ever letting others have a turn


async def _whole_body(response: aiohttp.ClientResponse) -> bytes:
    pieces = [piece async for piece in response.content.iter_any()]
    if sum(len(piece) for piece in pieces) < _LARGE:
        return b"".join(pieces)
    return await asyncio.to_thread(b"".join, pieces)
