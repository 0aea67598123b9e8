"""REST, on httpx."""

from __future__ import annotations

import ssl
from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec

from .. import wire_json
from ..errors import (
    OsqueueError,
    TransportConnectionError,
    TransportRequestError,
    error_from_wire,
    outcome_of_status,
)
from ..models import Model
from ..operations import AnyOperation, Operation
from . import CONNECT_TIMEOUT

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
# Kept shorter than any broker keeps them (uvicorn 5 s, ours 75 s), so that a request seldom meets a dying one.
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=1000, keepalive_expiry=4.0)


class RestTransport:
    """Calls a broker over REST. `http_transport` replaces httpx's own, for proxies and for tests.

    No time limit of its own but that of connecting: the client sets one around each call.
    """

    def __init__(self, base_url: str, *, http_transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=base_url,
            transport=http_transport,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=_LIMITS,
            trust_env=False,
            verify=_certificates() if base_url.startswith("https:") else True,
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
            raise TransportConnectionError(_lost(operation, error), outcome="not_applied") from error
        except httpx.DecodingError as error:
            raise wire_json.malformed_answer(operation.name, str(error)) from error
        except httpx.TransportError as error:
            raise TransportConnectionError(_lost(operation, error), outcome="unknown") from error
        if response.is_success:
            return wire_json.decode_response(operation, response.content or b"{}")
        raise _refusal(operation.http_method, path, response)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._client.aclose()


def _certificates() -> ssl.SSLContext:
    # Those of httpx and the system's, as the other transports do.
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def _segment(job_id: str) -> str:
    # Dots, too: "." and ".." as they are would be taken for steps in the path.
    return quote(job_id, safe="").replace(".", "%2E")


def _lost(operation: AnyOperation, error: Exception) -> str:
    return f"{operation.name}: no answer from the broker: {str(error) or type(error).__name__}"


def _refusal(method: str, path: str, response: httpx.Response) -> OsqueueError:
    try:
        fields = msgspec.json.decode(response.content, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return TransportRequestError(
            f"{method} {path}: the broker answered {response.status_code} without an error that can be read",
            method=method,
            path=path,
            status=response.status_code,
            outcome=outcome_of_status(response.status_code),
        )
    return error_from_wire(fields, method=method, path=path, status=response.status_code)
