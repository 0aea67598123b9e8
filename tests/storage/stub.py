"""A small object store on the loopback that fails on command, in the dialects of S3, GCS and Azure.

    async with StubStore("s3") as stub:
        backend = S3Backend(stub.bucket, endpoint_url=stub.endpoint_url, ...)
        stub.faults.append(Fault.drop(applied=True))
        with pytest.raises(StorageBackendError):
            await backend.create("key", b"body")
        assert stub.count("write") == 1      # requests that reached the server: none was sent again
        assert stub.objects["key"].body == b"body"

The requests and answers of the dialects are in `stub_dialects.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Final, Literal, Self, assert_never
from urllib.parse import parse_qsl

from storage.stub_dialects import BUCKET, DIALECTS, Answer, Operation, Request, StubObject, Versions

from osqueue_storage.contract import WriteFault

DialectName = Literal["s3", "gcs", "azure"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that reached the server, before any fault. `key` is "" for a listing."""

    operation: Operation
    method: str
    key: str
    headers: dict[str, str]
    query: dict[str, str]


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls the first request to come that fits. Made by the class methods.

    A fault is for writes (create included) unless it says otherwise. `applied`: whether the request still has
    its effect, as with an answer that got lost. `matches` picks among the requests of that operation.
    """

    kind: Literal["answer", "drop", "garbage", "hang", "slow", "torn", "cut", "pause"]
    on: Operation = "write"
    applied: bool = False
    status: int = 0
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    matches: Callable[[Seen], bool] = lambda _: True

    @classmethod
    def answer(
        cls,
        status: int,
        *,
        code: str | None = None,
        applied: bool = False,
        on: Operation = "write",
        headers: tuple[tuple[str, str], ...] = (),
        matches: Callable[[Seen], bool] = lambda _: True,
    ) -> Self:
        """Answer with this status, and the error body that the dialect has for it.

        `code`: the dialect's error code, if not the usual one for the status.
        """
        return cls("answer", on, applied, status, code, headers, matches=matches)

    @classmethod
    def drop(
        cls, *, applied: bool, on: Operation = "write", matches: Callable[[Seen], bool] = lambda _: True
    ) -> Self:
        """Close the connection once the whole request is there, without an answer."""
        return cls("drop", on, applied, matches=matches)

    @classmethod
    def hang(
        cls, *, applied: bool, on: Operation = "write", matches: Callable[[Seen], bool] = lambda _: True
    ) -> Self:
        """Set `StubStore.hanging` and do nothing more until `StubStore.release` or the end.

        When released, the request has its effect, if it had none before, and is answered.
        """
        return cls("hang", on, applied, matches=matches)

    @classmethod
    def slow(
        cls, seconds: float, *, on: Operation = "write", matches: Callable[[Seen], bool] = lambda _: True
    ) -> Self:
        """Apply the request at once, and answer it that much later."""
        return cls("slow", on, True, seconds=seconds, matches=matches)

    @classmethod
    def torn(cls, *, on: Operation = "read", matches: Callable[[Seen], bool] = lambda _: True) -> Self:
        """Send the head of the right answer and half of its body, and close the connection."""
        return cls("torn", on, True, matches=matches)

    @classmethod
    def cut(cls, *, on: Operation = "read", matches: Callable[[Seen], bool] = lambda _: True) -> Self:
        """Answer rightly, but with half of the body, as if that were all: as a broken proxy may."""
        return cls("cut", on, True, matches=matches)

    @classmethod
    def pause(
        cls, seconds: float, *, on: Operation = "read", matches: Callable[[Seen], bool] = lambda _: True
    ) -> Self:
        """Send the head of the right answer and half of its body, and the rest that much later."""
        return cls("pause", on, True, seconds=seconds, matches=matches)

    @classmethod
    def garbage(
        cls, *, applied: bool, on: Operation = "write", matches: Callable[[Seen], bool] = lambda _: True
    ) -> Self:
        """Answer with what is not HTTP."""
        return cls("garbage", on, applied, matches=matches)


class StubStore:
    """One bucket (container), called `BUCKET`; every other is missing. No credential is looked at.

    `tls`: to be spoken to by https, with the certificate in it.
    """

    bucket: Final = BUCKET

    def __init__(
        self, dialect: DialectName, *, page_size: int = 1000, tls: ssl.SSLContext | None = None
    ) -> None:
        self._tls = tls
        self.dialect: Final = dialect
        self.objects: dict[str, StubObject] = {}
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.hanging = asyncio.Event()
        self.connections = 0
        """How many connections have been opened to the server."""
        self._dialect = DIALECTS[dialect](self.objects, Versions(), page_size)
        self._released = asyncio.Event()
        self._serving: set[asyncio.Task[object]] = set()
        self._server: asyncio.Server | None = None

    @property
    def endpoint_url(self) -> str:
        """Where a client connects to; for Azure with the account name as its path."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{port}{self._dialect.base_path}"

    def count(self, operation: Operation) -> int:
        """Return how many requests of that kind have reached the server."""
        return sum(seen.operation == operation for seen in self.requests)

    def release(self) -> None:
        """Let the requests that hang go on."""
        self._released.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        try:
            async for request in _requests(reader, writer):
                if not await self._answer(request, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the stub closes
        finally:
            self._serving.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        call = self._dialect.call(request)
        seen = Seen(call.operation, request.method, call.key, request.headers, request.query)
        self.requests.append(seen)
        fault = self._fault(seen)
        if fault is None:
            await _send(writer, request, call.effect())
            return request.headers.get("connection", "").lower() != "close"
        answer = call.effect() if fault.applied else None
        match fault.kind:
            case "answer":
                failure = self._dialect.failure(fault.status, fault.code)
                await _send(writer, request, failure.with_headers(*fault.headers))
                return True
            case "drop":
                return False
            case "garbage":
                writer.write(b"this is not HTTP\r\n\r\n")
                return False
            case "cut":
                whole = answer or call.effect()
                await _send(writer, request, replace(whole, body=whole.body[: len(whole.body) // 2]))
                return True
            case "hang":
                self.hanging.set()
                await self._released.wait()
                await _send(writer, request, answer or call.effect())
                return True
            case "slow":
                await asyncio.sleep(fault.seconds)
                await _send(writer, request, answer or call.effect())
                return True
            case "torn":
                await _send(writer, request, answer or call.effect(), half=True)
                return False
            case "pause":
                whole = answer or call.effect()
                await _send(writer, request, whole, half=True)
                await asyncio.sleep(fault.seconds)
                writer.write(whole.body[len(whole.body) // 2 :])
                return True
            case _:
                assert_never(fault.kind)

    def _fault(self, seen: Seen) -> Fault | None:
        for fault in self.faults:
            if fault.on == seen.operation and fault.matches(seen):
                self.faults.remove(fault)
                return fault
        return None


class StubFaultInjector:
    """Has the stub fail as `osqueue_storage.contract.FAULT_CONTRACT` asks for it."""

    def __init__(self, stub: StubStore) -> None:
        self._stub = stub
        # only S3 answers a write that met another one at work with a status of its own
        self.faults = frozenset(_FAULTS) - (
            {WriteFault.CONFLICTING_OPERATION} if stub.dialect != "s3" else set()
        )

    def fail_next_write(self, fault: WriteFault) -> None:
        """Have the next write request meet this fault."""
        self._stub.faults.append(_FAULTS[fault])

    def writes(self) -> int:
        """Return how many write requests have reached the stub."""
        return self._stub.count("write")


_FAULTS: Final = {
    WriteFault.DROPPED_BEFORE: Fault.drop(applied=False),
    WriteFault.DROPPED_AFTER: Fault.drop(applied=True),
    WriteFault.INTERNAL_ERROR_BEFORE: Fault.answer(500),
    WriteFault.INTERNAL_ERROR_AFTER: Fault.answer(500, applied=True),
    WriteFault.UNAVAILABLE_BEFORE: Fault.answer(503),
    WriteFault.UNAVAILABLE_AFTER: Fault.answer(503, applied=True),
    WriteFault.THROTTLED: Fault.answer(429),
    WriteFault.CONFLICTING_OPERATION: Fault.answer(409, code="ConditionalRequestConflict"),
    WriteFault.SILENT_BEFORE: Fault.hang(applied=False),
    WriteFault.SILENT_AFTER: Fault.hang(applied=True),
}


async def _requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[Request]:
    """Yield the requests of one connection, until the client closes it between two of them."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (li.partition(":") for li in lines)
        }
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(reader, headers)
        if not target.startswith("/"):  # as a client sends it to a proxy
            target = "/" + target.partition("://")[2].partition("/")[2]
        path, _, query = target.partition("?")
        yield Request(method, path, dict(parse_qsl(query, keep_blank_values=True)), headers, body)


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    chunks = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return b"".join(chunks)


async def _send(
    writer: asyncio.StreamWriter, request: Request, answer: Answer, *, half: bool = False
) -> None:
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
    ]
    if answer.status not in (204, 304):
        lines.append(f"Content-Length: {len(answer.body)}")
    lines += [f"{name}: {value}" for name, value in answer.headers]
    body = b"" if request.method == "HEAD" or answer.status in (204, 304) else answer.body
    writer.write("\r\n".join((*lines, "\r\n")).encode())
    writer.write(body[: len(body) // 2] if half else body)
    await writer.drain()
