"""REST, on httpx."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec

from .. import wire_json
from ..errors import OsqueueError, TransportConnectionError, TransportRequestError, error_from_wire
from ..models import Model
from ..operations import Operation

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)


class RestTransport:
    """Calls a broker over REST. `http_transport` replaces httpx's own, for proxies and for tests.

    No time limit of its own: the client sets one around each call.
    """

    def __init__(self, base_url: str, *, http_transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=base_url, transport=http_transport, timeout=None, limits=_LIMITS, trust_env=False
        )

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `Transport.call`."""
        fields = msgspec.to_builtins(request) if operation.is_read else {}
        path = operation.path.replace("{jobId}", quote(getattr(request, "job_id", ""), safe=""))
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
        except httpx.TransportError as error:
            raise TransportConnectionError(_lost(operation, error), outcome="unknown") from error
        if response.is_success:
            return wire_json.decode_response(operation, response.content or b"{}")
        raise _refusal(operation.http_method, path, response)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._client.aclose()


def _lost(operation: Operation[Req, Res], error: Exception) -> str:
    return f"{operation.name}: no answer from the broker: {str(error) or type(error).__name__}"


def _refusal(method: str, path: str, response: httpx.Response) -> OsqueueError:
    try:
        fields = msgspec.json.decode(response.content, type=dict[str, object])
    except msgspec.DecodeError:
        return TransportRequestError(
            f"{method} {path}: the broker answered {response.status_code} without an error that can be read",
            method=method,
            path=path,
            status=response.status_code,
        )
    return error_from_wire(fields, method=method, path=path, status=response.status_code)
