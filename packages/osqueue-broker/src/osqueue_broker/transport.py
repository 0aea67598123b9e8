"""What the transports share: the service that they call, and the form of their answers and refusals."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

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
from osqueue_client.operations import Operation

from .readiness import Readiness

logger = logging.getLogger("osqueue.broker.transport")

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)
HeaderPairs: TypeAlias = Iterable[tuple[bytes, bytes]]

JSON: Final = b"application/json"

HAS_LEFT: Final = "osqueue.has_left"
"""The entry of a scope with a function that tells whether the connection has ended; our own listener sets it."""

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class Service(Protocol):
    """What every transport of the broker calls."""

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """Do what is asked. Raises `OsqueueError`. Cancelling it is safe at any point."""
        ...

    def undelivered(self, operation: Operation[Req, Res], request: Req, answer: Res, /) -> None:
        """Hear that an answer of `call` has reached nobody: its connection had ended before it was sent."""
        ...

    async def document(self) -> bytes:
        """Return the committed queue document. Raises `OsqueueError`."""
        ...

    def readiness(self) -> Readiness:
        """Return whether requests should be sent to this broker."""
        ...

    def throttle_stats(self) -> dict[str, object]:
        """Return the counters of a throttled storage. Raises `OsqueueError`."""
        ...


def has_left(scope: Scope) -> bool:
    """Whether the connection is known to have ended. Of a server that is not ours, that is never known."""
    ask: Callable[[], bool] | None = scope.get(HAS_LEFT)
    return ask is not None and ask()


async def call_while_connected(
    service: Service, operation: Operation[Req, Res], request: Req, receive: Receive
) -> Res:
    """Call the service; where the request may wait for long, end that when its HTTP client hangs up.

    Raises `ClientLeft` then. Any other request is done once it was read, whether or not the client stays. An answer
    that comes together with the hang-up, or with a cancellation, is reported as undelivered.
    """
    if not waits(request):
        return await service.call(operation, request)
    loop = asyncio.get_running_loop()
    call = loop.create_task(service.call(operation, request))  # both are owned here
    leaving = loop.create_task(_wait_until_left(receive))
    has_client = False
    try:
        await asyncio.wait((call, leaving), return_when=asyncio.FIRST_COMPLETED)
        has_client = not leaving.done()
    finally:
        call.cancel()
        leaving.cancel()
        await asyncio.wait((call, leaving))
        if not has_client and not call.cancelled() and call.exception() is None:
            service.undelivered(operation, request, call.result())
    if not has_client:
        raise ClientLeft
    return call.result()


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def waits(request: Model) -> bool:
    """Whether the answer to a request may be long in coming, for another reason than the store."""
    return bool(getattr(request, "wait", None))


class ClientLeft(Exception):
    """The connection ended before the request did: there is nobody to answer."""


class HttpRefusal(BrokerProtocolError):
    """A malformed request that HTTP has a status of its own for. On the wire it is like any other."""

    def __init__(self, message: str, *, method: str | None = None, headers: HeaderPairs = ()) -> None:
        super().__init__(message, method=method)
        self.headers = headers

    @property
    def tag(self) -> str:
        """That of any malformed request."""
        return BrokerProtocolError.__name__


class NotThere(HttpRefusal):
    """There is nothing at this path."""

    http_status = 404
    connect_code = "unimplemented"


class NotTaken(HttpRefusal):
    """The path does not take this method; the header `allow` names those that it takes."""

    http_status = 405


class TooSlow(HttpRefusal):
    """The request has not arrived in time; its connection is closed."""

    http_status = 408


class UnknownMedia(HttpRefusal):
    """The body is of a type or in an encoding that is not taken."""

    http_status = 415


class NeedsUpgrade(HttpRefusal):
    """The path speaks WebSocket only."""

    http_status = 426


class HeadTooLarge(HttpRefusal):
    """The request line and the headers are too large; the connection is closed."""

    http_status = 431


def too_large(limit: int, what: str = "request") -> RequestTooLargeError:
    """Return the refusal of a request over the limit."""
    return RequestTooLargeError(f"the {what} is larger than {limit:,} bytes", outcome="not_applied")


def unexpected(error: Exception) -> EngineStateError:
    """Log a fault of ours, and return what may be told of it."""
    logger.error("request_failed", exc_info=error)
    return EngineStateError("the broker failed at this request; its log says why", outcome="unknown")


def decode_request(operation: Operation[Req, Model], body: bytes) -> Req:
    """Return the request that stands in a JSON body, as `wire_json` does, and name a lone surrogate.

    Raises `BrokerProtocolError`.
    """
    try:
        return wire_json.decode_request(operation, body)
    except BrokerProtocolError as error:
        if error.field is None:
            refuse_lone_surrogate(body, operation.name)
        raise


def refuse_lone_surrogate(body: bytes, method: str, *, within: str = "") -> None:
    r"""Raise `BrokerProtocolError` if a JSON text that cannot be read has half a surrogate pair (`"\ud800"`) in it.

    JSON's grammar allows it, but it stands for no character: there is no UTF-8 for it. The readers in use only say that
    the input is truncated. `within` is what the field's name has before it in this text.
    """
    if _SURROGATE.search(body) is None:
        return
    try:
        place = _lone_surrogate(json.loads(body))
    except (ValueError, RecursionError):
        return
    if place is not None:
        place = place.removeprefix(within)
        what = f"field '{place}'" if place else "the text"
        raise BrokerProtocolError(
            f"{method}: {what} holds a lone surrogate escape, which is not text",
            field=place or None,
            method=method,
        ) from None


def _lone_surrogate(value: object) -> str | None:
    """Return where such a string stands ("error.message"), None when nowhere."""
    match value:
        case str():
            return None if value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value) else ""
        case dict():
            for name, item in value.items():
                if _lone_surrogate(name) is not None:
                    return ""
                if (inner := _lone_surrogate(item)) is not None:
                    return f"{name}.{inner}" if inner else name
        case list():
            for item in value:
                if (inner := _lone_surrogate(item)) is not None:
                    return inner
    return None


def error_headers(error: OsqueueError) -> list[tuple[bytes, bytes]]:
    """Return the headers that belong to an error over HTTP."""
    if isinstance(error, QueueFullError) and error.retry_after is not None:
        return [(b"retry-after", b"%d" % max(math.ceil(error.retry_after), 1))]
    return [*error.headers] if isinstance(error, HttpRefusal) else []


async def send_error(send: Send, error: OsqueueError, *, prefix: str = "") -> None:
    """Send an error as the answer that clients of the protocol expect."""
    await send_json(
        send, msgspec.json.encode(wire_fields(error)), error.http_status, error_headers(error), prefix=prefix
    )


async def send_json(
    send: Send, body: bytes, status: int = 200, headers: HeaderPairs = (), *, prefix: str = ""
) -> None:
    """Send JSON text as the whole answer."""
    head = [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": prefix + "http.response.start", "status": status, "headers": head})
    await send({"type": prefix + "http.response.body", "body": body})


async def refuse_handshake(scope: Scope, send: Send, error: OsqueueError, *, close_code: int) -> None:
    """Answer a WebSocket handshake with an error over HTTP, or with 403 where the server can say no more."""
    if "websocket.http.response" in scope.get("extensions", {}):
        await send_error(send, error, prefix="websocket.")
    else:
        await send({"type": "websocket.close", "code": close_code})
