"""REST: one endpoint for each operation of the table, and the few pages that are not operations.

Endpoints are ASGI applications and not functions of a request: what Starlette wraps around a function costs
more than all the rest of a request's way.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from osqueue_client import wire_json
from osqueue_client.errors import (
    BrokerProtocolError,
    EngineStateError,
    OsqueueError,
    QueueFullError,
    RequestTooLargeError,
    wire_fields,
)
from osqueue_client.models import Model
from osqueue_client.operations import OPERATIONS, AnyOperation, Operation

from .openapi import openapi_document

logger = logging.getLogger("osqueue.broker.rest")

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)
HeaderPairs: TypeAlias = Iterable[tuple[bytes, bytes]]

_JSON: Final = b"application/json"
_QUERY_FIELDS: Final = 64


class Service(Protocol):
    """What every transport of the broker calls."""

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """Do what is asked. Raises `OsqueueError`. Cancelling it is safe at any point."""
        ...

    def document(self) -> bytes:
        """Return the committed queue document."""
        ...

    def throttle_stats(self) -> dict[str, object]:
        """Return the counters of a throttled storage."""
        ...


def endpoints(service: Service, max_request_bytes: int) -> dict[str, ASGIApp]:
    """Return the application of each path, the hot ones first. A path may hold `{jobId}`."""
    apps: dict[str, dict[str, ASGIApp]] = {}
    for operation in OPERATIONS:
        kind = _Query if operation.is_read else _Body
        apps.setdefault(operation.path, {})[operation.http_method] = kind(
            operation, service, max_request_bytes
        )
    openapi = msgspec.json.encode(openapi_document())
    pages: dict[str, Callable[[], bytes]] = {
        "/healthz": lambda: b'{"status":"ok"}',
        "/state": service.document,
        "/v1/throttle-stats": lambda: msgspec.json.encode(service.throttle_stats()),
        "/openapi.json": lambda: openapi,
    }
    apps |= {path: {"GET": _Page(render)} for path, render in pages.items()}
    return {path: _Methods(by_method) for path, by_method in apps.items()}


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a path that is not there."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before the handshake: HTTP 403
    else:
        await send_error(send, BrokerProtocolError(f"there is nothing at {scope['path']}"), 404)


async def send_error(
    send: Send, error: OsqueueError, status: int | None = None, headers: HeaderPairs = ()
) -> None:
    """Send an error as the answer that clients of the protocol expect."""
    headers = [*headers]
    if isinstance(error, QueueFullError) and error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(math.ceil(error.retry_after), 1)))
    await send_json(send, msgspec.json.encode(wire_fields(error)), status or error.http_status, headers)


async def send_json(send: Send, body: bytes, status: int = 200, headers: HeaderPairs = ()) -> None:
    """Send JSON text as the whole answer."""
    head = [(b"content-type", _JSON), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def unexpected(error: Exception) -> EngineStateError:
    """Log a fault of ours, and return what may be told of it."""
    logger.error("request_failed", exc_info=error)
    return EngineStateError("the broker failed at this request; its log says why", outcome="unknown")


class _Methods:
    """One path: hands a request to the application of its method."""

    def __init__(self, by_method: dict[str, ASGIApp]) -> None:
        self._by_method = dict(by_method)
        if "GET" in by_method:
            self._by_method["HEAD"] = by_method["GET"]  # the server leaves out the body
        self._allow = ", ".join(sorted(self._by_method)).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._by_method.get(scope["method"])
        if app is not None:
            await app(scope, receive, send)
            return
        error = BrokerProtocolError(f"{scope['path']} does not take {scope['method']}")
        await send_error(send, error, 405, [(b"allow", self._allow)])


class _Page:
    """What is not an operation: JSON text that stands ready."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = self._render()
        except OsqueueError as error:
            await send_error(send, error)
        except Exception as error:  # noqa: BLE001  # a fault of ours is answered, too
            await send_error(send, unexpected(error))
        else:
            await send_json(send, body)


class _ClientLeft(Exception):
    """The connection ended before the request did: there is nobody to answer."""


class _NotJsonError(BrokerProtocolError):
    """What was sent is not JSON by its own account. On the wire it is like any malformed request."""

    http_status = 415

    @property
    def tag(self) -> str:
        return BrokerProtocolError.__name__


class _Endpoint(ABC):
    """One operation; a subclass says where its request stands."""

    def __init__(self, operation: AnyOperation, service: Service, limit: int) -> None:
        self._operation = operation
        self._service = service
        self._limit = limit

    @abstractmethod
    async def _request(self, scope: Scope, receive: Receive) -> Model: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            request = await self._request(scope, receive)
            answer = await self._service.call(self._operation, request)
            body = wire_json.encode(answer) if self._operation.success_status == 200 else b""
        except OsqueueError as error:
            await send_error(send, error)
        except _ClientLeft:
            return
        except Exception as error:  # noqa: BLE001  # a fault of ours is answered, and the connection kept
            await send_error(send, unexpected(error))
        else:
            if body:
                await send_json(send, body)
            else:
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body", "body": b""})


class _Query(_Endpoint):
    """An operation whose request stands in the query string."""

    async def _request(self, scope: Scope, receive: Receive) -> Model:
        fields: dict[str, object] = {}
        if query := scope["query_string"]:
            try:
                fields.update(
                    parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_QUERY_FIELDS)
                )
            except ValueError as error:
                name = self._operation.name
                raise BrokerProtocolError(f"{name}: malformed query string: {error}", method=name) from None
        return wire_json.request_from_fields(self._operation, fields, strict=False)


class _Body(_Endpoint):
    """An operation whose request stands in the body, its job's id in the path."""

    async def _request(self, scope: Scope, receive: Receive) -> Model:
        operation = self._operation
        self._check(scope["headers"])
        body = await _read(receive, self._limit)
        if not body:
            # The body may be left out where the path says everything.
            if operation.request.__struct_fields__ != ("job_id",):
                raise BrokerProtocolError(f"{operation.name}: the request has no body", method=operation.name)
            body = b"{}"
        request = wire_json.decode_request(operation, body)
        return (
            wire_json.with_job_id(request, scope["path_params"]["job_id"]) if operation.names_job else request
        )

    def _check(self, headers: HeaderPairs) -> None:
        """Refuse by its headers what need not be read.

        A body without a content type is taken for JSON, for people with curl. From a web page it is not: a page
        of any origin may send such a body without asking first, and only that asking (the CORS preflight, which
        JSON needs) keeps foreign pages out.
        """
        kind: bytes | None = None
        is_from_page = False
        for name, value in headers:
            if name == b"content-type":
                kind = value
            elif name == b"content-length" and value.isdigit() and int(value) > self._limit:
                raise _too_large(self._limit)
            elif name == b"origin":
                is_from_page = True
        if kind == _JSON or (kind is None and not is_from_page):
            return
        if kind is None or kind.partition(b";")[0].strip().lower() != _JSON:
            given = "none" if kind is None else kind.decode("latin-1")
            raise _NotJsonError(
                f"{self._operation.name}: the content-type must be application/json, not {given}",
                method=self._operation.name,
            )


async def _read(receive: Receive, limit: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    pieces: list[bytes] = []
    size = len(body)
    while message["type"] == "http.request":
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join((*pieces, body)) if pieces else body
        pieces.append(body)
        message = await receive()
        body = message.get("body", b"")
        size += len(body)
    raise _ClientLeft


def _too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"the request is larger than {limit:,} bytes", outcome="not_applied")
