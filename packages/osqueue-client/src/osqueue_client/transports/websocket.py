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
from ..errors import TransportConnectionError, error_from_wire
from ..models import Model
from ..operations import Operation

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
    error: dict[str, object] = {}


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Answer)


class _Session:
    """One open connection, and those who wait for an answer on it."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.waiting: dict[int, asyncio.Future[_Answer]] = {}
        # Owned by the session, ended by close(): it ends by itself when the connection does.
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="osqueue-websocket")

    @property
    def is_open(self) -> bool:
        return not self._reader.done()

    async def close(self) -> None:
        await self.connection.close()
        await asyncio.wait((self._reader,))

    def _asker_of(self, answer: _Answer) -> asyncio.Future[_Answer] | None:
        """Return who waits for it. One without an id is to a message that the broker could not read."""
        if answer.id is not None:
            return self.waiting.pop(answer.id, None)
        return self.waiting.popitem()[1] if len(self.waiting) == 1 else None

    async def _read(self) -> None:
        why = "the connection was closed"
        try:
            async for text in self.connection:
                answer = _decoder.decode(text)
                future = self._asker_of(answer)
                if future is not None and not future.done():
                    future.set_result(answer)
        except (ConnectionClosed, msgspec.DecodeError) as error:
            why = str(error)
        finally:
            for future in self.waiting.values():
                if not future.done():
                    future.set_exception(TransportConnectionError(f"no answer: {why}", outcome="unknown"))
            self.waiting.clear()


class WebSocketTransport:
    """Calls a broker over one WebSocket, which is opened at the first call and again after it was lost.

    No time limit of its own: the client sets one around each call.
    """

    def __init__(self, base_url: str) -> None:
        self._url = f"ws{base_url.removeprefix('http')}/v1/ws"
        self._session: _Session | None = None
        self._opening = asyncio.Lock()
        self._ids = count(1)

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `Transport.call`."""
        session = await self._open_session()
        id = next(self._ids)
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        session.waiting[id] = answer
        text = _encoder.encode(_Request(id, operation.name, Raw(wire_json.encode(request))))
        try:
            await session.connection.send(text, text=True)
            found = await answer
        except ConnectionClosed as error:
            raise TransportConnectionError(
                f"{operation.name}: no answer: {error}", outcome="unknown"
            ) from error
        finally:
            session.waiting.pop(id, None)
        if not found.ok:
            raise error_from_wire(found.error, method=operation.name)
        return wire_json.decode_response(operation, bytes(found.result))

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _open_session(self) -> _Session:
        async with self._opening:
            if self._session is None or not self._session.is_open:
                try:
                    connection = await connect(self._url, max_size=None, proxy=None, open_timeout=None)
                except (OSError, InvalidHandshake, ConnectionClosed) as error:
                    raise TransportConnectionError(
                        f"cannot connect to the broker: {error}", outcome="not_applied"
                    ) from error
                self._session = _Session(connection)
            return self._session
