"""WebSocket: requests in JSON messages, many at a time on one connection, each answered under its id."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Raw, Struct
from starlette.types import Message, Receive, Scope, Send

from osqueue_client import wire_json
from osqueue_client.errors import (
    BrokerLeadershipError,
    BrokerProtocolError,
    OsqueueError,
    QueueFullError,
    wire_fields,
)
from osqueue_client.models import ClaimedJob, ClaimedJobs, Empty, Model
from osqueue_client.operations import LIST_DEAD, LIST_JOBS, OPERATIONS, AnyOperation

from .transport import (
    Service,
    decode_request,
    has_left,
    refuse_handshake,
    refuse_lone_surrogate,
    too_large,
    unexpected,
    waits,
)

logger = logging.getLogger("osqueue.broker.websocket")

MAX_IN_FLIGHT: Final = 1024
"""Requests of one connection that may wait for their answers; further ones are not read yet."""

MAX_BYTES_IN_FLIGHT: Final = 8 * 1024 * 1024
"""Bytes of such requests after which no further one is read."""

MAX_WAITS: Final = 512
"""Claims of one connection that may wait for jobs: else they would keep all else on it from being read."""

_LONGEST_KEPT_ID: Final = 1024
"""The id of a message that is too large is given back only up to this length."""

_LISTS: Final = frozenset({LIST_JOBS.name, LIST_DEAD.name})
"""Methods with large answers."""

CANCEL_REQUEST: Final = "cancelRequest"
"""The method with which a client gives up a claim that waits for a job: over HTTP it hangs up."""

_LATE_CANCELS: Final = 8
"""Claims that have waited, and whose answers a cancellation may have crossed on their way."""

_NULL: Final = Raw(b"null")
_BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}


class _Request(Struct):
    id: Raw = _NULL
    method: str = ""
    params: Raw = _NULL


class _Identified(Struct):
    id: Raw = _NULL


class _Answer(Struct):
    id: Raw
    ok: bool
    result: Raw


class _Refusal(Struct):
    id: Raw
    ok: bool
    error: dict[str, str | float]


_decoder = msgspec.json.Decoder(_Request)
_id_decoder = msgspec.json.Decoder(_Identified)
_encoder = msgspec.json.Encoder()


@dataclass(slots=True, eq=False)
class _Given:
    """What a call has come to. The answer has no jobs any more once they were taken back."""

    operation: AnyOperation
    request: Model
    answer: Model
    id: bytes = b""
    """That of its message, where it may be cancelled."""


class WebSocketEndpoint:
    """The ASGI application of `/v1/ws`, and the sessions that are open on it."""

    def __init__(self, service: Service, max_request_bytes: int) -> None:
        self._service = service
        self._limit = max_request_bytes
        self._sessions: set[_Session] = set()
        self._is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_draining:
            await refuse_handshake(scope, send, BrokerLeadershipError("the broker stops"), close_code=1012)
            return
        session = _Session(self._service, self._limit, scope, receive, send)
        self._sessions.add(session)
        try:
            await session.run()
        finally:
            self._sessions.discard(session)

    async def drain(self) -> None:
        """Read no more, answer what was read, and close every connection with 1012. New ones are turned away.

        A peer that does not read its answers is waited for. Cancelling this ends only the waiting: what is left
        falls to whoever closes the connections.
        """
        self._is_draining = True
        sessions = list(self._sessions)
        for session in sessions:
            session.start_draining()
        for session in sessions:
            await session.wait_ended()


class _Session:
    """One connection. What was read is done whether or not the peer stays for the answer, as over HTTP.

    What it may hold is bounded, however much is asked and however little is read: so many requests, so many bytes of
    them, one answer on its way, one list that is being made.
    """

    def __init__(self, service: Service, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        self._service = service
        self._limit = limit
        self._scope = scope
        self._receive = receive
        self._send = send
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._sending = asyncio.Lock()
        """Held while an answer is made and sent: the next one is made when the peer has read enough."""
        self._listing = asyncio.Lock()
        self._is_draining = False
        self._has_left = False
        self._waits: dict[asyncio.Task[_Given], bytes] = {}
        """Calls that may wait for long, and the ids of their messages: they end when the peer leaves."""
        self._given: deque[_Given] = deque(maxlen=_LATE_CANCELS)
        """The last of them that have come to jobs, whether or not their answers have been sent yet."""
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

    def start_draining(self) -> None:
        self._is_draining = True
        if self._reader is not None:
            self._reader.cancel()

    async def wait_ended(self) -> None:
        await self._has_ended.wait()

    async def _tell(self, message: Message) -> bool:
        """Send a message; return whether the connection has taken it."""
        if self._has_left or has_left(self._scope):
            return False
        try:
            await self._send(message)
        except (
            OSError,
            RuntimeError,
        ) as error:  # the peer has gone, or is going: its server knows both ways to say so
            logger.debug("peer_gone", extra={"reason": repr(error)})
            return False
        return True

    async def _read(self, group: asyncio.TaskGroup) -> None:
        # No name here holds a message: a large one would stay until the next comes.
        while self._take(await self._receive(), group):
            await self._has_room.wait()

    def _take(self, message: Message, group: asyncio.TaskGroup) -> bool:
        """Start on one message. Return whether more may follow."""
        if message["type"] == "websocket.disconnect":
            self._has_left = True
            for task in self._waits:
                task.cancel()
            return False
        text = message.get("text")
        body = message.get("bytes") or b"" if text is None else text.encode()
        refusal = None
        if len(body) > self._limit:  # only its refusal waits, not the message
            refusal = _refusal(_kept_id_of(body), too_large(self._limit, "message"))
            body = b""
        self._in_flight += 1
        self._bytes_in_flight += len(body)
        if not self._is_open_for_more():
            self._has_room.clear()
        group.create_task(self._finish(body, refusal))
        return True

    def _is_open_for_more(self) -> bool:
        return self._in_flight < MAX_IN_FLIGHT and self._bytes_in_flight < MAX_BYTES_IN_FLIGHT

    async def _finish(self, body: bytes, refusal: bytes | None) -> None:
        try:
            if refusal is None:
                refusal = await self._answer(body)
            if refusal is not None:
                async with self._sending:
                    await self._tell({"type": "websocket.send", "text": refusal.decode()})
        finally:
            self._in_flight -= 1
            self._bytes_in_flight -= len(body)
            if self._is_open_for_more():
                self._has_room.set()

    async def _answer(self, body: bytes) -> bytes | None:
        """Do what a message asks and answer it; return the refusal where it is refused."""
        id = _NULL
        try:
            wire_json.check_text(body, "the message")
            request = _parse(body)
            id = request.id
            if request.method == CANCEL_REQUEST:
                return self._cancel(id, bytes(_id_of(bytes(request.params))))
            operation = _operation(request.method)
            params = bytes(request.params)
            model = decode_request(operation, b"{}" if params == b"null" else params)
            model = wire_json.require_job_id(operation, model)
            if operation.name in _LISTS:
                async with self._listing:
                    await self._do(id, operation, model)
            else:
                await self._do(id, operation, model)
        except OsqueueError as error:
            return _refusal(_id_of(body) if id is _NULL else id, error)
        except Exception as error:  # noqa: BLE001  # a fault of ours ends neither the connection nor its neighbours
            return _refusal(id, unexpected(error))
        return None

    async def _do(self, id: Raw, operation: AnyOperation, request: Model) -> None:
        if waits(request):
            given = await self._wait_for(bytes(id), operation, request)
        else:
            given = _Given(operation, request, await self._service.call(operation, request))
        is_delivered = False
        try:
            async with self._sending:
                text = _encoder.encode(_Answer(id, True, Raw(wire_json.encode(given.answer))))
                is_delivered = await self._tell({"type": "websocket.send", "text": text.decode()})
        finally:
            if not is_delivered:
                self._take_back(given)
            elif waits(request):
                given.answer = _without_payloads(given.answer)

    def _cancel(self, id: Raw, cancelled: bytes) -> bytes:
        """End a wait, as if its time were up. Where it has come to jobs, their leases are taken back."""
        for call, waiting_id in self._waits.items():
            if waiting_id == cancelled:
                call.cancel()
        for given in [given for given in self._given if given.id == cancelled]:
            self._given.remove(given)
            self._take_back(given)
        return _encoder.encode(_Answer(id, True, Raw(wire_json.encode(Empty()))))

    def _take_back(self, given: _Given) -> None:
        """Say that an answer has reached nobody, or nobody who wants it; its leases are taken back only once."""
        answer = given.answer
        if waits(given.request):
            given.answer = given.operation.response()
        self._service.undelivered(given.operation, given.request, answer)

    async def _wait_for(self, id: bytes, operation: AnyOperation, request: Model) -> _Given:
        """Call the service, and end that when the peer leaves, or cancels it."""
        if len(self._waits) >= MAX_WAITS:
            raise QueueFullError(
                f"{operation.name}: {MAX_WAITS} claims of this connection wait for jobs", retry_after=1.0
            )
        call = asyncio.get_running_loop().create_task(self._claim(id, operation, request))  # owned here
        self._waits[call] = id
        task = asyncio.current_task()
        try:
            if self._has_left:
                call.cancel()
            return await call
        except asyncio.CancelledError:
            if call.cancelled() and not self._has_left and task is not None and not task.cancelling():
                return _Given(operation, request, operation.response())
            if call.done() and not call.cancelled() and call.exception() is None:
                self._take_back(call.result())
            raise
        finally:
            del self._waits[call]

    async def _claim(self, id: bytes, operation: AnyOperation, request: Model) -> _Given:
        given = _Given(operation, request, await self._service.call(operation, request), id)
        if _has_jobs(given.answer):
            self._given.append(given)  # in the same turn: there is none in which it could not be cancelled
        return given


def _has_jobs(answer: Model) -> bool:
    match answer:
        case ClaimedJob():
            return answer.job_id is not None
        case ClaimedJobs(jobs=jobs):
            return bool(jobs)
    return False


def _without_payloads(answer: Model) -> Model:
    """Return what tells of the leases in an answer, and no more: it is kept."""
    match answer:
        case ClaimedJob():
            return ClaimedJob(job_id=answer.job_id, lease_token=answer.lease_token)
        case ClaimedJobs(jobs=jobs):
            leases = (ClaimedJob(job_id=job.job_id, lease_token=job.lease_token) for job in jobs)
            return ClaimedJobs(jobs=tuple(leases))
    return answer


def _operation(method: str) -> AnyOperation:
    operation = _BY_NAME.get(method)
    if operation is None:
        what = f"unknown method {method!r}" if method else "field 'method' is missing"
        raise BrokerProtocolError(what, field="method", method=method)
    return operation


def _parse(body: bytes) -> _Request:
    try:
        return _decoder.decode(body)
    except wire_json.UNREADABLE as error:
        refuse_lone_surrogate(body, "the message", within="params.")
        raise BrokerProtocolError(f"the message is not a request: {error}") from None


def _id_of(body: bytes) -> Raw:
    """Return the id of a message that is no proper request, where it has one that can be read."""
    try:
        return _id_decoder.decode(body).id
    except wire_json.UNREADABLE:
        return _NULL


def _kept_id_of(body: bytes) -> Raw:
    """Return the id of a message as a copy: where it stands it would keep the whole message."""
    id = _id_of(body)
    return id.copy() if len(memoryview(id)) <= _LONGEST_KEPT_ID else _NULL


def _refusal(id: Raw, error: OsqueueError) -> bytes:
    return _encoder.encode(_Refusal(id, False, wire_fields(error)))
