"""A client of HTTP/2 that does no more than it is told, on the h2 library: it may read nothing, or grant nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from broker_front.support import Front
from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes, Settings

Headers = list[tuple[str, str]]


class Answer:
    """What has come of the answer to one request."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.has_ended = False
        self.reset: int | None = None
        """The code of a reset."""


class Peer:
    """One connection. `answers` holds what has come, by stream; `goodbyes` every GOAWAY."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.state = H2Connection(H2Configuration(client_side=True))
        self.state.config.validate_outbound_headers = False
        # RFC 9113, 6.8: what is under way goes on after a GOAWAY. To the library, all is over.
        goes_on = (
            (ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY),
            (None, ConnectionState.CLIENT_OPEN),
        )
        machine = self.state.state_machine
        machine._transitions = {**machine._transitions, goes_on[0]: goes_on[1]}
        self.answers: dict[int, Answer] = {}
        self.goodbyes: list[ConnectionTerminated] = []
        self.settings: dict[Any, Any] = {}
        self.pings = 0
        self.grants = True
        """Whether what was read makes room for more."""

    def begin(
        self,
        path: str,
        body: bytes | None = None,
        *,
        method: str = "",
        headers: Headers | None = None,
        ends: bool = True,
    ) -> int:
        """Make a request, or the beginning of one, to be sent by `flush`; return its stream."""
        stream = self.state.get_next_available_stream_id()
        head = [
            (":method", method or ("GET" if body is None else "POST")),
            (":scheme", "http"),
            (":authority", "x"),
            (":path", path),
            *([("content-type", "application/json")] if body is not None and headers is None else []),
            *(headers or []),
        ]
        self.answers[stream] = Answer()
        self.state.send_headers(stream, head, end_stream=ends and not body)
        if body:
            self.state.send_data(stream, body, end_stream=ends)
        return stream

    async def ask(self, path: str, body: bytes | None = None, **options: Any) -> int:
        """Send a request, as `begin` makes it; return its stream."""
        stream = self.begin(path, body, **options)
        await self.flush()
        return stream

    async def flush(self) -> None:
        self.writer.write(self.state.data_to_send())
        await self.writer.drain()

    async def read_until(self, fact: Callable[[], bool]) -> None:
        """Read until `fact` holds. Raises `ConnectionError` when the connection ends before."""
        async with asyncio.timeout(10):
            while not fact():
                data = await self.reader.read(65536)
                if not data:
                    raise ConnectionResetError("the server has closed the connection")
                for event in self.state.receive_data(data):
                    self._note(event)
                await self.flush()

    async def answer(self, stream: int) -> Answer:
        """Return the answer to a request when it is there."""
        found = self.answers[stream]
        await self.read_until(lambda: found.has_ended or found.reset is not None)
        return found

    async def read_to_end(self) -> None:
        """Read until the server closes the connection."""
        try:
            await self.read_until(lambda: False)
        except ConnectionError:
            return

    def _note(self, event: Event) -> None:
        match event:
            case ResponseReceived(stream_id=stream, headers=headers):
                found = {bytes(name).decode(): bytes(value).decode() for name, value in headers or ()}
                self.answers[stream].status = int(found.pop(":status"))
                self.answers[stream].headers = found
            case DataReceived(stream_id=stream, data=data, flow_controlled_length=size):
                self.answers[stream].body += data or b""
                if self.grants and size:
                    self.state.acknowledge_received_data(size, stream)
            case StreamEnded(stream_id=stream):
                self.answers[stream].has_ended = True
            case StreamReset(stream_id=stream, error_code=code):
                self.answers[stream].reset = int(code or 0)
            case ConnectionTerminated():
                self.goodbyes.append(event)
            case RemoteSettingsChanged(changed_settings=changed):
                self.settings |= {code: change.new_value for code, change in changed.items()}
            case PingAckReceived():
                self.pings += 1


@asynccontextmanager
async def connected(front: Front, *, window: int | None = None) -> AsyncIterator[Peer]:
    """Connect to a front; `window` is what the peer takes of each answer before it has read any."""
    peer = Peer(*await asyncio.open_connection(*front.listener.address))
    if window is not None:
        peer.state.local_settings = Settings(True, {SettingCodes.INITIAL_WINDOW_SIZE: window})
    peer.state.initiate_connection()
    try:
        await peer.flush()
        yield peer
    finally:
        peer.writer.transport.abort()
