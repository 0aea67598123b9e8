"""HTTP/2 and HTTP/1.1 on one port: which of them a connection speaks. Needs the extra `h2`; experimental."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from .connection import JoiningHttpProtocol
from .http2 import Http2Protocol
from .http2_frames import PREFACE


class EitherHttpProtocol(asyncio.Protocol):
    """Waits for the first bytes of a connection: HTTP/2 says what it is, everything else is HTTP/1.1."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._context = config, server_state, app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._first = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self.transport = transport
        _, state, _ = self._context
        if state.is_stopping:  # type: ignore[attr-defined]  # accepted just before the listener closed
            transport.abort()
            return
        state.connections.add(self)  # type: ignore[arg-type]  # it is one in all that is asked of it

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def data_received(self, data: bytes) -> None:
        if not self._first:
            self._began_at = self._loop.time()
        self._first += data
        if len(self._first) < len(PREFACE) and PREFACE.startswith(self._first):
            return
        self._leave()
        kind = Http2Protocol if self._first.startswith(PREFACE) else JoiningHttpProtocol
        protocol = kind(*self._context, _loop=self._loop)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(self._first)

    def shutdown(self) -> None:
        """Nothing was asked yet."""
        self.transport.close()

    def close_if_late(self, limit: float) -> None:
        """Close a connection on which nothing has come for as long as one may be idle, or half of the preface."""
        config, _, _ = self._context
        idle = limit if self._first else config.timeout_keep_alive
        if self._loop.time() - self._began_at > idle:
            self.transport.close()

    def _leave(self) -> None:
        self._context[1].connections.discard(self)
