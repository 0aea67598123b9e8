"""REST: one route for each operation of the table, and the few pages that are not operations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

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
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class Service(Protocol):
    """What every transport of the broker calls."""

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """Do what is asked. Raises `OsqueueError`."""
        ...

    def document(self) -> bytes:
        """Return the committed queue document."""
        ...

    def throttle_stats(self) -> dict[str, object]:
        """Return the counters of a throttled storage."""
        ...


def routes(service: Service, max_request_bytes: int) -> list[Route]:
    """Return the broker's routes, the hot ones first."""

    async def health(request: Request) -> Response:
        return _json(b'{"status":"ok"}')

    async def state(request: Request) -> Response:
        return _json(service.document())

    async def throttle_stats(request: Request) -> Response:
        return _json(msgspec.json.encode(service.throttle_stats()))

    document = msgspec.json.encode(openapi_document())

    async def openapi(request: Request) -> Response:
        return _json(document)

    pages = {
        "/healthz": health,
        "/state": state,
        "/v1/throttle-stats": throttle_stats,
        "/openapi.json": openapi,
    }
    return [
        *(_route(operation, service, max_request_bytes) for operation in OPERATIONS),
        *(Route(path, page, methods=["GET"]) for path, page in pages.items()),
    ]


def error_response(error: OsqueueError, status: int | None = None) -> Response:
    """Return an error as the answer that clients of the protocol expect."""
    response = _json(msgspec.json.encode(wire_fields(error)), status or error.http_status)
    if isinstance(error, QueueFullError) and error.retry_after is not None:
        response.headers["retry-after"] = str(max(round(error.retry_after), 1))
    return response


def unexpected(error: Exception) -> EngineStateError:
    """Log a fault of ours, and return what may be told of it."""
    logger.error("request_failed", exc_info=error)
    return EngineStateError("the broker failed at this request; its log says why")


async def not_found(request: Request, exc: Exception) -> Response:
    """Answer a path that is not there."""
    return error_response(BrokerProtocolError(f"there is nothing at {request.url.path}"), 404)


async def method_not_allowed(request: Request, exc: Exception) -> Response:
    """Answer a method that the path does not have."""
    response = error_response(BrokerProtocolError(f"{request.url.path} does not take {request.method}"), 405)
    response.headers.update(getattr(exc, "headers", None) or {})
    return response


async def failed(request: Request, exc: Exception) -> Response:
    """Answer a fault of ours."""
    return error_response(unexpected(exc))


def _route(operation: AnyOperation, service: Service, limit: int) -> Route:
    path = operation.path.replace("{jobId}", "{job_id:path}")  # a foreign id may hold a slash
    return Route(path, _endpoint(operation, service, limit), methods=[operation.http_method])


def _endpoint(operation: AnyOperation, service: Service, limit: int) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        try:
            if operation.is_read:
                model = wire_json.request_from_fields(operation, dict(request.query_params), strict=False)
            else:
                model = await _read(operation, request, limit)
            answer = await service.call(operation, model)
        except OsqueueError as error:
            return error_response(error)
        if operation.success_status == 204:
            return Response(status_code=204)
        return _json(wire_json.encode(answer))

    return endpoint


async def _read(operation: AnyOperation, request: Request, limit: int) -> Model:
    job_id = request.path_params.get("job_id")
    body = await _body(request, limit)
    if not body and not (job_id and operation.permission == "manage"):
        raise BrokerProtocolError(f"{operation.name}: the request has no body", method=operation.name)
    model = wire_json.decode_request(operation, body or b"{}")
    return model if job_id is None else wire_json.with_job_id(model, job_id)


async def _body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            pieces.append(piece)
    except ClientDisconnect:
        raise BrokerProtocolError("the connection ended before the request did") from None
    return b"".join(pieces)


def _too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"the request is larger than {limit:,} bytes", outcome="not_applied")


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")
