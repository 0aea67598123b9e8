"""How the REST transport comes by a connection: cancelled at any moment, and to a host with several addresses."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trustme
import uvloop
from client.support import answer, free_port, silent, until

from osqueue_client import TransportConnectionError
from osqueue_client.models import SubmitJob
from osqueue_client.operations import SUBMIT_JOB
from osqueue_client.transports import http1
from osqueue_client.transports.rest import RestTransport

OK = answer(200, b'{"jobId":"j"}', "application/json")
NAME = "broker.test"

Run: TypeAlias = Callable[[Coroutine[object, object, None]], None]


class AsyncioLoop(asyncio.SelectorEventLoop):
    """Knows the addresses of one name."""

    addresses: tuple[str, ...] = ()

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        if host == NAME:
            return [found(address, port) for address in self.addresses]
        return await super().getaddrinfo(host, port, **options)


class UvLoop(uvloop.Loop):
    """Knows the addresses of one name."""

    addresses: tuple[str, ...] = ()

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        if host == NAME:
            return [found(address, port) for address in self.addresses]
        return await super().getaddrinfo(host, port, **options)


def found(address: str, port: int) -> tuple[object, ...]:
    return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]


@pytest.fixture(params=[AsyncioLoop, UvLoop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on an event loop of either kind."""

    def run_on_it(main: Coroutine[object, object, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(main, 30))

    return run_on_it


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def name_has(*addresses: str) -> None:
    loop: Any = asyncio.get_running_loop()
    loop.addresses = addresses


class Server:
    """Answers every request; knows its connections."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                await reader.readuntil(b"\r\n\r\n{}")
                writer.write(OK)
        writer.close()
        self.open -= 1


@asynccontextmanager
async def serving(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, host, 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in server.writers:
            writer.transport.abort()


@contextmanager
def deaf(port: int) -> Iterator[str]:
    """An address that lets nobody connect and refuses nobody, at a port; yields it."""
    address = "127.0.0.9"
    with socket.socket() as listener, socket.socket() as first:
        listener.bind((address, port))
        listener.listen(0)
        first.connect((address, port))  # from now on there is no room for another
        yield address


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """The resources that the collector found left open."""
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        told: list[str] = []
        yield told
        gc.collect()
        told += [str(warning.message) for warning in seen]


async def submit(transport: RestTransport) -> str:
    return (await transport.call(SUBMIT_JOB, SubmitJob())).job_id


async def cancel_after(ticks: int, url: str, ca_file: Path | None) -> None:
    transport = RestTransport(url, ca_file=ca_file)
    call = asyncio.create_task(submit(transport))
    for _ in range(ticks):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait((call,))
    await transport.aclose()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", NAME])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_call_that_is_cancelled_while_it_connects_leaves_nothing_open(
    run: Run, authority: trustme.CA, tmp_path: Path, host: str, scheme: str
) -> None:
    context, ca_file = None, None
    if scheme == "https":
        context, ca_file = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / "ca.pem"
        authority.issue_cert("127.0.0.1", "localhost", NAME).configure_cert(context)
        authority.cert_pem.write_to_path(str(ca_file))

    async def calls() -> None:
        name_has("127.0.0.1", "127.0.0.1", "::1")
        async with serving("127.0.0.1", context) as server:
            with noted_warnings() as left:
                for ticks in range(30 if context is None else 60):
                    for _ in range(5):
                        await cancel_after(ticks, f"{scheme}://{host}:{server.port}", ca_file)
                for _ in range(5):
                    await asyncio.sleep(0)
            assert left == []

    with noted_warnings() as left_at_the_end:
        run(calls())
    assert left_at_the_end == []


def test_cancellation_passes_through_while_the_other_addresses_are_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "_HEAD_START", 0.01)

    async def cancelled_after(turns: int, server: Server, nowhere: str) -> bool:
        """Whether a call is cancelled so many turns after an address has answered and another has not."""
        loop: Any = asyncio.get_running_loop()
        name_has(nowhere, "127.0.0.1")
        transport = RestTransport(f"http://{NAME}:{server.port}")
        call = asyncio.create_task(submit(transport))
        sock_connect = type(loop).sock_connect

        def cancel_in(turns: int) -> None:
            if turns:
                loop.call_soon(cancel_in, turns - 1)
            else:
                call.cancel()

        async def connect(sock: socket.socket, address: tuple[Any, ...]) -> None:
            await sock_connect(loop, sock, address)
            if address[0] != nowhere:
                cancel_in(turns)

        loop.sock_connect = connect
        await asyncio.wait((call,))
        await transport.aclose()
        return call.cancelled()

    async def calls() -> None:
        async with serving() as server:
            with deaf(server.port) as nowhere, noted_warnings() as left:
                cancelled = [await cancelled_after(turns, server, nowhere) for turns in range(8)]
            assert (cancelled, left) == ([True] * 8, [])

    run(calls())


def test_address_needs_no_thread() -> None:
    async def calls() -> None:
        may_end = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            threads.submit(may_end.wait)
            try:
                async with serving() as server:
                    transport = RestTransport(f"http://127.0.0.1:{server.port}")
                    assert await asyncio.wait_for(submit(transport), 5) == "j"
                    await transport.aclose()
            finally:
                may_end.set()

    with asyncio.Runner() as runner:
        runner.run(calls())


def test_address_that_does_not_answer_holds_nobody_up_for_long(run: Run) -> None:
    async def calls() -> None:
        async with serving() as server:
            with deaf(server.port) as nowhere:
                name_has(nowhere, "127.0.0.1")
                for _ in range(2):
                    transport = RestTransport(f"http://{NAME}:{server.port}")
                    assert await asyncio.wait_for(submit(transport), 3) == "j"
                    await transport.aclose()

    run(calls())


def test_address_that_refuses_is_passed_over_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "_HEAD_START", 60.0)

    async def calls() -> None:
        async with serving() as server:
            name_has("127.0.0.9", "127.0.0.8", "127.0.0.1")
            transport = RestTransport(f"http://{NAME}:{server.port}")
            assert await asyncio.wait_for(submit(transport), 3) == "j"
            await transport.aclose()

    run(calls())


def test_connections_that_come_second_are_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "_HEAD_START", 0.0)

    async def calls() -> None:
        async with serving() as server:
            name_has(*["127.0.0.1"] * 8)
            with noted_warnings() as left:
                transport = RestTransport(f"http://{NAME}:{server.port}")
                for _ in range(3):
                    assert await submit(transport) == "j"
                await until(lambda: server.open == 1)
                await transport.aclose()
            assert left == []

    run(calls())


def test_what_the_first_address_failed_with_is_told_where_all_fail(run: Run) -> None:
    async def calls() -> None:
        port = free_port()
        name_has("127.0.0.9", "127.0.0.8")
        for host in (NAME, "127.0.0.1"):
            transport = RestTransport(f"http://{host}:{port}")
            with pytest.raises(
                TransportConnectionError, match=r"cannot connect.*Connection refused"
            ) as caught:
                await submit(transport)
            assert caught.value.outcome == "not_applied"
            await transport.aclose()

    run(calls())


def test_time_to_connect_is_limited_for_all_addresses_together(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osqueue_client.transports.http1.CONNECT_TIMEOUT", 0.4)

    async def calls() -> None:
        with deaf(free := free_port()) as nowhere:
            name_has(nowhere, nowhere, nowhere)
            for host in (NAME, nowhere):
                transport = RestTransport(f"http://{host}:{free}")
                begun = time.perf_counter()
                with pytest.raises(TransportConnectionError, match="no connection within") as caught:
                    await submit(transport)
                assert caught.value.outcome == "not_applied"
                assert time.perf_counter() - begun < 3
                await transport.aclose()

    run(calls())


def test_name_that_nobody_has_was_sent_nothing(run: Run) -> None:
    async def calls() -> None:
        transport = RestTransport("http://no-such-host.invalid:80")
        with pytest.raises(TransportConnectionError) as caught:
            await submit(transport)
        assert caught.value.outcome == "not_applied"
        await transport.aclose()

    run(calls())


def test_connection_that_has_ended_before_the_request_was_sent_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The winner of several addresses is known a few turns of the event loop later, in which it can end."""
    connected = http1.Http1Transport._connected
    has_ended = asyncio.Event()

    async def late(transport: http1.Http1Transport) -> Any:
        connection = await connected(transport)
        await has_ended.wait()
        await asyncio.wait((connection.ended,))
        return connection

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        has_ended.set()
        await silent(reader, writer)

    monkeypatch.setattr(http1.Http1Transport, "_connected", late)

    async def calls() -> None:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        transport = RestTransport(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        try:
            with pytest.raises(TransportConnectionError, match="closed it at once") as caught:
                await asyncio.wait_for(submit(transport), 5)
            assert caught.value.outcome == "not_applied"
        finally:
            await transport.aclose()
            listener.close()

    run(calls())
