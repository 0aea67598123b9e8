"""A proxy that misbehaves, and a transport that does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from osqueue_client.models import ClaimedJob, QueueStats
from osqueue_client.operations import OPERATIONS, SERVICE_NAME
from osqueue_client.transports import open_transport


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def answer(status: str, body: str = "<html>Sorry</html>", kind: str = "text/html") -> bytes:
    """An HTTP answer as a proxy gives it."""
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}"
    ).encode()


CUT_BODY = answer("200 OK", '{"jobId": "', "application/json")[:-5]
NOT_JSON = answer("200 OK", '{"jobId": "', "application/json")


class Proxy:
    """Stands before a broker. `instead` holds the answers, by operation, that it gives before it passes on.

    `after` holds those that it gives when the broker has done what was asked.
    """

    def __init__(self, broker: str) -> None:
        self.broker_host, _, port = broker.rpartition(":")
        self.broker_port = int(port)
        self.url = ""
        self.instead: dict[str, list[bytes]] = {}
        self.after: dict[str, list[bytes]] = {}
        self.seen: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            name = _operation(*lines[0].split(" ")[:2])
            self.seen[name] += 1
            if self.instead.get(name):
                writer.write(self.instead[name].pop(0))
            else:
                given = await self._passed_on(lines, body)
                writer.write(self.after[name].pop(0) if self.after.get(name) else given)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the peer has gone
        finally:
            writer.close()

    async def _passed_on(self, lines: list[str], body: bytes) -> bytes:
        kept = [line for line in lines if line and not line.lower().startswith("connection:")]
        head = "\r\n".join([*kept, "connection: close", "", ""]).encode("latin-1")
        reader, writer = await asyncio.open_connection(self.broker_host, self.broker_port)
        try:
            writer.write(head + body)
            return await reader.read()
        finally:
            writer.close()


SINGLE = {
    "submitJobs": "submitJob",
    "claimJobs": "claimJob",
    "completeJobs": "completeJob",
    "heartbeatJobs": "heartbeat",
}
"""What is asked for many jobs goes here by the name of what is asked for one."""


def _operation(method: str, path: str) -> str:
    name = _name(method, path)
    return SINGLE.get(name, name)


def _name(method: str, path: str) -> str:
    for operation in OPERATIONS:
        _, _, last = operation.path.rpartition("}")
        is_rest = method == operation.http_method and (
            path.endswith(last) if last and last != operation.path else path == operation.path
        )
        if is_rest or path == f"/{SERVICE_NAME}/{operation.rpc}":
            return operation.name
    return path


@asynccontextmanager
async def proxy_before(broker: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(broker)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield proxy


class Overridden:
    """A transport to a broker; what `before` and `after` hold for an operation runs around each call of it.

    With `knows_batches` False it is to a broker that knows neither batches nor waiting.
    """

    def __init__(self, url: str, *, knows_batches: bool = True) -> None:
        self.inner = open_transport("rest", url)
        self.knows_batches = knows_batches
        self.requests: list[Any] = []
        self.before: dict[str, Callable[[], Awaitable[object]]] = {}
        self.after: dict[str, Callable[[], Awaitable[object]]] = {}
        self.called: Counter[str] = Counter()
        self.is_old = False
        """The broker shows as one without any additions, and its answers have none."""

    async def call(self, operation: Any, request: Any, /) -> Any:
        name = SINGLE.get(operation.name, operation.name)
        self.called[name] += 1
        self.requests.append(request)
        if name in self.before:
            await self.before[name]()
        if not self.knows_batches:
            assert operation.name == name
            assert not getattr(request, "wait", None)
        result = await self.inner.call(operation, request)
        if name in self.after:
            await self.after[name]()
        if not self.knows_batches:
            result = without_batches(result)
        if self.is_old:
            result = without_additions(result)
        return result

    async def aclose(self) -> None:
        await self.inner.aclose()


def without_batches(answer: Any) -> Any:
    """The answer as the broker gave it before it knew batches and waiting."""
    if not isinstance(answer, QueueStats):
        return answer
    features = tuple(name for name in answer.features if name not in ("batch", "wait", "pages"))
    return msgspec.structs.replace(answer, features=features)


def without_additions(answer: Any) -> Any:
    """The answer as a broker gives it that knows neither request ids nor lease tokens."""
    match answer:
        case QueueStats():
            return msgspec.structs.replace(answer, features=())
        case ClaimedJob():
            return msgspec.structs.replace(answer, lease_token=None)
    return answer


def raising(*errors: BaseException | None) -> Callable[[], Awaitable[object]]:
    """Raise these, one a call, None for none; nothing after the last."""
    left = list(errors)

    async def fault() -> None:
        error = left.pop(0) if left else None
        if error is not None:
            raise error

    return fault
