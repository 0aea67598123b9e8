"""HTTP for `GCSBackend`: one request with an access token, sent once, answered whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from .errors import Outcome, StorageBackendError
from .http_once import PIECE, NotSent, OnceClient, Response, TooLate, Unreached, pieces
from .patience import seconds_for

if TYPE_CHECKING:
    from .gcs_auth import Tokens


@dataclass(frozen=True, slots=True)
class Upload:
    """An object's metadata (JSON) and body, for one multipart request."""

    metadata: bytes
    body: bytes


class GCSConnection:
    """The connections to one endpoint. `tokens` is None to send requests without credentials.

    Nothing is sent twice, and no redirect is followed: a redirect is an answer like any other.
    """

    def __init__(self, endpoint_url: str, proxy: str | None, tokens: Tokens | None, timeout: float) -> None:
        self._endpoint = URL(endpoint_url)
        self._client = OnceClient(proxy)
        self._tokens = tokens
        self._timeout = timeout

    async def request(
        self, method: str, target: str, *, doing: str, outcome: Outcome, upload: Upload | None = None
    ) -> Response:
        """Send one request for `target` (path and query, encoded) and return the answer.

        Raises `StorageBackendError` that begins with `doing`, with `outcome` if there was no whole answer to a
        request that may have been sent.
        """
        headers = await self._tokens.headers(self._timeout) if self._tokens else {}
        url = URL(f"{str(self._endpoint).rstrip('/')}{target}", encoded=True)
        answer = await self._exchange(method, url, headers, upload, doing, outcome)
        if answer.status == 401 and self._tokens:
            self._tokens.refuse(headers)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
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
    ) -> Response:
        more, data = _multipart(upload) if upload else ({}, None)
        seconds = seconds_for(len(upload.body) if upload else 0, self._timeout)
        try:
            return await self._client.exchange(
                method, url, headers={**headers, **more}, data=data, seconds=seconds
            )
        except NotSent as error:
            raise StorageBackendError(f"{doing}: {error}", outcome="not_applied") from error
        except aiohttp.ClientResponseError as error:
            # It keeps the headers of the request, and the token in them: it must not go along.
            reason, cause = f"no valid answer ({error.message})", None
        except aiohttp.InvalidURL as error:
            # Nothing but a proxy's URL can be that wrong here, and that may hold a password.
            reason, cause = type(error).__name__, None
        except (TooLate, Unreached, aiohttp.ClientError, OSError) as error:
            reason, cause = str(error) or type(error).__name__, error
        raise StorageBackendError(f"{doing}: {reason}", outcome=outcome) from cause


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
    return headers, b"".join(parts) if size <= PIECE else pieces(*parts)
