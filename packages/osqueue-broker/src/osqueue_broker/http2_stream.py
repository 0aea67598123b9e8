"""One request over HTTP/2 and its answer, as an ASGI application sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
import zttp
from starlette.types import ASGIApp, Message, Scope

from osqueue_client.errors import OsqueueError, wire_fields

from .connection import LINGER_TIMEOUT
from .transport import JSON, TooSlow, send_error, unexpected

if TYPE_CHECKING:
    from .http2 import Http2Protocol

BODY_AHEAD: Final = 64 * 1024
"""Bytes of a body that wait to be taken by the application before no more is read of the connection."""

PIECE: Final = 64 * 1024
"""Bytes of an answer that are handed over at a time, where the peer and the socket take so many."""

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

_OF_HTTP1: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
"""Headers that HTTP/2 forbids. RFC 9113, 8.2.2."""


class PeerLeft(ConnectionResetError):
    """The stream or its connection has ended: there is nobody to answer."""


class Http2Stream:
    """One request and its answer.

    The application is told by `receive` when the peer has left, and by `send`, which raises `PeerLeft`. `send` hands
    over no more than the peer has said it will take: what it does not read stays here, one answer for each stream.
    """

    def __init__(self, connection: Http2Protocol, handle: zttp.Stream, scope: Scope) -> None:
        self._connection = connection
        self._handle = handle
        self._scope = scope
        self._began_at = connection.loop.time()
        self._body = bytearray()
        self._has_arrived = False
        self._has_told_end = False
        self._has_started = False
        self._head: tuple[int, Headers] | None = None
        """What the answer begins with, until it is known whether a body follows: gRPC makes a difference."""
        self._has_trailers = False
        self._has_left = False
        self._is_answered = False
        self._changed = asyncio.Event()
        self._waits_since: float | None = None

    @property
    def id(self) -> int:
        """The stream's number."""
        return self._handle.stream_id

    def has_left(self) -> bool:
        """Whether the peer has given the stream up, or the connection has ended."""
        return self._has_left or self._connection.is_closing()

    async def run(self, app: ASGIApp) -> None:
        """Have the application answer. Its faults end the stream, not the connection."""
        try:
            await app(self._scope, self._receive, self._send)
        except PeerLeft:
            pass
        except Exception as error:  # noqa: BLE001  # the application answers its own; this is the last resort
            fault = unexpected(error)
            if not self._has_started and not self.has_left():
                await send_error(self._send, fault)
        finally:
            if not self._is_answered:
                self.reset(zttp.H2ErrorCode.INTERNAL_ERROR)
            self._connection.ended(self)

    def take(self, data: bytes) -> None:
        """Take in a piece of the body. What comes after the answer has begun is nobody's."""
        if self._has_started or self._has_left:
            return
        self._body += data
        self._changed.set()
        if len(self._body) > BODY_AHEAD:
            self._connection.hold_reading(self)

    def arrive(self) -> None:
        """Note that the request has come in full."""
        self._has_arrived = True
        self._changed.set()

    def wake(self) -> None:
        """Look again at whether more may be sent."""
        if self._waits_since is not None:
            self._changed.set()

    def leave(self) -> None:
        """Note that the peer has left."""
        self._has_left = True
        self._body.clear()
        self._connection.resume_reading(self)
        self._changed.set()

    def reset(self, code: zttp.H2ErrorCode) -> None:
        """End the stream as it is, and tell the peer why."""
        if not self.has_left():
            self._handle.reset(code)
            self._connection.flush()
        self.leave()

    def end_if_late(self, now: float, limit: float, *, is_reading: bool) -> None:
        """End the stream if for over `limit` seconds its request has been arriving, or its answer not been taken."""
        if not is_reading:  # then it is this side that does not read on
            self._began_at = now
            self._waits_since = now if self._waits_since is not None else None
        elif self._waits_since is not None:
            if now - self._waits_since > limit:
                self.reset(zttp.H2ErrorCode.CANCEL)
        elif not self._has_arrived and not self._is_answered and now - self._began_at > limit:
            self._refuse(TooSlow(f"the request has not arrived in full within {limit:g} s"))

    def _refuse(self, error: OsqueueError) -> None:
        """Answer in place of the application, which finds that the peer has left."""
        if self._has_started:
            self.reset(zttp.H2ErrorCode.CANCEL)
            return
        body = msgspec.json.encode(wire_fields(error))
        self._start(error.http_status, [(b"content-type", JSON), (b"content-length", b"%d" % len(body))])
        self._send_head(is_whole=False)
        self._handle.send_data(body)  # what the peer does not take now is lost with the stream
        self._finish()
        self.leave()

    async def _receive(self) -> Message:
        while not self._has_left and not self._is_answered:
            if self._body or (self._has_arrived and not self._has_told_end):
                self._has_told_end = self._has_arrived
                body = bytes(self._body)
                self._body.clear()
                self._connection.resume_reading(self)
                return {"type": "http.request", "body": body, "more_body": not self._has_arrived}
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self.has_left():
            raise PeerLeft(f"stream {self.id} has ended")
        if self._is_answered:
            return  # to HEAD, say: the server leaves the body out
        match message["type"]:
            case "http.response.start":
                self._start(message["status"], message["headers"])
                self._has_trailers = message.get("trailers", False)
            case "http.response.body":
                body: bytes = message.get("body", b"")
                is_last = not message.get("more_body", False) and not self._has_trailers
                self._send_head(is_whole=is_last and not body)
                if not self._is_answered:
                    await self._send_body(body)
                    if is_last:
                        self._finish()
            case "http.response.trailers":
                self._finish(message["headers"])

    def _start(self, status: int, headers: Headers) -> None:
        self._head = status, headers
        self._has_started = True
        self._body.clear()
        self._connection.resume_reading(self)

    def _send_head(self, *, is_whole: bool) -> None:
        if self._head is None:
            return
        (status, headers), self._head = self._head, None
        sent = [
            (lower, value)
            for name, value in (*self._connection.default_headers, *headers)
            if (lower := name.lower()) not in _OF_HTTP1
        ]
        is_whole = is_whole or self._scope["method"] == "HEAD" or status in (204, 304)
        self._handle.send_response(status, sent, is_whole)
        if is_whole:
            self._end()

    async def _send_body(self, body: bytes) -> None:
        rest = memoryview(body)
        while rest:
            if self.has_left():
                raise PeerLeft(f"stream {self.id} has ended before its answer was read")
            room = min(self._connection.room(), self._handle.send_window or 0, PIECE)
            if room <= 0:
                await self._wait_for_room(len(rest))
                continue
            self._handle.send_data(rest[:room])
            self._connection.flush()
            rest = rest[room:]

    async def _wait_for_room(self, unread: int) -> None:
        self._connection.unread += unread
        self._waits_since = self._connection.loop.time()
        self._changed.clear()
        try:
            await self._changed.wait()
        finally:
            self._connection.unread -= unread
            self._waits_since = None

    def _finish(self, trailers: Headers = ()) -> None:
        self._handle.end_message(list(trailers))
        self._end()

    def _end(self) -> None:
        self._is_answered = True
        self._connection.flush()
        self._changed.set()
        if not self._has_arrived:
            self._connection.loop.call_later(LINGER_TIMEOUT, self._take_no_more)

    def _take_no_more(self) -> None:
        """Tell the peer not to send the rest of what was answered already: not at once, for not all can take that."""
        is_open = self._handle.send_window is not None
        if is_open and not self._connection.is_closing():
            self._handle.reset(zttp.H2ErrorCode.NO_ERROR)
            self._connection.flush()
