"""The connections of the REST transport: which request goes over which, and what ends one."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import uvloop
from client.support import answer, listening, silent, submitting, until
from msgspec import Raw

from osqueue_client import BrokerProtocolError, TransportConnectionError
from osqueue_client.models import SubmitJob
from osqueue_client.operations import SUBMIT_JOB
from osqueue_client.transports.http1 import Http1Transport
from osqueue_client.transports.rest import RestTransport

Submit = Callable[[], Coroutine[object, object, str]]
OK = answer(200, b'{"jobId":"j"}', "application/json")
HEAD = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\n"


class Server:
    """Answers each request with the next of its answers, the last one again and again; keeps what it was sent."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.heads: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.connections = 0
        self.open = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, _, rest = head.lower().partition(b"content-length: ")
                await reader.readexactly(int(rest.split(b"\r\n")[0]))
                self.heads.append(head)
                await self.may_answer.wait()
                text = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                writer.write(text)
                if b"content-length" not in text and b"chunked" not in text:
                    writer.close()  # so ends a body of no stated length
        self.open -= 1


@asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[tuple[Server, Submit]]:
    """A server with these answers, and what submits a job to it over one transport."""
    server = Server(*answers)
    async with listening(server.serve) as url, submitting(RestTransport(url)) as submit:

        async def submitted() -> str:
            return await submit()

        yield server, submitted


async def test_one_call_after_the_other_goes_over_one_connection() -> None:
    async with serving(OK) as (server, submit):
        for _ in range(5):
            assert await submit() == "j"
        assert server.connections == 1


async def test_calls_at_a_time_have_a_connection_each_and_later_ones_use_these() -> None:
    async with serving(OK) as (server, submit):
        for _ in range(3):
            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(submit())
        assert server.connections == 20
        assert len(server.heads) == 60


async def test_what_comes_beyond_the_most_connections_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osqueue_client.transports.http1._MAX_CONNECTIONS", 3)
    async with serving(OK) as (server, submit):
        assert await asyncio.gather(*(submit() for _ in range(20))) == ["j"] * 20
        assert server.connections == 3


async def test_connection_that_was_not_used_for_long_is_used_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(OK) as (server, submit):
        await asyncio.gather(*(submit() for _ in range(5)))
        monkeypatch.setattr("osqueue_client.transports.http1._KEPT", -1.0)
        await submit()
        assert server.connections == 6
        await until(lambda: server.open == 1)


async def test_connection_whose_end_was_not_seen_yet_is_not_used() -> None:
    async with serving(OK) as (server, submit):
        await submit()
        server.writers[0].get_extra_info("socket").shutdown(socket.SHUT_WR)
        assert await submit() == "j"  # the event loop has not turned since
        assert server.connections == 2


async def test_connection_that_the_server_closed_is_not_used() -> None:
    async with serving(OK) as (server, submit):
        await submit()
        server.writers[0].close()
        await until(lambda: server.open == 0)
        assert await submit() == "j"
        assert server.connections == 2


async def test_answer_that_nobody_asked_for_is_given_to_nobody() -> None:
    stray = answer(200, b'{"jobId":"stray"}', "application/json")
    async with serving(OK) as (server, submit):
        await submit()
        server.writers[0].write(stray)
        await until(lambda: server.open == 0)  # it was seen, and the connection closed
        assert await submit() == "j"


async def test_late_answer_of_a_cancelled_call_is_given_to_nobody() -> None:
    late = answer(200, b'{"jobId":"late"}', "application/json")
    async with serving(late, OK) as (server, submit), asyncio.TaskGroup() as group:
        server.may_answer.clear()
        call = group.create_task(submit())
        await until(lambda: server.heads)
        call.cancel()
        await asyncio.wait((call,))
        server.may_answer.set()
        assert await submit() == "j"
        assert server.connections == 2


@pytest.mark.parametrize(
    "text",
    [
        HEAD + b'transfer-encoding: chunked\r\n\r\n6\r\n{"jobI\r\n7\r\nd":"j"}\r\n0\r\n\r\n',
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + OK,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        HEAD + b'transfer-encoding: chunked\r\n\r\nd;x=y\r\n{"jobId":"j"}\r\n0\r\nx-checksum: 1\r\n\r\n',
        answer(200, gzip.compress(b'{"jobId":"j"}'), "application/json", "content-encoding: gzip"),
    ],
    ids=["chunked", "after early hints", "after an unasked 100", "with trailers", "gzip"],
)
async def test_every_form_of_an_answer_is_read_and_the_connection_kept(text: bytes) -> None:
    async with serving(text) as (server, submit):
        assert [await submit(), await submit()] == ["j", "j"]
        assert server.connections == 1


@pytest.mark.parametrize(
    "text",
    [
        HEAD + b'\r\n{"jobId":"j"}',
        answer(200, b'{"jobId":"j"}', "application/json", "connection: close"),
        OK + b"HTTP/1.1 408 Request Timeout\r\n\r\n",
    ],
    ids=["ended by its close", "connection: close", "more than was asked for"],
)
async def test_connection_that_is_spent_is_closed(text: bytes) -> None:
    async with serving(text) as (server, submit):
        assert [await submit(), await submit()] == ["j", "j"]
        assert server.connections == 2
        await until(lambda: server.open == 0)


async def test_answer_without_a_body_is_whole_and_the_connection_kept() -> None:
    async with serving(b"HTTP/1.1 204 X\r\netag: content-length\r\n\r\n", OK) as (server, submit):
        with pytest.raises(BrokerProtocolError, match="jobId"):
            await submit()
        assert await submit() == "j"
        assert server.connections == 1


@pytest.mark.parametrize(
    "text",
    [
        HEAD + b"x: " + b"y" * 200_000,
        HEAD + b"transfer-encoding: chunked\r\n\r\n1;" + b"y" * 200_000,
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"y" * 200_000,
        HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
    ],
    ids=["endless head", "endless chunk head", "endless trailers", "two lengths", "another protocol"],
)
async def test_answer_that_breaks_the_rules_ends_the_call_and_the_connection(text: bytes) -> None:
    has_gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(text)
        with suppress(ConnectionError):
            await silent(reader, writer)
        has_gone.set()

    async with listening(serve) as url, submitting(RestTransport(url)) as submit, asyncio.timeout(5):
        with pytest.raises(TransportConnectionError, match="no answer from") as caught:
            await submit()
        await has_gone.wait()
    assert caught.value.outcome == "unknown"


async def test_request_that_cannot_be_one_is_not_sent_and_spoils_no_connection() -> None:
    server = Server(OK)
    async with listening(server.serve) as url:
        transport = Http1Transport(httpx.URL(url))
        for headers in ({"x": "y\r\ncontent-length: 9"}, {"x y": "z"}, {"content-length": "9"}):
            with pytest.raises(httpx.LocalProtocolError):
                await transport.handle_async_request(httpx.Request("POST", url, headers=headers))
        # The last one was refused when its head was encoded: what comes after it needs another connection.
        await until(lambda: (server.connections, server.open) == (1, 0))
        assert server.heads == []
        for _ in range(2):
            request = httpx.Request("POST", url, content=b"{}")
            assert (await transport.handle_async_request(request)).status_code == 200
        assert server.connections == 2
        await transport.aclose()
    assert len(server.heads) == 2


@asynccontextmanager
async def asked() -> AsyncIterator[tuple[Server, RestTransport, asyncio.Task[str], asyncio.Protocol]]:
    """A call that waits for its answer, and its connection, to which a test gives what came in one turn of the loop."""
    server = Server(OK)
    async with listening(server.serve) as url, submitting(transport := RestTransport(url)) as submit:
        server.may_answer.clear()

        async def submitted() -> str:
            return await submit()

        call = asyncio.create_task(submitted())
        await until(lambda: server.heads)
        (connection,) = transport._transport._open  # type: ignore[attr-defined]
        yield server, transport, call, connection


async def test_what_comes_after_an_answer_in_the_same_turn_ends_the_connection() -> None:
    async with asked() as (server, transport, call, connection):
        connection.data_received(OK)
        connection.data_received(OK)
        assert await call == "j"
        server.may_answer.set()
        async with asyncio.timeout(5):  # and the server has not had a turn to answer the first
            assert (await transport.call(SUBMIT_JOB, SubmitJob())).job_id == "j"
        assert server.connections == 2


@pytest.mark.parametrize(
    ("text", "is_closed"), [(HEAD + b"content-length: 100\r\n\r\n{", True), (b"nonsense\r\n\r\n", False)]
)
async def test_answer_that_is_cut_off_or_none_is_of_unknown_outcome(text: bytes, is_closed: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text)
        if is_closed:
            writer.close()
        await silent(reader, writer)

    async with listening(serve) as url, submitting(RestTransport(url)) as submit:
        with pytest.raises(TransportConnectionError, match="no answer from") as caught:
            await submit()
    assert caught.value.outcome == "unknown"


async def test_answer_before_the_request_was_sent_whole_is_taken_and_the_connection_is_not() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.Event().wait()

    large = SubmitJob(payload=Raw(b'"' + b"x" * 30_000_000 + b'"'))
    async with listening(serve) as url, asyncio.timeout(10):
        transport = RestTransport(url)
        for _ in range(2):
            assert (await transport.call(SUBMIT_JOB, large)).job_id == "j"
        await transport.aclose()
    assert connections == 2


async def test_close_ends_the_calls_and_leaves_nothing_open() -> None:
    is_asked, has_gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        is_asked.set()
        await silent(reader, writer)
        has_gone.set()

    async with listening(serve) as url, asyncio.timeout(10), asyncio.TaskGroup() as group:
        transport = RestTransport(url)
        call = group.create_task(failure(transport))
        await is_asked.wait()
        await transport.aclose()
        await transport.aclose()
        assert (await call).outcome == "unknown"
        await has_gone.wait()
        after = await failure(transport)
        assert (after.outcome, "closed" in after.message) == ("not_applied", True)


async def failure(transport: RestTransport) -> TransportConnectionError:
    with pytest.raises(TransportConnectionError) as caught:
        await transport.call(SUBMIT_JOB, SubmitJob())
    return caught.value


async def test_user_in_the_url_is_told_in_a_header_and_in_no_error() -> None:
    server = Server(OK)
    async with listening(server.serve) as url:
        with_user = url.replace("//", "//me:s%3Acret@")
        async with submitting(RestTransport(with_user)) as submit:
            await submit()
    assert b"authorization: basic bwu6czpjcmv0\r\n" in server.heads[0].lower()
    async with submitting(RestTransport(with_user)) as submit:  # nobody listens there now
        with pytest.raises(TransportConnectionError) as caught:
            await submit()
    assert "cret" not in str(caught.value)


async def test_transport_of_the_user_takes_the_place_of_its_own() -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://broker.example/queue/v1/jobs"
        assert request.extensions["timeout"]["read"] is None
        return httpx.Response(200, json={"jobId": "mine"})

    transport = RestTransport("http://broker.example/queue", http_transport=httpx.MockTransport(reply))
    async with submitting(transport) as submit:
        assert await submit() == "mine"


def test_it_works_on_uvloop_whose_transports_are_no_subclass_of_asyncios() -> None:
    async def calls() -> None:
        async with serving(OK) as (server, submit):
            assert [await submit() for _ in range(3)] == ["j", "j", "j"]
            assert server.connections == 1

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(calls())
