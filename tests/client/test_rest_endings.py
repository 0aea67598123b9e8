"""All the ways in which a connection of the REST transport ends: plain and over TLS, on asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest
import trustme
import uvloop
from client.support import answer, listening, submitting, until
from msgspec import Raw

from osqueue_client import BrokerProtocolError, TransportConnectionError
from osqueue_client.models import SubmitJob
from osqueue_client.operations import SUBMIT_JOB
from osqueue_client.transports.rest import RestTransport

BODY = b'{"jobId":"j"}'
HEAD = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\nd\r\n" + BODY + b"\r\n"
OK = answer(200, BODY, "application/json")

Run: TypeAlias = Callable[[Coroutine[object, object, None]], None]
Trust: TypeAlias = tuple[ssl.SSLContext, Path]

# A loop that turns for ever cannot be ended from within.
pytestmark = pytest.mark.timeout(20)


class End:
    """The server's end of a connection. What it sends, TLS included, goes out with one write."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: ssl.SSLContext | None
    ) -> None:
        self._reader, self._writer = reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = None
        if tls is not None:
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def read(self) -> bytes:
        """What came, `b""` at the end."""
        if self._tls is None:
            return await self._reader.read(65536)
        while True:
            with suppress(ssl.SSLWantReadError):
                return self._tls.read(65536)
            self._writer.write(self._outgoing.read())
            data = await self._reader.read(65536)
            if not data:
                return data
            self._incoming.write(data)

    async def request(self) -> None:
        """Read one request."""
        text = b""
        while b"\r\n\r\n" not in text:
            text += await self._some()
        head, _, body = text.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        while len(body) < int(length.split(b"\r\n")[0]):
            body += await self._some()

    async def _some(self) -> bytes:
        data = await self.read()
        if not data:
            raise ConnectionError("the client has gone")
        return data

    def send(self, text: bytes) -> None:
        if self._tls is None:
            self._writer.write(text)
            return
        if text:
            self._tls.write(text)
        self._writer.write(self._outgoing.read())

    def finish(self, text: bytes = b"", *, has_notice: bool = True) -> None:
        """Send this and the end: over TLS with its notice of the end, or cut off without."""
        if self._tls is not None:
            if text:
                self._tls.write(text)
            if has_notice:
                with suppress(ssl.SSLError):  # it waits for the client's notice, or finds data before it
                    self._tls.unwrap()
            text = self._outgoing.read()
        self._writer.write(text)
        self._writer.write_eof()

    def reset(self) -> None:
        """End it with a reset."""
        end = self._writer.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def left(self) -> None:
        """Wait until the client has closed it, too."""
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                pass


class Server:
    """Does the same with each connection; counts them and those that the client has not closed yet."""

    def __init__(self, serve: Callable[[End], Awaitable[None]], tls: ssl.SSLContext | None) -> None:
        self._serve, self._tls = serve, tls
        self.connections = 0
        self.open = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        end = End(reader, writer, self._tls)
        with suppress(ConnectionError):
            await self._serve(end)
            await end.left()
        self.open -= 1


def ending_with(text: bytes, has_notice: bool) -> Callable[[End], Awaitable[None]]:
    """What takes one request, and ends the connection with this."""

    async def serve(end: End) -> None:
        await end.request()
        end.finish(text, has_notice=has_notice)

    return serve


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on an event loop of either kind."""

    def run_on_it(main: Coroutine[object, object, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main, 15))

    return run_on_it


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["tcp", "tls"])
def trust(request: pytest.FixtureRequest, authority: trustme.CA, tmp_path: Path) -> Trust | None:
    """A certificate and who trusts it, or nothing for a plain connection."""
    if request.param == "tcp":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return context, path


@asynccontextmanager
async def serving(
    serve: Callable[[End], Awaitable[None]], trust: Trust | None
) -> AsyncIterator[tuple[Server, RestTransport]]:
    """A server that does this with each connection, and a transport to it."""
    server = Server(serve, trust and trust[0])
    async with listening(server) as url:
        url = url.replace("http:", "https:") if trust else url
        transport = RestTransport(url, ca_file=trust and trust[1])
        try:
            yield server, transport
        finally:
            await transport.aclose()


async def failure(transport: RestTransport, payload: bytes = b"1") -> TransportConnectionError:
    with pytest.raises(TransportConnectionError) as caught:
        await asyncio.wait_for(transport.call(SUBMIT_JOB, SubmitJob(payload=Raw(payload))), 5)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        HEAD,
        HEAD + b"content-length: 100\r\n\r\n" + BODY,
        HEAD + b"content-length: 13\r\n\r\n",
        CHUNKED,
        HEAD + b"transfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 103 X\r\n\r\n",
    ],
    ids=[
        "before the head",
        "within the head",
        "within a body with a length",
        "before a body with a length",
        "within a chunked body",
        "before a chunked body",
        "after early hints",
    ],
)
@pytest.mark.parametrize("has_notice", [True, False], ids=["ended", "cut off"])
def test_end_before_the_answer_is_whole_is_of_unknown_outcome(
    run: Run, trust: Trust | None, text: bytes, has_notice: bool
) -> None:
    async def calls() -> None:
        async with serving(ending_with(text, has_notice), trust) as (server, transport):
            for connections in (1, 2):
                assert (await failure(transport)).outcome == "unknown"
                await until(lambda: server.open == 0)
                assert server.connections == connections

    run(calls())


@pytest.mark.parametrize(
    ("text", "has_notice"),
    [
        (HEAD + b"\r\n" + BODY, True),
        (HEAD.replace(b"1.1", b"1.0") + b"\r\n" + BODY, True),
        (OK, True),
        (OK, False),
        (answer(200, BODY, "application/json", "connection: close"), True),
        (answer(200, BODY, "application/json", "connection: close"), False),
        (CHUNKED + b"0\r\n\r\n", True),
        (CHUNKED + b"0\r\n\r\n", False),
        (OK + OK, True),
        (b"HTTP/1.1 204 X\r\n\r\n", True),
    ],
    ids=[
        "which ends the body",
        "which ends the body of HTTP/1.0",
        "with a length",
        "with a length, cut off",
        "connection: close",
        "connection: close, cut off",
        "chunked",
        "chunked, cut off",
        "another answer",
        "no body",
    ],
)
def test_end_that_comes_with_the_answer_spoils_nothing(
    run: Run, trust: Trust | None, text: bytes, has_notice: bool
) -> None:
    async def calls() -> None:
        async with serving(ending_with(text, has_notice), trust) as (server, transport):
            for connections in (1, 2):
                if b" 204 " in text:  # it has no id, but was understood
                    with pytest.raises(BrokerProtocolError, match="jobId"):
                        await asyncio.wait_for(transport.call(SUBMIT_JOB, SubmitJob()), 5)
                else:
                    result = await asyncio.wait_for(transport.call(SUBMIT_JOB, SubmitJob()), 5)
                    assert result.job_id == "j"
                assert server.connections == connections
                await until(lambda: server.open == 0)

    run(calls())


@pytest.mark.parametrize("has_notice", [True, False], ids=["ended", "cut off"])
def test_half_a_body_that_ends_with_the_connection_is_of_unknown_outcome(
    run: Run, trust: Trust | None, has_notice: bool
) -> None:
    async def calls() -> None:
        async with serving(ending_with(HEAD + b"\r\n" + BODY[:6], has_notice), trust) as (server, transport):
            with pytest.raises((TransportConnectionError, BrokerProtocolError)) as caught:
                await asyncio.wait_for(transport.call(SUBMIT_JOB, SubmitJob()), 5)
            assert caught.value.outcome == "unknown"
            await until(lambda: server.open == 0)

    run(calls())


@pytest.mark.parametrize("text", [b"", HEAD + b"\r\n" + BODY], ids=["before the head", "within the body"])
def test_reset_before_the_answer_is_whole_is_of_unknown_outcome(
    run: Run, trust: Trust | None, text: bytes
) -> None:
    is_seen = asyncio.Event()

    async def serve(end: End) -> None:
        await end.request()
        if text:
            end.send(text)
            await is_seen.wait()
        end.reset()

    async def calls() -> None:
        async with serving(serve, trust) as (_, transport), asyncio.TaskGroup() as group:
            call = group.create_task(failure(transport))
            if text:
                await until(lambda: any(c._body for c in transport._transport._open))  # type: ignore[attr-defined]
                is_seen.set()
            assert (await call).outcome == "unknown"

    run(calls())


@pytest.mark.parametrize("how", ["ended", "cut off", "reset", "an answer to nothing"])
def test_connection_that_ends_while_it_is_idle_is_used_no_more(
    run: Run, trust: Trust | None, how: str
) -> None:
    may_end = asyncio.Event()

    async def serve(end: End) -> None:
        await end.request()
        end.send(OK)
        await may_end.wait()
        may_end.clear()
        match how:
            case "reset":
                end.reset()
            case "an answer to nothing":
                end.send(OK)
            case _:
                end.finish(has_notice=how == "ended")

    async def calls() -> None:
        async with serving(serve, trust) as (server, transport), submitting(transport) as submit:
            for connections in (1, 2, 3):
                assert await submit() == "j"
                assert server.connections == connections
                may_end.set()
                await until(lambda: server.open == 0)
                await asyncio.sleep(0)  # so that a reset is seen

    run(calls())


def test_end_is_an_end_also_where_the_server_does_not_read_the_request(run: Run, trust: Trust | None) -> None:
    async def serve(end: End) -> None:
        await end.read()
        end.finish()
        await asyncio.Event().wait()

    async def calls() -> None:
        async with serving(serve, trust) as (_, transport):
            error = await failure(transport, b'"' + b"x" * 30_000_000 + b'"')
            assert error.outcome == "unknown"
            assert "was closed" in error.message

    run(calls())


def test_connection_that_the_server_ends_at_once_was_sent_nothing(run: Run, trust: Trust | None) -> None:
    async def serve(end: End) -> None:
        end.reset()

    async def calls() -> None:
        async with serving(serve, trust) as (_, transport):
            for _ in range(20):
                await failure(transport)  # of either outcome: it may have ended while the request was sent

    run(calls())


def test_close_ends_a_call_within_a_body(run: Run, trust: Trust | None) -> None:
    async def serve(end: End) -> None:
        await end.request()
        end.send(HEAD + b"\r\n" + BODY)

    async def calls() -> None:
        async with serving(serve, trust) as (server, transport), asyncio.TaskGroup() as group:
            call = group.create_task(failure(transport))
            await until(lambda: any(c._body for c in transport._transport._open))  # type: ignore[attr-defined]
            await transport.aclose()
            assert (await call).outcome == "unknown"
            await until(lambda: server.open == 0)

    run(calls())
