"""HTTP/1.1 for the REST transport: connections to one server, kept for the next request.

httpx's own pool looks at every connection several times for each request, with a system call for each idle one, and
tries to import a module that is seldom installed half a dozen times: 1.4 ms of CPU a request at 1 call at a time,
4 ms at 64 (`make bench-clients`). Here a request takes the connection that was used last, whatever else is open.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Final

import h11
import httpx
from aiohappyeyeballs import AddrInfoType, start_connection

from . import CONNECT_TIMEOUT

_MAX_CONNECTIONS: Final = 1000
_HEAD_START: Final = 0.25
"""Seconds for which an address of a host is tried alone; then the next one is tried beside it (RFC 8305)."""

_KEPT: Final = 4.0
"""Seconds for which a connection is kept: shorter than any broker does (uvicorn 5 s, ours 75 s), so that a request
seldom meets a dying one."""


class Http1Transport(httpx.AsyncBaseTransport):
    """Sends each request over a connection of its own for that time; what comes beyond 1,000 at a time waits.

    The whole answer is read before it is returned. Raises `httpx.ConnectError` and `httpx.ConnectTimeout` where
    nothing was sent, another `httpx.TransportError` where no answer came; a cancellation passes through. All
    requests go to the server at `url`. Follows no redirect and uses no proxy.
    """

    def __init__(self, url: httpx.URL, tls: ssl.SSLContext | None = None) -> None:
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or (80 if tls is None else 443)
        self._tls = tls
        if tls is not None:
            tls.set_alpn_protocols(["http/1.1"])
        self._room = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._open: set[_Connection] = set()
        # Those that wait for a request, the one that was used last at the end; the server may have closed some.
        self._kept: deque[_Connection] = deque()
        self._is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer to a request."""
        async with self._room:
            connection = self._take() or await self._connect()
            try:
                return await connection.ask(request)
            finally:
                if connection.is_free:
                    self._kept.append(connection)

    async def aclose(self) -> None:
        """End all connections, and with them the requests that are under way. Safe to call twice."""
        self._is_closed = True
        ended = [connection.ended for connection in self._open]
        for connection in self._open:
            connection.abort()
        if ended:
            await asyncio.wait(ended)

    def _take(self) -> _Connection | None:
        oldest = asyncio.get_running_loop().time() - _KEPT
        while self._kept and self._kept[0].free_since < oldest:
            self._kept.popleft().abort()
        while self._kept:
            connection = self._kept.pop()
            if connection.is_free and not connection.has_news():
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await self._connected()
        except TimeoutError as error:
            raise httpx.ConnectTimeout("timed out") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        if self._is_closed:
            connection.abort()
            raise httpx.ConnectError("the transport is closed")
        self._open.add(connection)
        connection.ended.add_done_callback(lambda _: self._open.discard(connection))
        return connection

    async def _connected(self) -> _Connection:
        # Neither asyncio's own way to the first address that answers, which leaves a socket open when it is cancelled,
        # nor uvloop's, which tries the next one only when the last has failed.
        loop = asyncio.get_running_loop()
        addresses = await self._addresses()
        task = asyncio.current_task()
        assert task is not None
        cancellations = task.cancelling()
        sock = await start_connection(addresses, happy_eyeballs_delay=_HEAD_START)
        if task.cancelling() > cancellations:
            # It swallows one that comes while it ends its other attempts.
            sock.close()
            raise asyncio.CancelledError
        _, connection = await loop.create_connection(
            lambda: _Connection(loop),
            sock=sock,
            ssl=self._tls,
            server_hostname=None if self._tls is None else self._host,
        )
        return connection

    async def _addresses(self) -> Sequence[AddrInfoType]:
        try:
            # An address needs no thread of the event loop's, which others may keep busy.
            return socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        except socket.gaierror:
            loop = asyncio.get_running_loop()
            return await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)


class _Connection(asyncio.Protocol):
    """One connection, and the one request that is under way on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._http = h11.Connection(h11.CLIENT)
        self._answer: asyncio.Future[httpx.Response] | None = None
        self._head: h11.Response | None = None
        self._body: list[bytes] = []
        self._is_ending = False
        self.ended: asyncio.Future[None] = loop.create_future()
        self.free_since = loop.time()

    @property
    def is_free(self) -> bool:
        """Whether it can take another request, as far as is known."""
        return self._http.our_state is h11.IDLE and not self._has_ended

    def has_news(self) -> bool:
        """Whether the event loop has not seen yet what came meanwhile: on a free connection only its end can."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """End it at once."""
        self._is_ending = True
        self._transport.abort()

    async def ask(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its answer; afterwards the connection is free, or it is closed."""
        body = await request.aread()
        if self._has_ended:
            raise httpx.ConnectError("the server closed it at once")
        answer: asyncio.Future[httpx.Response] = self._loop.create_future()
        self._answer = answer
        try:
            self._transport.writelines(self._sent(request, body))
            return await answer
        finally:
            self._answer = self._head = None
            self._body = []
            if not self.is_free:
                self.abort()

    def _sent(self, request: httpx.Request, body: bytes) -> list[bytes]:
        try:
            head = h11.Request(
                method=request.method, target=request.url.raw_path, headers=request.headers.raw
            )
            events = [head, h11.Data(data=body), h11.EndOfMessage()]
            return [data for event in events if (data := self._http.send(event))]
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from error

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_waiting:
            self._read(data)
        else:  # nothing was asked, or all was answered
            self.abort()

    def eof_received(self) -> None:
        """See `asyncio.Protocol`."""
        if self._is_waiting and self._http.their_state is h11.SEND_BODY:
            self._read(b"")  # it ends a body of no stated length, and cuts off any other
        # At once: to close it would wait until all was sent, perhaps for ever.
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._is_ending = True
        self._fail(httpx.ReadError("the connection was closed"), exc)
        self.ended.set_result(None)

    @property
    def _has_ended(self) -> bool:
        # Not all event loops say of a connection over TLS that it is closing, and only until it is lost.
        return self._is_ending or self._transport.is_closing()

    @property
    def _is_waiting(self) -> bool:
        # An answer is there a moment before `ask` goes on, and what comes with it may be seen within that moment.
        return self._answer is not None and not self._answer.done()

    def _read(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while True:
                match self._http.next_event():
                    case h11.InformationalResponse():
                        pass
                    case h11.Response() as head:
                        self._head = head
                    case h11.Data() as part:
                        self._body.append(bytes(part.data))
                    case h11.EndOfMessage():
                        self._deliver()
                        return
                    case _:  # there is no more
                        return
        except h11.RemoteProtocolError as error:
            self._fail(httpx.RemoteProtocolError(str(error)), error)

    def _deliver(self) -> None:
        head = self._head
        assert head is not None
        http, has_sent_all = self._http, self._transport.get_write_buffer_size() == 0
        if (
            http.our_state is http.their_state is h11.DONE
            and http.trailing_data == (b"", False)
            and has_sent_all
        ):
            http.start_next_cycle()
            self.free_since = self._loop.time()
        if self._answer is not None and not self._answer.done():
            stream = httpx.ByteStream(b"".join(self._body))
            self._answer.set_result(
                httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=stream)
            )

    def _fail(self, error: httpx.TransportError, cause: Exception | None) -> None:
        error.__cause__ = cause
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
