"""REST, on httpx: its requests, answers and transports. Its client would cost as much again for each call."""

from __future__ import annotations

import ssl
from typing import Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from .. import wire_json
from ..errors import (
    JobNotFoundError,
    OsqueueError,
    TransportConnectionError,
    TransportRequestError,
    error_from_wire,
    outcome_of_status,
)
from ..models import Model
from ..operations import AnyOperation, Operation
from . import CONNECT_TIMEOUT
from .connection_errors import WRONG_URL, no_answer, not_connected
from .http1 import Http1Transport
from .tls import CaFile, context_of
from .userinfo import without_userinfo

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NOT_FOUND: Final = 404
# For a transport of the user's: its own keeps to the same.
_TIMEOUTS: Final = {"timeout": httpx.Timeout(None, connect=CONNECT_TIMEOUT).as_dict()}


class RestTransport:
    """Calls a broker over REST. `http_transport` replaces the one of its own, for proxies and for tests.

    No time limit of its own but that of connecting: the client sets one around each call.
    """

    def __init__(
        self,
        base_url: str,
        *,
        ca_file: CaFile | None = None,
        http_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, authorization = without_userinfo(base_url)
        # Without TLS no certificates are read: that takes some 20 ms, in which the event loop stands still.
        tls = _trusted(ca_file) if self._url.startswith("https:") else None
        self._transport = http_transport or Http1Transport(httpx.URL(self._url), tls)
        self._headers = httpx.Headers(
            {"accept": "*/*", "accept-encoding": "gzip, deflate", "user-agent": "osqueue", **authorization}
        )
        self._json_headers = httpx.Headers({**self._headers, "content-type": "application/json"})
        self._urls: dict[str, httpx.URL] = {}
        self._is_closed = False

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `Transport.call`."""
        if self._is_closed:
            raise TransportConnectionError(
                f"{operation.name}: the transport is closed", outcome="not_applied"
            )
        path = operation.path.replace("{jobId}", _segment(getattr(request, "job_id", "")))
        try:
            response = await self._transport.handle_async_request(self._request(operation, path, request))
            try:
                body = await response.aread()
            finally:
                await response.aclose()
        except _NOT_SENT as error:
            raise not_connected(operation.name, self._url, error) from error
        except httpx.DecodingError as error:
            raise wire_json.malformed_answer(operation.name, str(error)) from error
        except httpx.TransportError as error:
            raise no_answer(operation.name, self._url, error) from error
        if response.is_success:
            return wire_json.decode_response(operation, body or b"{}")
        raise _refusal(operation, self._url, path, response)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._is_closed = True
        await self._transport.aclose()

    def _request(self, operation: AnyOperation, path: str, request: Model) -> httpx.Request:
        if operation.is_read:
            return httpx.Request(
                operation.http_method,
                self._url + path,
                params=msgspec.to_builtins(request) or None,
                headers=self._headers,
                extensions=_TIMEOUTS,
            )
        return httpx.Request(
            operation.http_method,
            self._url_of(operation, path),
            headers=self._json_headers,
            content=wire_json.encode(request),
            extensions=_TIMEOUTS,
        )

    def _url_of(self, operation: AnyOperation, path: str) -> httpx.URL:
        """Return the URL of a path; it is read only once where no job is named in it."""
        url = self._urls.get(path)
        if url is None:
            url = httpx.URL(self._url + path)
            if not operation.names_job:
                self._urls[path] = url
        return url


def _trusted(ca_file: CaFile | None) -> ssl.SSLContext:
    if ca_file is not None:
        return context_of(ca_file)
    # Those of httpx and the system's, as the other transports do.
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def _segment(job_id: str) -> str:
    # Dots, too: "." and ".." as they are would be taken for steps in the path.
    return quote(job_id, safe="").replace(".", "%2E")


def _refusal(operation: AnyOperation, base_url: str, path: str, response: httpx.Response) -> OsqueueError:
    status = response.status_code
    try:
        fields = msgspec.json.decode(response.content, type=dict[str, object])
        error = error_from_wire(fields, method=operation.name, path=path, status=status)
    except wire_json.UNREADABLE:
        error = TransportRequestError(
            f"{operation.name}: {base_url}{path} answered {status} without an error that can be read",
            method=operation.name,
            path=path,
            status=status,
            outcome=outcome_of_status(status),
        )
    if status == _NOT_FOUND and not isinstance(error, JobNotFoundError):
        error.args = (f"{error.message}; {WRONG_URL}",)
    return error
