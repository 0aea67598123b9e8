"""The front of a broker over a service that only records: the transports alone, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from msgspec import Raw

from osqueue_broker.app import BrokerApp
from osqueue_broker.listener import Listener, bind, http_protocol
from osqueue_broker.origins import Origins
from osqueue_broker.readiness import Readiness
from osqueue_client import models
from osqueue_client.models import Model
from osqueue_client.operations import SERVICE_NAME, Operation

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

LIMIT = 1024 * 1024
RPC = f"/{SERVICE_NAME}"
JSON = {"content-type": "application/json"}

ANSWERS: dict[type[Model], Model] = {
    models.JobSubmitted: models.JobSubmitted(job_id="id-1"),
    models.ClaimedJob: models.ClaimedJob(job_id="id-1", payload=Raw(b'{"a":1.50}'), type="t", attempt=1),
    models.Empty: models.Empty(),
    models.QueueStats: models.QueueStats(total=1, unclaimed=1, in_progress=0, broker_address="b:1"),
    models.JobList: models.JobList(jobs=(), total=0, unclaimed=0, in_progress=0, broker_address="b:1"),
    models.DeadJobList: models.DeadJobList(jobs=(), total=0),
    models.JobsSubmitted: models.JobsSubmitted(results=(models.SubmittedEntry(job_id="id-1"),)),
    models.ClaimedJobs: models.ClaimedJobs(
        jobs=(models.ClaimedJob(job_id="id-1", payload=Raw(b'{"a":1.50}'), type="t", attempt=1),)
    ),
    models.LeasedResults: models.LeasedResults(results=(models.LeasedEntry(),)),
}


class RecordingService:
    """Answers a constant for each operation, after `gate` is open; raises `error` where one is set."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Model]] = []
        self.lost: list[tuple[str, Model, Model]] = []
        """The answers that reached nobody."""
        self.cancelled = 0
        self.error: Exception | None = None
        self.ready = Readiness("ready")
        self.document_error: Exception | None = None
        self.answers = dict(ANSWERS)
        self.gate = asyncio.Event()
        self.gate.set()
        self._has_called = asyncio.Condition()

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        self.calls.append((operation.name, request))
        async with self._has_called:
            self._has_called.notify_all()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            async with self._has_called:
                self._has_called.notify_all()
            raise
        if self.error is not None:
            raise self.error
        answer = self.answers[operation.response]
        assert isinstance(answer, operation.response)
        return answer

    def undelivered(self, operation: Operation[Req, Res], request: Req, answer: Res, /) -> None:
        self.lost.append((operation.name, request, answer))

    async def until(self, fact: Callable[[], bool]) -> None:
        """Return when `fact` holds; it is looked at after each call and each cancellation."""
        async with asyncio.timeout(10), self._has_called:
            await self._has_called.wait_for(fact)

    async def document(self) -> bytes:
        if self.document_error is not None:
            raise self.document_error
        return b'{"jobs":[]}'

    def readiness(self) -> Readiness:
        return self.ready

    def throttle_stats(self) -> dict[str, object]:
        return {"throttling": False}


class Front:
    """A served front; `host` is its `host:port`."""

    def __init__(self, app: Any, listener: Listener, serving: asyncio.Task[None]) -> None:
        self.app = app
        self.listener = listener
        self.serving = serving
        self.host = "{}:{}".format(*listener.address)
        self.http = f"http://{self.host}"
        self.ws = f"ws://{self.host}/v1/ws"

    async def stop(self, grace: float) -> None:
        self.listener.stop(grace)
        await self.serving


@asynccontextmanager
async def serving(app: Any, *, http2: bool = False, receive_timeout: float = 30.0) -> AsyncIterator[Front]:
    """Serve an ASGI application on a free port of the loopback."""
    with bind("127.0.0.1", 0) as sock:
        protocol = http_protocol(http2=http2)
        listener = Listener(app, sock, receive_timeout=receive_timeout, protocol=protocol)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(listener.serve())
            await listener.wait_started()
            try:
                yield Front(app, listener, task)
            finally:
                listener.stop(0.5)


def front_app(
    service: RecordingService, *, allow_origins: list[str] | None = None, limit: int = LIMIT
) -> BrokerApp:
    return BrokerApp(service, origins=Origins(allow_origins), max_request_bytes=limit)


HANDSHAKE = (
    b"GET /v1/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
"""To be followed by further headers and an empty line."""


def frame(payload: bytes, *, is_deflated: bool = False) -> bytes:
    """A text message of a client in one frame, its mask all zeros."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 65536:
        length = bytes((0x80 | 126,)) + size.to_bytes(2, "big")
    else:
        length = bytes((0x80 | 127,)) + size.to_bytes(8, "big")
    return bytes((0x81 | (0x40 if is_deflated else 0),)) + length + bytes(4) + payload


async def raw_exchange(host: str, data: bytes) -> bytes:
    """Send bytes on a connection of their own; return all that comes back until the other side closes."""
    name, port = host.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
