"""One connection as uvicorn speaks it, HTTP/1.1 and WebSocket: its writes joined, and what it may take bounded."""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
from typing import Any, Final

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from osqueue_client.errors import BrokerProtocolError, OsqueueError, wire_fields

from .transport import HAS_LEFT, HeadTooLarge, TooSlow

logger = logging.getLogger("osqueue.broker.http")

JOIN_UP_TO: Final = 32 * 1024
"""Bytes that are held back until the end of a turn of the loop."""

CLOSE_TIMEOUT: Final = 20.0
"""How long a peer may take to read what was left for it when its connection was closed."""

HEAD_LIMIT: Final = 64 * 1024
"""Bytes of a request line with its headers; the same again for what follows a chunked body."""

LINGER_TIMEOUT: Final = 1.0
"""How long what still comes is thrown away after a refusal: closed at once, the peer might never read it."""

WS_PIECE: Final = 16 * 1024
"""Bytes of WebSocket frames that are unpacked at a time."""


class JoinedWrites:
    """A transport that sends what one turn of the event loop writes as one piece.

    uvicorn writes the head and the body of an answer apart: two system calls and two packets.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Send `data` at the end of this turn of the loop, or at once when there is much of it.

        The transport tells its protocol to pause when too much waits to be sent: it has to see it for that.
        """
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > JOIN_UP_TO:
            self._flush()

    def close(self) -> None:
        """Send what is left, then close. A peer that does not take it in time is cut off."""
        self._flush()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(CLOSE_TIMEOUT, self._transport.abort)

    def write_eof(self) -> None:
        """Send what is left, and say that no more follows."""
        self._flush()
        self._transport.write_eof()

    def _flush(self) -> None:
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:  # whatever else a transport can do
        return getattr(self._transport, name)


class JoiningHttpProtocol(HttpToolsProtocol):
    """HTTP/1.1, its writes joined, with a limit to a request's head and to how long a request may take to arrive.

    Both cost a request almost nothing. One look at all connections each second (`close_if_late`) stands for a timer
    of each; and bytes are counted only while they bring neither a new request nor a body.
    """

    _arriving_since: float | None = None
    """When the first byte of a request came that is not complete."""

    _come = 0
    """Bytes of the piece that is being parsed."""

    _fruitless = 0
    """Bytes, up to the last piece, that have only made the head longer, or what follows the last chunk."""

    _began_in = 0
    """Bytes of the piece in which the request began; how many of them are its own is not known."""

    _is_fruitful = False
    _refusal: OsqueueError | None = None
    """Why no more is read."""

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        if self._arriving_since is None:
            self._arriving_since = self.loop.time()
        self._is_fruitful = False
        self._come = len(data)
        self._unset_keepalive_if_required()
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._take_upgrade(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse_unreadable()
        if self._is_fruitful:
            self._fruitless = 0
            return
        self._fruitless += self._come
        if self._fruitless > HEAD_LIMIT and self._refusal is None:
            self._refuse(_head_too_large())

    def on_message_begin(self) -> None:
        self._is_fruitful = True
        self._began_in = self._come
        if self._arriving_since is None:  # pipelined: its first byte came with the end of the one before
            self._arriving_since = self.loop.time()
        super().on_message_begin()
        self.scope[HAS_LEFT] = self._has_left  # type: ignore[typeddict-unknown-key]  # ours

    def on_headers_complete(self) -> None:
        if self._began_in + self._fruitless + self._come > HEAD_LIMIT:  # else it cannot be too large
            head = sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
            if len(self.url) + head > HEAD_LIMIT:
                self._refuse(_head_too_large())
                raise ValueError("the head is too large")  # ends the parsing
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._is_fruitful = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_fruitful = True
        self._arriving_since = None
        super().on_message_complete()

    def _should_upgrade(self) -> bool:
        # uvicorn asks this of requests with an upgrade only, and passes over those for which it is so: what becomes of
        # them is decided when their heads have been read. The parser takes a CONNECT for an upgrade, too.
        return self.parser.get_method() != b"CONNECT"

    def _take_upgrade(self, rest: memoryview) -> None:
        """Go on after the head of a request that asks for another protocol: WebSocket is spoken, others are ignored.

        RFC 9110, 7.8, lets a server do so. The parser skips the request's body, and does not let itself be told not
        to: a new one gets the head once more, without the upgrade. `rest` is what has come behind it.
        """
        while self._should_upgrade():  # what follows a CONNECT is no HTTP
            if super()._should_upgrade():
                self.handle_websocket_upgrade()
                return
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            self.parser.feed_data(head)
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        fields = (b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        return b"%b%b\r\n" % (line, b"".join(fields))

    def _refuse_unreadable(self) -> None:
        """Refuse what the parser could not read, in our form."""
        if self._refusal is not None:
            return
        if self.parser.get_method() == b"PRI":  # of the preface of HTTP/2, and of nothing else
            hint, self.server_state.http2_hint = self.server_state.http2_hint, None  # type: ignore[attr-defined]  # ours
            if hint is not None:
                logger.warning(hint)
        else:
            self.logger.warning("Invalid HTTP request received.")
        self._refuse(BrokerProtocolError("this is not an HTTP/1.1 request"))

    def close_if_late(self, limit: float) -> None:
        """Close the connection if its request has been arriving for more than `limit` seconds."""
        if self._arriving_since is None or self._refusal is not None or self.transport.is_closing():
            return
        now = self.loop.time()
        if self._is_at_work() or self.flow.read_paused:  # then it is this side that does not read on
            self._arriving_since = now
        elif now - self._arriving_since > limit:
            self._refuse(TooSlow(f"the request has not arrived in full within {limit:g} s"))

    def _refuse(self, error: OsqueueError) -> None:
        """Answer what is no proper request when its turn has come, and read no more of this connection."""
        self._refusal = error
        cycle = self._last_cycle()
        if cycle is None or not self._is_at_work():
            self._close_with(error)
            return

        def close_after_answer() -> None:
            self.on_response_complete()
            self._close_with(error)

        cycle.on_response = close_after_answer

    def _close_with(self, error: OsqueueError) -> None:
        cycle = self._last_cycle()
        if cycle is None or not cycle.more_body or not cycle.response_started:
            self.transport.write(_as_response(error))
        if cycle is not None:
            cycle.disconnected = True  # its application is not to answer, too
            cycle.message_event.set()
        self._unset_keepalive_if_required()
        with contextlib.suppress(OSError):  # the peer has gone
            self.transport.write_eof()
        self.loop.call_later(LINGER_TIMEOUT, self.transport.close)

    def _is_at_work(self) -> bool:
        cycle = self._last_cycle()
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _last_cycle(self) -> RequestResponseCycle | None:
        return self.cycle  # None before the first request, whatever uvicorn declares

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._has_left = transport.is_closing
        super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]  # it is one in all but name
        if self.server_state.is_stopping:  # type: ignore[attr-defined]  # accepted just before the listener closed
            transport.abort()
            return
        # As between two requests: before the first one, uvicorn would wait for ever.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"the request line and the headers are larger than {HEAD_LIMIT:,} bytes")


def _as_response(error: OsqueueError) -> bytes:
    body = msgspec.json.encode(wire_fields(error))
    status = http.HTTPStatus(error.http_status)
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
        % (status, status.phrase.encode(), len(body), body)
    )


class PiecewiseWebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket that unpacks a piece of what has come only when all messages before it were taken.

    uvicorn unpacks all that one read brings: 256 KiB of deflated zeros are 256 MiB of messages.
    """

    _packed = b""

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # else the handshake was refused, and there is no scope
            self.scope[HAS_LEFT] = self.transport.is_closing  # type: ignore[typeddict-unknown-key]  # ours

    def data_received(self, data: bytes) -> None:
        self._packed += data
        self._unpack()

    async def receive(self) -> Any:
        message = await super().receive()
        if self._packed:
            self._unpack()
        return message

    def _unpack(self) -> None:
        # After our close, messages are thrown away, and only the peer's close is waited for.
        while self._packed and (self.queue.empty() or self.close_sent) and not self.transport.is_closing():
            piece, self._packed = self._packed[:WS_PIECE], self._packed[WS_PIECE:]
            super().data_received(piece)
