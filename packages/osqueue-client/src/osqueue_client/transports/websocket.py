"""WebSocket: one connection, many requests on it, each answer found by its id."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from .. import wire_json
from ..errors import OsqueueError, TransportConnectionError, error_from_wire
from ..models import Model
from ..operations import Operation
from . import CONNECT_TIMEOUT

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)


class _Request(Struct):
    id: int
    method: str
    params: Raw


class _Answer(Struct):
    id: int | None = None
    ok: bool = False
    result: Raw = Raw(b"{}")
    error: dict[str, object] | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Answer)


class _Session:
    """One open connection, and those who wait for an answer on it."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.is_open = True
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        # Owned by the session, ended by close(): it ends by itself when the connection does.
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="osqueue-websocket")

    async def ask(self, id: int, text: bytes) -> _Answer:
        """Send a request and wait for its answer."""
        waiting: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting[id] = waiting
        try:
            await self.connection.send(text, text=True)
            return await waiting
        finally:
            self._waiting.pop(id, None)
            if waiting.done() and not waiting.cancelled():
                waiting.exception()  # seen, where send() raised or the caller was cancelled first

    async def close(self) -> None:
        self.is_open = False
        await self.connection.close()
        await asyncio.wait((self._reader,))

    async def _read(self) -> None:
        why = "the connection was closed"
        try:
            async for text in self.connection:
                self._deliver(_decoder.decode(text))
        except (ConnectionClosed, msgspec.DecodeError, RecursionError) as error:
            why = str(error)
        finally:
            self.is_open = False
            self._fail_all(TransportConnectionError(f"no answer: {why}", outcome="unknown"))
            # Also where the broker sent what is no answer: the others of this connection cannot be told apart.
            await self.connection.close()

    def _deliver(self, answer: _Answer) -> None:
        if answer.id is not None:
            # Nobody waits where the caller's time ran out.
            asker = self._waiting.get(answer.id)
            if asker is not None and not asker.done():
                asker.set_result(answer)
        elif len(self._waiting) > 1:
            refusal = error_from_wire(answer.error or {})
            self._fail_all(
                TransportConnectionError(
                    f"the broker refused one of {len(self._waiting)} requests without saying which: "
                    f"{refusal.tag}: {refusal.message}",
                    outcome="unknown",
                )
            )
        else:
            # To a message that the broker could not read, and only one was sent.
            for asker in self._waiting.values():
                if not asker.done():
                    asker.set_result(answer)

    def _fail_all(self, error: OsqueueError) -> None:
        for asker in self._waiting.values():
            if not asker.done():
                asker.set_exception(error)


class WebSocketTransport:
    """Calls a broker over one WebSocket, which is opened at the first call and again after it was lost.

    No time limit of its own but that of connecting: the client sets one around each call.
    """

    def __init__(self, base_url: str) -> None:
        self._url = f"ws{base_url.removeprefix('http')}/v1/ws"
        self._session: _Session | None = None
        self._is_closed = False
        self._opening = asyncio.Lock()
        self._ids = count(1)

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `Transport.call`."""
        session = await self._open_session()
        id = next(self._ids)
        text = _encoder.encode(_Request(id, operation.name, Raw(wire_json.encode(request))))
        try:
            answer = await session.ask(id, text)
        except ConnectionClosed as error:
            raise TransportConnectionError(
                f"{operation.name}: no answer: {error}", outcome="unknown"
            ) from error
        if not answer.ok:
            raise error_from_wire(answer.error or {}, method=operation.name)
        return wire_json.decode_response(operation, bytes(answer.result))

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._is_closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _open_session(self) -> _Session:
        async with self._opening:
            if self._session is None or not self._session.is_open:
                try:
                    connection = await connect(
                        self._url,
                        max_size=None,  # a list of jobs may be large
                        proxy=None,
                        open_timeout=CONNECT_TIMEOUT,
                        close_timeout=2.0,
                    )
                except (OSError, InvalidHandshake, ConnectionClosed) as error:
                    raise TransportConnectionError(
                        f"cannot connect to the broker: {error}", outcome="not_applied"
                    ) from error
                if self._is_closed:
                    await connection.close()
                    raise TransportConnectionError("the transport is closed", outcome="not_applied")
                self._session = _Session(connection)
            return self._session
