"""HTTP for `AzureBackend`: one signed request, sent once, answered whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import formatdate
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from yarl import URL

from .azure_auth import Request, Signer
from .errors import Outcome, StorageBackendError
from .http_once import PIECE, NotSent, OnceClient, TooLate, Unreached, pieces
from .patience import seconds_for

API_VERSION: Final = "2023-11-03"


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

    def __init__(self, endpoint_url: str, proxy: str | None, signer: Signer, timeout: float) -> None:
        parts = urlsplit(endpoint_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._base_path = parts.path
        self._signer = signer
        self._timeout = timeout
        self._client = OnceClient(proxy, skip_auto_headers=("Content-Type",))

    async def send(self, request: Request, *, doing: str, outcome: Outcome) -> Answer:
        """Sign a request for a path of the account, send it and return the answer, whatever that is.

        Raises `StorageBackendError` that begins with `doing`: with `outcome` if there was no whole answer to a
        request that may have been sent.
        """
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
        await self._client.aclose()
        await self._signer.aclose()

    async def _exchange(
        self, request: Request, headers: dict[str, str], doing: str, outcome: Outcome
    ) -> Answer:
        secret = self._signer.secret_query
        query = "&".join(part for part in (urlencode(request.query, quote_via=quote), secret) if part)
        url = URL(f"{self._origin}{request.path}{'?' if query else ''}{query}", encoded=True)
        if request.method == "PUT":
            headers["content-length"] = str(len(request.body))
        try:
            response = await self._client.exchange(
                request.method,
                url,
                headers=headers,
                data=(request.body or None) if len(request.body) <= PIECE else pieces(request.body),
                seconds=seconds_for(len(request.body), self._timeout),
            )
        except NotSent as error:
            raise StorageBackendError(f"{doing}: {error}", outcome="not_applied") from error
        except (TooLate, Unreached) as error:
            raise StorageBackendError(f"{doing}: {error}", outcome=outcome) from (None if secret else error)
        except (aiohttp.ClientError, OSError) as error:
            # Some of these errors repeat the URL, and with it a SAS token; some keep the headers of the request;
            # and what calls a URL invalid here shows that of a proxy, and with it a password.
            is_safe = not secret and not isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL)
            reason = (str(error) if is_safe else "") or type(error).__name__
            failure = StorageBackendError(f"{doing}: {reason}", outcome=outcome)
            raise failure from (error if is_safe else None)
        code, etag = (response.headers.get(name, "") for name in ("x-ms-error-code", "ETag"))
        return Answer(response.status, code, etag, response.body)
