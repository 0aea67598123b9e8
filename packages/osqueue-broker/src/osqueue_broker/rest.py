"""REST: one endpoint for each operation of the table, and the few pages that are not operations.

Endpoints are ASGI applications and not functions of a request: what Starlette wraps around a function costs
more than all the rest of a request's way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from osqueue_client import wire_json
from osqueue_client.errors import BrokerProtocolError, OsqueueError
from osqueue_client.models import Model
from osqueue_client.operations import OPERATIONS, AnyOperation

from .openapi import PAGES, READINESS, openapi_document
from .transport import (
    JSON,
    ClientLeft,
    HeaderPairs,
    NeedsUpgrade,
    NotTaken,
    NotThere,
    Service,
    UnknownMedia,
    call_while_connected,
    decode_request,
    has_left,
    refuse_handshake,
    send_error,
    send_json,
    too_large,
    unexpected,
)

WEBSOCKET_PATH: Final = "/v1/ws"
_QUERY_FIELDS: Final = 64


def endpoints(service: Service, max_request_bytes: int) -> dict[str, ASGIApp]:
    """Return the application of each path. A path may hold `{jobId}`."""
    apps: dict[str, dict[str, ASGIApp]] = {}
    for operation in OPERATIONS:
        kind = _Query if operation.is_read else _Body
        apps.setdefault(operation.path, {})[operation.http_method] = kind(
            operation, service, max_request_bytes
        )
    document = openapi_document()

    async def health(scope: Scope) -> bytes:
        return b'{"status":"ok"}'

    async def state(scope: Scope) -> bytes:
        return await service.document()

    async def throttle_stats(scope: Scope) -> bytes:
        return msgspec.json.encode(service.throttle_stats())

    async def openapi(scope: Scope) -> bytes:
        server = {"url": scope.get("root_path") or "/"}  # where the application is mounted
        return msgspec.json.encode(document | {"servers": [server]})

    async def ready(scope: Scope, receive: Receive, send: Send) -> None:
        readiness = service.readiness()
        await send_json(send, msgspec.json.encode(readiness), 200 if readiness.is_ready else 503)

    renderers = {"health": health, "state": state, "throttleStats": throttle_stats}
    apps |= {page.path: {"GET": _Page(renderers[page.name])} for page in PAGES}
    apps[READINESS.path] = {"GET": ready}
    apps["/openapi.json"] = {"GET": _Page(openapi)}
    apps[WEBSOCKET_PATH] = {"GET": _needs_upgrade}
    return {path: _Methods(by_method) for path, by_method in apps.items()}


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a path that is not there."""
    error = NotThere(f"there is nothing at {scope['path']}")
    if scope["type"] == "websocket":
        await refuse_handshake(scope, send, error, close_code=1008)
    else:
        await send_error(send, error)


async def _needs_upgrade(scope: Scope, receive: Receive, send: Send) -> None:
    headers = ((b"upgrade", b"websocket"), (b"connection", b"upgrade"))
    await send_error(send, NeedsUpgrade(f"{scope['path']} speaks WebSocket only", headers=headers))


class _Methods:
    """One path: hands a request to the application of its method."""

    def __init__(self, by_method: dict[str, ASGIApp]) -> None:
        head = {"HEAD": by_method["GET"]} if "GET" in by_method else {}  # the server leaves out the body
        self._by_method = by_method | head
        self._headers = [(b"allow", ", ".join(sorted(self._by_method)).encode())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._by_method.get(scope["method"])
        if app is not None:
            await app(scope, receive, send)
            return
        error = NotTaken(f"{scope['path']} does not take {scope['method']}", headers=self._headers)
        await send_error(send, error)


class _Page:
    """What is not an operation: JSON text, made anew for each request."""

    def __init__(self, render: Callable[[Scope], Awaitable[bytes]]) -> None:
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._render(scope)
        except OsqueueError as error:
            await send_error(send, error)
        except Exception as error:  # noqa: BLE001  # a fault of ours is answered, too
            await send_error(send, unexpected(error))
        else:
            await send_json(send, body)


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
            answer = await call_while_connected(self._service, self._operation, request, receive)
            body = wire_json.encode(answer) if self._operation.success_status == 200 else b""
        except OsqueueError as error:
            await send_error(send, error)
        except ClientLeft:
            return
        except Exception as error:  # noqa: BLE001  # a fault of ours is answered, and the connection kept
            await send_error(send, unexpected(error))
        else:
            if has_left(scope):
                self._service.undelivered(self._operation, request, answer)
                return
            try:
                if body:
                    await send_json(send, body)
                else:
                    await send({"type": "http.response.start", "status": 204, "headers": []})
                    await send({"type": "http.response.body", "body": b""})
            except BaseException:
                self._service.undelivered(self._operation, request, answer)
                raise


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

    def __init__(self, operation: AnyOperation, service: Service, limit: int) -> None:
        super().__init__(operation, service, limit)
        fields = msgspec.structs.fields(operation.request)
        self._path_says_all = operation.names_job and not any(field.required for field in fields)

    async def _request(self, scope: Scope, receive: Receive) -> Model:
        operation = self._operation
        self._check(scope["headers"])
        body = await _read(receive, self._limit)
        if not body:
            # The body may be left out where the path says everything.
            if not self._path_says_all:
                raise BrokerProtocolError(f"{operation.name}: the request has no body", method=operation.name)
            body = b"{}"
        request = decode_request(operation, body)
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
                raise too_large(self._limit)
            elif name == b"content-encoding" and value.lower() != b"identity":
                raise UnknownMedia(
                    f"{self._operation.name}: the content-encoding must be identity, not {_told(value)}:"
                    " REST takes no compressed body",
                    method=self._operation.name,
                    headers=[(b"accept-encoding", b"identity")],
                )
            elif name == b"origin":
                is_from_page = True
        if kind == JSON or (kind is None and not is_from_page):
            return
        if kind is None or kind.partition(b";")[0].strip().lower() != JSON:
            raise UnknownMedia(
                f"{self._operation.name}: the content-type must be application/json, not {_told(kind)}",
                method=self._operation.name,
            )


async def _read(receive: Receive, limit: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    pieces: list[bytes] = []
    size = len(body)
    while message["type"] == "http.request":
        if size > limit:
            raise too_large(limit)
        if not message.get("more_body", False):
            return b"".join((*pieces, body)) if pieces else body
        pieces.append(body)
        message = await receive()
        body = message.get("body", b"")
        size += len(body)
    raise ClientLeft


def _told(value: bytes | None) -> str:
    return "none" if value is None else value.decode("latin-1") or "empty"
