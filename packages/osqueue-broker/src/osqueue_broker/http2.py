"""One connection as we speak HTTP/2, with the limits of `connection.py`. Needs the extra `h2`; experimental.

What HTTP/2 says is zttp's; what is refused, how long it may take and how much may wait is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final
from urllib.parse import unquote

import zttp
from starlette.types import Scope
from uvicorn import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from .connection import CLOSE_TIMEOUT, LINGER_TIMEOUT, JoinedWrites
from .http2_frames import PREFACE, FrameBoundaries
from .http2_stream import Http2Stream
from .transport import HAS_LEFT

logger = logging.getLogger("osqueue.broker.http2")

REQUESTS: Final = 3_900
"""Requests of one connection before the peer is asked to open another. At its 4,097th, zttp fails all of them."""

SERIAL_REQUESTS: Final = 3_500
"""The same for a peer that never sends a request before it has the answer to the one before."""

RESETS: Final = 120
"""The same for streams that the peer has reset. At the 257th, zttp fails the connection; 128 may be open at once."""

UNREAD_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of answers that wait for one peer to read them before its further requests are refused."""

_LAST_STREAM: Final = 2**31 - 1
_PING: Final = b"\0\0\x08\x06\0\0\0\0\0" + b"osqueue\0"


class Http2Protocol(asyncio.Protocol):
    """One connection of HTTP/2.

    It is given up in good order (`_retire`) when it was idle for long, and before zttp would break it off: zttp counts
    the requests and the resets of a connection, for ever.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.unread = 0
        """Bytes of answers that wait for the peer."""
        self._app = config.loaded_app
        self._idle_timeout = config.timeout_keep_alive
        self._state = server_state
        self._parser = zttp.Connection(zttp.SERVER, zttp.HTTP2)
        self._frames = FrameBoundaries(len(PREFACE))
        self._frame_began_at = 0.0
        self._idle_since = self.loop.time()
        self._writes_since: float | None = None
        """Since when the socket takes no more."""
        self._holding: set[object] = set()
        """For whose sake nothing is read."""
        self._streams: dict[int, Http2Stream] = {}
        self._requests = 0
        self._is_serial = True
        self._resets = 0
        self._retired_at: float | None = None
        self._takes_more = True
        self._ends_when_idle = False
        self._is_broken = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self.transport = JoinedWrites(transport, self.loop)
        self._state.connections.add(self)  # type: ignore[arg-type]  # it is one in all that is asked of it
        scheme = "https" if transport.get_extra_info("ssl_object") else "http"
        self._scope: Scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "2",
            "scheme": scheme, "root_path": "", "server": get_local_addr(transport),
            "client": get_remote_addr(transport), "extensions": {"http.response.trailers": {}},
        }  # fmt: skip
        self._parser.initiate_connection()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._leave_streams()

    def data_received(self, data: bytes) -> None:
        if self._is_broken:
            return
        if self._frames.feed(data):
            self._frame_began_at = self.loop.time()
        try:
            self._parser.receive_data(data)
            while (event := self._parser.next_event()) is not zttp.NEED_DATA:
                self._handle(event)
        except zttp.RemoteProtocolError as error:
            self._break_off(str(error))
            return
        self.flush()

    def pause_writing(self) -> None:
        """Wait for the peer to read, and read no more from it: what it sends may ask for answers, too."""
        self._writes_since = self.loop.time()
        self.hold_reading(self)

    def resume_writing(self) -> None:
        self._writes_since = None
        self.resume_reading(self)
        self._wake_streams()

    def shutdown(self) -> None:
        """Take no more, finish what is under way, and end."""
        self._takes_more = False
        self._ends_when_idle = True
        if self._streams:
            self._parser.close()
            self.flush()
        self._end_if_idle()

    def close_if_late(self, limit: float) -> None:
        """End what has not come or was not read for `limit` seconds, and what was idle for long."""
        if self.is_closing():
            return
        now = self.loop.time()
        if self._writes_since is not None:
            if now - self._writes_since > limit:
                self.transport.abort()
            return
        if self._holding:
            self._frame_began_at = now
        elif self._frames.is_amid and now - self._frame_began_at > limit:
            self._parser.close(zttp.H2ErrorCode.ENHANCE_YOUR_CALM)
            self._break_off(f"a frame has not arrived in full within {limit:g} s")
            return
        for stream in list(self._streams.values()):
            stream.end_if_late(now, limit, is_reading=not self._holding)
        if self._retired_at is None:
            if not self._streams and now - self._idle_since > self._idle_timeout:
                self._retire()
        elif now - self._retired_at > CLOSE_TIMEOUT:  # the peer does not answer a ping
            self._ends_when_idle = True
            self._end_if_idle()

    # What a stream asks of its connection

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer."""
        return self._state.default_headers

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._is_broken or self.transport.is_closing()

    def room(self) -> int:
        """Return how many bytes of answers peer and socket take now."""
        return 0 if self._writes_since is not None else self._parser.send_window

    def flush(self) -> None:
        """Send what the parser has written."""
        data = self._parser.data_to_send()
        if data:
            self.transport.write(data)

    def hold_reading(self, cause: object) -> None:
        """Read no more until `resume_reading` was called for every cause."""
        if not self._holding and not self.transport.is_closing():
            self.transport.pause_reading()
        self._holding.add(cause)

    def resume_reading(self, cause: object) -> None:
        """Read on, as far as it was held for this cause."""
        if cause in self._holding:
            self._holding.remove(cause)
            if not self._holding and not self.transport.is_closing():
                self.transport.resume_reading()

    def ended(self, stream: Http2Stream) -> None:
        """Forget a stream whose application has returned."""
        self._streams.pop(stream.id, None)
        self.resume_reading(stream)
        self._idle_since = self.loop.time()
        if self._is_serial and self._requests >= SERIAL_REQUESTS:
            # Nothing of it is on its way: this goes with the answer. The package h2, and with it httpx, fails whatever
            # is under way when it is asked in the other way.
            self._ends_when_idle = True
        self._end_if_idle()

    def _handle(self, event: zttp.Event) -> None:
        match event:
            case zttp.Request():
                self._begin(event)
            case zttp.Data():
                if (stream := self._streams.get(event.stream_id)) is not None:
                    stream.take(event.data)
            case zttp.EndOfMessage():
                if (stream := self._streams.get(event.stream_id)) is not None:
                    stream.arrive()
            case zttp.RstStream():
                self._note_reset(event.stream_id)
            case zttp.WindowUpdate():
                if event.stream_id == 0:
                    self._wake_streams()
                elif (stream := self._streams.get(event.stream_id)) is not None:
                    stream.wake()
            case zttp.Settings():
                self._wake_streams()  # the windows may be larger now
            case zttp.Ping():
                if event.ack and self._retired_at is not None:
                    self._ends_when_idle = True  # all that the peer sent before it knew has come
                    self._end_if_idle()
            case zttp.GoAway():
                self._ends_when_idle = True
                self._end_if_idle()

    def _begin(self, request: zttp.Request) -> None:
        handle = self._parser.stream(request.stream_id)
        self._requests += 1
        self._is_serial = self._is_serial and not self._streams
        if not self._takes_more or self.unread > UNREAD_LIMIT:
            handle.reset(zttp.H2ErrorCode.REFUSED_STREAM)  # by RFC 9113, 8.7, the client may send it again
            return
        scope: Scope = {
            **self._scope, "method": request.method.decode(), "path": unquote(request.path.decode("latin-1")),
            "raw_path": request.path, "query_string": request.query, "headers": list(request.headers),
            "state": {},
        }  # fmt: skip
        stream = Http2Stream(self, handle, scope)
        scope[HAS_LEFT] = stream.has_left
        if request.expect_continue:
            handle.send_informational(100)
        if request.end_stream:
            stream.arrive()
        self._streams[stream.id] = stream
        task = self.loop.create_task(stream.run(self._app))
        self._state.tasks.add(task)  # its owner: the listener awaits it
        task.add_done_callback(self._state.tasks.discard)
        if self._requests >= REQUESTS:
            self._retire()

    def _note_reset(self, stream_id: int) -> None:
        self._resets += 1
        if (stream := self._streams.get(stream_id)) is not None:
            stream.leave()
        if self._resets >= RESETS:
            self._retire()

    def _retire(self) -> None:
        """Ask the peer to send what it has to send on another connection, answer the rest, and end.

        What it sends until it knows is answered, too: it says that it knows by its answer to the ping.
        """
        if self._retired_at is not None:
            return
        self._retired_at = self.loop.time()
        self._parser.close(zttp.H2ErrorCode.NO_ERROR, _LAST_STREAM)
        self.flush()
        self.transport.write(_PING)

    def _end_if_idle(self) -> None:
        if self._ends_when_idle and not self._streams and not self.is_closing():
            self._parser.close()
            self.flush()
            self.transport.close()

    def _break_off(self, why: str) -> None:
        """End the connection of a peer that goes against the protocol; the parser has written what it is told."""
        logger.debug("http2_broken_off", extra={"reason": why})
        self._is_broken = True
        self.flush()
        self._leave_streams()
        with contextlib.suppress(OSError):  # the peer has gone
            self.transport.write_eof()
        self.loop.call_later(LINGER_TIMEOUT, self.transport.close)

    def _leave_streams(self) -> None:
        for stream in list(self._streams.values()):
            stream.leave()

    def _wake_streams(self) -> None:
        if self.unread:
            for stream in self._streams.values():
                stream.wake()
