"""WebSocket: requests in JSON frames, many at a time on one connection, each answered under its id."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec
from msgspec import Raw, Struct
from starlette.types import Message, Receive, Scope, Send

from osqueue_client import wire_json
from osqueue_client.errors import BrokerProtocolError, OsqueueError, RequestTooLargeError, wire_fields
from osqueue_client.operations import OPERATIONS

from .rest import Service, unexpected

logger = logging.getLogger("osqueue.broker.websocket")

MAX_IN_FLIGHT: Final = 1024
"""Requests of one connection that are worked on at a time; further ones are not read yet."""

MAX_UNSENT: Final = 1024 * 1024
"""Bytes of answers that a peer may leave unread before its further requests wait."""

_NULL: Final = Raw(b"null")
_BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}


class _Request(Struct):
    id: Raw = _NULL
    method: str = ""
    params: Raw = _NULL


class _Answer(Struct):
    id: Raw
    ok: bool
    result: Raw


class _Refusal(Struct):
    id: Raw
    ok: bool
    error: dict[str, str | float]


_decoder = msgspec.json.Decoder(_Request)
_id_decoder = msgspec.json.Decoder(dict[str, Raw])
_encoder = msgspec.json.Encoder()


class WebSocketEndpoint:
    """The ASGI application of `/v1/ws`, and the sessions that are open on it."""

    def __init__(self, service: Service, max_request_bytes: int) -> None:
        self._service = service
        self._limit = max_request_bytes
        self._sessions: set[_Session] = set()
        self._is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_draining:
            await _turn_away(scope, send)
            return
        session = _Session(self._service, self._limit, receive, send)
        self._sessions.add(session)
        try:
            await session.run()
        finally:
            self._sessions.discard(session)

    async def drain(self) -> None:
        """Read no more, answer what was read, and close every connection with 1012. New ones are turned away."""
        self._is_draining = True
        await asyncio.gather(*(session.drain() for session in list(self._sessions)))


class _Session:
    """One connection. What was read is done whether or not the peer stays for the answer, as over HTTP."""

    def __init__(self, service: Service, limit: int, receive: Receive, send: Send) -> None:
        self._service = service
        self._limit = limit
        self._receive = receive
        self._send = send
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._unsent = 0
        self._is_read = asyncio.Event()
        """Clear while the peer leaves so many answers unread that no more are made."""
        self._is_read.set()
        self._is_draining = False
        self._reader: asyncio.Task[None] | None = None
        self._has_ended = asyncio.Event()

    async def run(self) -> None:
        try:
            message = await self._receive()
            if message["type"] != "websocket.connect":
                return
            await self._tell({"type": "websocket.accept"})
            async with asyncio.TaskGroup() as group:
                self._reader = group.create_task(self._read(group))
                if self._is_draining:
                    self._reader.cancel()
            if self._reader.cancelled():
                await self._tell({"type": "websocket.close", "code": 1012, "reason": "the broker stops"})
        finally:
            self._has_ended.set()

    async def drain(self) -> None:
        self._is_draining = True
        if self._reader is not None:
            self._reader.cancel()
        await self._has_ended.wait()

    async def _tell(self, message: Message) -> None:
        try:
            await self._send(message)
        except (
            OSError,
            RuntimeError,
        ) as error:  # the peer has gone, or is going: its server knows both ways to say so
            logger.debug("peer_gone", extra={"reason": repr(error)})

    async def _read(self, group: asyncio.TaskGroup) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            body = message.get("bytes") or b"" if text is None else text.encode()
            await self._room.acquire()
            group.create_task(self._answer(body))

    async def _answer(self, body: bytes) -> None:
        id = _NULL
        try:
            await self._is_read.wait()
            if len(body) > self._limit:
                raise RequestTooLargeError(
                    f"the message is larger than {self._limit:,} bytes", outcome="not_applied"
                )
            wire_json.check_text(body, "the message")
            request = _parse(body)
            id = request.id
            result = await self._call(request)
            answer = _encoder.encode(_Answer(id, True, Raw(result)))
        except OsqueueError as error:
            answer = _refusal(_id_of(body) if id is _NULL else id, error)
        except Exception as error:  # noqa: BLE001  # a fault of ours ends neither the connection nor its neighbours
            answer = _refusal(id, unexpected(error))
        finally:
            self._room.release()
        self._unsent += len(answer)
        if self._unsent > MAX_UNSENT:
            self._is_read.clear()
        await self._tell({"type": "websocket.send", "text": answer.decode()})
        self._unsent -= len(answer)
        if self._unsent <= MAX_UNSENT:
            self._is_read.set()

    async def _call(self, request: _Request) -> bytes:
        operation = _BY_NAME.get(request.method)
        if operation is None:
            what = f"unknown method {request.method!r}" if request.method else "field 'method' is missing"
            raise BrokerProtocolError(what, field="method", method=request.method)
        params = bytes(request.params)
        model = wire_json.decode_request(operation, b"{}" if params == b"null" else params)
        answer = await self._service.call(operation, wire_json.require_job_id(operation, model))
        return wire_json.encode(answer)


async def _turn_away(scope: Scope, send: Send) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1012})
        return
    await send({"type": "websocket.http.response.start", "status": 503, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"the broker stops"})


def _parse(body: bytes) -> _Request:
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BrokerProtocolError(f"the message is not a request: {error}") from None


def _id_of(body: bytes) -> Raw:
    """Return the id of a message that is no proper request, where it has one that can be read."""
    try:
        return _id_decoder.decode(body).get("id", _NULL)
    except (msgspec.DecodeError, RecursionError):
        return _NULL


def _refusal(id: Raw, error: OsqueueError) -> bytes:
    return _encoder.encode(_Refusal(id, False, wire_fields(error)))
