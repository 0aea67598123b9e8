"""Transports, servers that are no brokers, free ports and waits for the tests of the client."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from osqueue_client import TransportConnectionError
from osqueue_client.models import Model, QueueStats, SubmitJob
from osqueue_client.operations import GET_STATS, SUBMIT_JOB, AnyOperation, Operation
from osqueue_client.transports import Transport, TransportName, open_transport
from osqueue_client.transports.connect import ConnectTransport

TRANSPORTS = ("rest", "ws", "connect-proto", "connect-json")
NAMES: tuple[TransportName, ...] = ("rest", "ws", "connect")

Stream = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Reply = Callable[[int], Awaitable[bytes]]

STATS = b'{"total":0,"unclaimed":0,"inProgress":0}'


def transport_to(name: str, url: str) -> Transport:
    """A transport of this name to the broker at `url`."""
    match name:
        case "rest" | "ws":
            return open_transport(name, url)
        case "connect-proto":
            return ConnectTransport(url)
        case _:
            return ConnectTransport(url, codec="json")


@asynccontextmanager
async def submitting(transport: Transport) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Yields what submits a job over the transport alone, without a client that would learn of the broker first."""

    async def submit() -> str:
        async with asyncio.timeout(5):
            return (await transport.call(SUBMIT_JOB, SubmitJob())).job_id

    try:
        yield submit
    finally:
        await transport.aclose()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait, bounded, for something that another task brings about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def obey_ctrl_c() -> None:
    """For a child process: a test run in the background of a shell ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Scripted:
    """A transport that answers each operation with what `answer` returns or raises."""

    def __init__(self, answer: Callable[[AnyOperation], Awaitable[Model]]) -> None:
        self._answer = answer
        self.is_closed = False

    async def call(self, operation: Operation[Any, Any], request: Model, /) -> Any:
        return await self._answer(operation)

    async def aclose(self) -> None:
        self.is_closed = True


@asynccontextmanager
async def listening(stream: Stream) -> AsyncIterator[str]:
    """A server that is no broker, its connections closed at the end; yields its URL."""
    writers: list[asyncio.StreamWriter] = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.CancelledError):
            await stream(reader, writer)

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in writers:
            writer.close()
        server.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        pass


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


def answer(status: int, body: bytes, kind: str, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def replying(reply: Reply) -> AsyncIterator[str]:
    """An HTTP server that answers its n-th request with `reply(n)`; yields its URL."""
    writers: list[asyncio.StreamWriter] = []
    requests = 0

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, found, rest = head.partition(b"content-length:")
                await reader.readexactly(int(rest.split(b"\r\n")[0]) if found else 0)
                requests += 1
                writer.write(await reply(requests))

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in writers:
            writer.close()
        server.close()


def always(text: bytes) -> Reply:
    async def reply(n: int) -> bytes:
        return text

    return reply


class Watched:
    """A transport that notes what is asked through it, and loses the answers that it is told to lose.

    `lacks` are features that the broker then seems not to have. `loses` has for an operation whether the answer to each
    of its next requests is lost.
    """

    def __init__(self, inner: Transport, *lacks: str) -> None:
        self.inner = inner
        self.lacks = lacks
        self.loses: dict[str, list[bool]] = {}
        self.asked: list[tuple[str, Any]] = []

    def of(self, name: str) -> list[Any]:
        """The requests of an operation."""
        return [request for asked, request in self.asked if asked == name]

    @property
    def names(self) -> list[str]:
        """The operations that were asked for, but for the stats."""
        return [name for name, _ in self.asked if name != GET_STATS.name]

    async def call(self, operation: Operation[Any, Any], request: Any, /) -> Any:
        self.asked.append((operation.name, request))
        answer = await self.inner.call(operation, request)
        fates = self.loses.get(operation.name)
        if fates and fates.pop(0):
            raise TransportConnectionError("the answer was lost", outcome="unknown")
        if isinstance(answer, QueueStats):
            features = tuple(name for name in answer.features if name not in self.lacks)
            return msgspec.structs.replace(answer, features=features)
        return answer

    async def aclose(self) -> None:
        await self.inner.aclose()


OLD = ("batch", "wait", "pages")
"""What the broker of the release before did not have."""
