"""uvicorn inside the running event loop, as a part of a program and not as its owner.

The seam for other HTTP versions is `Listener(protocol=...)`: the class that speaks to one connection. `http_protocol`
chooses one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Final, Protocol, runtime_checkable

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from osqueue_client.errors import ConfigError

from .connection import JoiningHttpProtocol, PiecewiseWebSocketProtocol

WS_MESSAGE_LIMIT: Final = 16 * 1024 * 1024
"""A larger WebSocket message ends its connection; up to it, the broker answers with an error."""


@runtime_checkable
class Timed(Protocol):
    """A connection that ends when its peer takes too long."""

    def close_if_late(self, limit: float) -> None:
        """End what has been arriving for more than `limit` seconds."""
        ...


def http_protocol(*, http2: bool) -> type[asyncio.Protocol]:
    """Return the protocol for a `Listener`: HTTP/1.1, or HTTP/2 beside it.

    Raises `ConfigError` if the extra for HTTP/2 is not installed.
    """
    if not http2:
        return JoiningHttpProtocol
    try:
        from .either_http import EitherHttpProtocol
    except ModuleNotFoundError as error:
        if error.name != "zttp":
            raise
        raise ConfigError(
            'HTTP/2 needs the package zttp, which is not installed: pip install "osqueue-broker[h2]"'
        ) from error
    return EitherHttpProtocol


def _http2_hint() -> str:
    """What the log says where somebody speaks HTTP/2 to a listener that does not."""
    is_installed = importlib.util.find_spec("zttp") is not None
    install = "" if is_installed else ', after pip install "osqueue-broker[h2]"'
    return f"a client speaks HTTP/2 here, which is off: start the broker with --http2{install} (in Python http2=True)"


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `OSError` if the address cannot be had."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = infos[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, its polling, and its wait for idle connections."""

    def __init__(self, config: uvicorn.Config, receive_timeout: float) -> None:
        super().__init__(config)
        self._receive_timeout = receive_timeout
        self.has_started = asyncio.Event()
        self.must_stop = asyncio.Event()
        self.grace = 0.0
        state = self.server_state
        state.is_stopping = False  # type: ignore[attr-defined]  # read by our protocols
        speaks_http2 = config.http is not JoiningHttpProtocol
        state.http2_hint = None if speaks_http2 else _http2_hint()  # type: ignore[attr-defined]  # to be logged once

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to the program

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()

    async def main_loop(self) -> None:
        while not self.must_stop.is_set():
            date = formatdate(time.time(), usegmt=True).encode()  # noqa: TID251  # only for the Date header
            self.server_state.default_headers[:] = [(b"date", date)]
            for connection in list(self.server_state.connections):
                if isinstance(connection, Timed):
                    connection.close_if_late(self._receive_timeout)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, self._receive_timeout / 4)):
                    await self.must_stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # asyncio leaks a connection that it has accepted when its server closes before the transport is made:
        # accept no more, and give those on their way a few turns of the loop.
        loop = asyncio.get_running_loop()
        for sock in sockets or ():
            loop.remove_reader(sock)
        for _ in range(3):
            await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.grace):
                await super().shutdown(sockets)


class Listener:
    """Serves an ASGI application on a socket until it is told to stop."""

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        *,
        receive_timeout: float = 30.0,
        protocol: type[asyncio.Protocol] = JoiningHttpProtocol,
    ) -> None:
        self._app = app
        self._sock = sock
        config = uvicorn.Config(
            self._serve_one,
            interface="asgi3",
            http=protocol,
            ws=PiecewiseWebSocketProtocol,
            ws_max_size=WS_MESSAGE_LIMIT,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
        )
        self._server = _Server(config, receive_timeout)
        self._cuts_off = False

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that are bound."""
        host, port = self._sock.getsockname()[:2]
        return host, port

    async def serve(self) -> None:
        """Serve until `stop`. Connections that are still open when the grace period ends are cut."""
        await self._server.serve(sockets=[self._sock])
        state = self._server.server_state
        state.is_stopping = True  # type: ignore[attr-defined]  # ours
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # the transports close their sockets in the next turn of the loop
        self._cuts_off = True
        tasks = list(state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._cuts_off:
                raise
            # Here its task ends: uvicorn would log the cancellation that `serve` asked for as a failure.

    async def wait_started(self) -> None:
        """Return when connections are accepted."""
        await self._server.has_started.wait()

    def stop(self, grace: float) -> None:
        """Accept no more, finish the requests under way for at most `grace` seconds, then have `serve` return."""
        self._server.grace = grace
        self._server.must_stop.set()
