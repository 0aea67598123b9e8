"""REST, on httpx."""

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
    TransportRequestError,
    error_from_wire,
    outcome_of_status,
)
from ..models import Model
from ..operations import AnyOperation, Operation
from . import CONNECT_TIMEOUT
from .connection_errors import WRONG_URL, no_answer, not_connected, shown
from .tls import CaFile, context_of

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NOT_FOUND: Final = 404
# Kept shorter than any broker keeps them (uvicorn 5 s, ours 75 s), so that a request seldom meets a dying one.
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=1000, keepalive_expiry=4.0)


class RestTransport:
    """Calls a broker over REST. `http_transport` replaces httpx's own, for proxies and for tests.

    No time limit of its own but that of connecting: the client sets one around each call.
    """

    def __init__(
        self,
        base_url: str,
        *,
        ca_file: CaFile | None = None,
        http_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = base_url
        self._client = httpx.AsyncClient(
            base_url=base_url,
            transport=http_transport,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=_LIMITS,
            trust_env=False,
            # Without TLS none is read: that takes some 20 ms, in which the event loop stands still.
            verify=_trusted(ca_file) if base_url.startswith("https:") else False,
        )

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `Transport.call`."""
        fields = msgspec.to_builtins(request) if operation.is_read else {}
        path = operation.path.replace("{jobId}", _segment(getattr(request, "job_id", "")))
        try:
            response = await self._client.request(
                operation.http_method,
                path,
                params=fields or None,
                content=None if operation.is_read else wire_json.encode(request),
                headers=None if operation.is_read else {"content-type": "application/json"},
            )
        except _NOT_SENT as error:
            raise not_connected(operation.name, self._url, error) from error
        except httpx.DecodingError as error:
            raise wire_json.malformed_answer(operation.name, str(error)) from error
        except httpx.TransportError as error:
            raise no_answer(operation.name, self._url, error) from error
        if response.is_success:
            return wire_json.decode_response(operation, response.content or b"{}")
        raise _refusal(operation, shown(self._url), path, response)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._client.aclose()


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
