"""The listener: a guest in a running event loop that ends when it is told to, whatever its clients do."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from broker_front.support import Front, RecordingService, front_app, serving
from websockets.asyncio.client import connect

from osqueue_broker.listener import bind

GRACE = 0.5
SOON = 1.5
"""Seconds within which a stop with `GRACE` must have ended."""

HALF_HEAD = b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\n"
HALF_BODY = HALF_HEAD + b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
CHUNKED = HALF_HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"
RPC_BODY = HALF_BODY.replace(b"/v1/jobs", b"/osqueue.v1.QueueService/SubmitJob")
IDLE = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


def host_of(front: Front) -> tuple[str, int]:
    return front.listener.address


async def connect_until_refused(host: str, port: int) -> None:
    while True:
        _, writer = await asyncio.open_connection(host, port)
        writer.close()


@pytest.fixture
async def opened(front: Front) -> AsyncIterator[Callable[[bytes], Awaitable[asyncio.StreamReader]]]:
    writers: list[asyncio.StreamWriter] = []

    async def open_with(data: bytes) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(*host_of(front))
        writers.append(writer)
        writer.write(data)
        await writer.drain()
        return reader

    yield open_with
    for writer in writers:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [b"", HALF_HEAD, HALF_BODY, CHUNKED, RPC_BODY, IDLE],
    ids=["nothing", "head", "body", "chunk", "rpc", "idle"],
)
async def test_stop_ends_within_the_grace_period_whatever_a_client_has_left_unfinished(
    front: Front, http: httpx.AsyncClient, opened: Any, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader = await opened(data)
    assert (await http.get("/healthz")).status_code == 200  # by now the server has seen the other, too
    with caplog.at_level(logging.WARNING, "osqueue"):
        async with asyncio.timeout(SOON):
            await front.stop(GRACE)
            while await reader.read(1000):
                pass
    assert [record for record in caplog.records if record.name.startswith("osqueue")] == []


async def test_stop_with_idle_connections_does_not_wait_for_the_grace_period(
    front: Front, http: httpx.AsyncClient, opened: Any
) -> None:
    await opened(IDLE)
    await opened(b"")
    async with connect(front.ws, proxy=None):
        assert (await http.get("/healthz")).status_code == 200
        async with asyncio.timeout(SOON):
            await front.stop(30)


async def test_stop_finishes_the_requests_under_way(
    front: Front, http: httpx.AsyncClient, service: RecordingService
) -> None:
    service.gate.clear()
    async with asyncio.TaskGroup() as group, asyncio.timeout(10):
        asking = group.create_task(http.post("/v1/jobs", json={"payload": 1}))
        await service.until(lambda: len(service.calls) == 1)
        stopping = group.create_task(front.stop(30))
        with pytest.raises(ConnectionError):
            await connect_until_refused(*host_of(front))
        assert not stopping.done()
        service.gate.set()
    assert asking.result().json() == {"jobId": "id-1"}
    assert asking.result().headers["connection"] == "close"


async def test_a_request_that_outlasts_the_grace_period_is_cancelled_and_awaited(
    front: Front, http: httpx.AsyncClient, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    service.gate.clear()
    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(10):
            asking = asyncio.ensure_future(http.post("/v1/jobs", json={"payload": 1}))
            await service.until(lambda: len(service.calls) == 1)
            await front.stop(0.1)
            assert service.cancelled == 1
            with pytest.raises(httpx.TransportError):
                await asking
    assert caplog.records == []


async def test_a_websocket_with_a_request_under_way_and_a_reader_that_reads_nothing_end_too(
    front: Front, service: RecordingService
) -> None:
    service.gate.clear()
    async with connect(front.ws, proxy=None) as socket:
        await socket.send('{"id":1,"method":"getStats"}')
        await service.until(lambda: len(service.calls) == 1)
        async with asyncio.timeout(SOON):
            await front.stop(GRACE)


async def test_signal_handlers_stay_those_of_the_program(service: RecordingService) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serving(front_app(service)):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_taken_port_is_an_os_error_and_nothing_is_left_open() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::"])
async def test_every_kind_of_host_is_bound_and_says_its_real_port(host: str) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with bind(host, 0) as sock:
        port = sock.getsockname()[1]
        assert port > 0
        _, writer = await asyncio.open_connection("::1" if ":" in host else "127.0.0.1", port)
        writer.close()


async def test_the_wildcard_of_ipv6_takes_ipv4_too() -> None:
    with bind("::", 0) as sock:
        _, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        writer.close()


async def test_answers_carry_a_date_and_not_the_name_of_the_server(http: httpx.AsyncClient) -> None:
    answer = await http.get("/healthz")
    assert answer.headers["date"].endswith("GMT")
    assert "server" not in answer.headers
