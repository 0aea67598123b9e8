"""WebSocket: one connection, many requests on it, each answer found by its id."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from itertools import count
from typing import Final, TypeVar

import msgspec
from msgspec import Raw, Struct
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.protocol import State

from .. import wire_json
from ..errors import TransportConnectionError, error_from_wire
from ..models import Model
from ..operations import Operation
from . import CONNECT_TIMEOUT
from .connection_errors import WRONG_URL, no_answer, not_connected
from .tls import CaFile, context_of
from .userinfo import without_userinfo

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

_CANCEL_REQUEST: Final = "cancelRequest"


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


class _NoAnswer(Exception):
    """No answer will come to a request that was sent, and why."""


class _NotSent(Exception):
    """The connection was closing before a request could be sent."""


class _Session:
    """One open connection, and those who wait for an answer on it."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._has_ended = False
        # To each request its answer, or why there is none: every caller raises an error of its own.
        self._waiting: dict[int, asyncio.Future[_Answer | str]] = {}
        # Owned by the session: each ends when its message is sent, or cannot be, at the latest when the session does.
        self._telling: set[asyncio.Task[None]] = set()
        # Owned by the session, ended by close(): it ends by itself when the connection does.
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="osqueue-websocket")

    @property
    def is_open(self) -> bool:
        """Whether a request could be sent now; the reader may not have seen yet that the broker closes."""
        return not self._has_ended and self.connection.state is State.OPEN

    async def ask(self, id: int, text: bytes) -> _Answer:
        """Send a request and wait for its answer. Raises `_NoAnswer`, or `_NotSent` where nothing was sent."""
        if not self.is_open:
            raise _NotSent
        waiting: asyncio.Future[_Answer | str] = asyncio.get_running_loop().create_future()
        self._waiting[id] = waiting
        try:
            await self.connection.send(text, text=True)
            answer = await waiting
        except ConnectionClosed as error:
            raise _NoAnswer(str(error)) from error
        finally:
            self._waiting.pop(id, None)
        if isinstance(answer, str):
            raise _NoAnswer(answer)
        return answer

    def cancel(self, id: int, own_id: int) -> None:
        """Tell the broker that nobody waits any longer for the answer to a claim that waits for a job."""
        params = Raw(_encoder.encode({"id": id}))
        text = _encoder.encode(_Request(own_id, _CANCEL_REQUEST, params))
        task = asyncio.get_running_loop().create_task(self._tell(text), name="osqueue-websocket-cancel")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, text: bytes) -> None:
        with contextlib.suppress(ConnectionClosed):  # then the broker has heard that
            await self.connection.send(text, text=True)

    def when_ended(self, tell: Callable[[_Session], object]) -> None:
        self._reader.add_done_callback(lambda _: tell(self))

    async def close(self) -> None:
        self._has_ended = True
        await self.connection.close()
        await asyncio.wait((self._reader, *self._telling))

    async def _read(self) -> None:
        why = "the connection was closed"
        try:
            async for text in self.connection:
                self._deliver(_decoder.decode(text))
        except ConnectionClosed as error:
            why = str(error)
        except wire_json.UNREADABLE as error:
            why = f"it sent what is no answer: {error}"
        finally:
            self._has_ended = True
            self._give_all(why)
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
            self._give_all(
                f"it refused one of {len(self._waiting)} requests without saying which: "
                f"{refusal.tag}: {refusal.message}"
            )
        else:
            # To a message that the broker could not read, and only one was sent.
            self._give_all(answer)

    def _give_all(self, answer: _Answer | str) -> None:
        for asker in self._waiting.values():
            if not asker.done():
                asker.set_result(answer)


class _Connect(connect):
    """Follows no redirect: a request goes to the broker that the program named, or nowhere."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class WebSocketTransport:
    """Calls a broker over one WebSocket, which is opened at the first call and again after it was lost.

    No time limit of its own but that of connecting: the client sets one around each call.
    """

    def __init__(self, base_url: str, *, ca_file: CaFile | None = None) -> None:
        # websockets refuses a user without a password.
        self._url, self._headers = without_userinfo(base_url)
        self._tls: ssl.SSLContext | bool | None = None
        if base_url.startswith("https:"):
            self._tls = True if ca_file is None else context_of(ca_file)
        self._session: _Session | None = None
        self._unended: set[_Session] = set()
        self._opening: asyncio.Task[_Session] | None = None
        self._is_closed = False
        self._ids = count(1)

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `Transport.call`."""
        session = self._session
        if session is None or not session.is_open:
            session = await self._open_session(operation.name)
        id = next(self._ids)
        text = _encoder.encode(_Request(id, operation.name, Raw(wire_json.encode(request))))
        try:
            answer = await session.ask(id, text)
        except _NotSent:
            raise not_connected(operation.name, self._url, "the broker closed it at once") from None
        except _NoAnswer as error:
            raise no_answer(operation.name, self._url, str(error)) from error.__cause__
        except asyncio.CancelledError:
            if getattr(request, "wait", None):
                session.cancel(id, next(self._ids))
            raise
        if not answer.ok:
            raise error_from_wire(answer.error or {}, method=operation.name)
        return wire_json.decode_response(operation, bytes(answer.result))

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._is_closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        self._session = None
        await asyncio.gather(*(session.close() for session in self._unended))

    async def _open_session(self, operation: str) -> _Session:
        """Wait for the one attempt to connect: its failure is that of all who wait, and of nobody after them."""
        if self._is_closed:
            raise TransportConnectionError(f"{operation}: the transport is closed", outcome="not_applied")
        if self._opening is None or self._opening.done():
            # Owned by the transport: it ends in CONNECT_TIMEOUT, and aclose() ends it before.
            self._opening = asyncio.get_running_loop().create_task(
                self._connect(), name="osqueue-websocket-open"
            )
            self._opening.add_done_callback(_seen)
        opening = self._opening
        await asyncio.wait((opening,))  # a caller that is cancelled takes the attempt from nobody
        if opening.cancelled():
            raise TransportConnectionError(f"{operation}: the transport is closed", outcome="not_applied")
        match opening.exception():
            case None:
                return opening.result()
            case OSError() | WebSocketException() as error:
                hint = WRONG_URL if isinstance(error, InvalidStatus) else None
                raise not_connected(operation, self._url, error, hint) from error
            case error:
                raise error

    async def _connect(self) -> _Session:
        connection = await _Connect(
            f"ws{self._url.removeprefix('http')}/v1/ws",
            additional_headers=self._headers,
            max_size=None,  # a list of jobs may be large
            proxy=None,
            compression=None,  # as over REST and Connect; it costs either side more than a small request gains
            open_timeout=CONNECT_TIMEOUT,
            close_timeout=2.0,
            ssl=self._tls,
        )
        session = self._session = _Session(connection)
        self._unended.add(session)
        session.when_ended(self._unended.discard)
        return session


def _seen(task: asyncio.Task[_Session]) -> None:
    # Where all who waited have gone, nobody else looks at its failure.
    if not task.cancelled():
        task.exception()
