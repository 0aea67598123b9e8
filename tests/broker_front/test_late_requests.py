"""A request that arrives too slowly, or not at all: its connection does not stay open for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from broker_front.support import Front, RecordingService, front_app, serving
from websockets.asyncio.client import connect

from osqueue_broker import BrokerSettings
from osqueue_client.errors import ConfigError

LIMIT = 0.2
HEAD = b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\n"
BODY = HEAD + b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
CHUNKED = HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"
RPC_BODY = BODY.replace(b"/v1/jobs", b"/osqueue.v1.QueueService/SubmitJob")
HANDSHAKE = b"GET /v1/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
WHOLE = b"GET /v1/stats HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def front(service: RecordingService) -> AsyncIterator[Front]:
    async with serving(front_app(service), receive_timeout=LIMIT) as front:
        yield front


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        return await reader.read()


@pytest.mark.parametrize(
    "data",
    [HEAD[:5], HEAD, BODY, CHUNKED, RPC_BODY, HANDSHAKE],
    ids=["line", "head", "body", "chunk", "rpc", "handshake"],
)
async def test_a_request_that_does_not_arrive_in_time_is_answered_408(
    front: Front, service: RecordingService, data: bytes
) -> None:
    reader, writer = await asyncio.open_connection(*front.listener.address)
    writer.write(data)
    answer = await read_to_end(reader)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert b'"_tag":"BrokerProtocolError"' in answer
    assert service.calls == []


async def test_bytes_that_trickle_in_do_not_prolong_the_time(front: Front, service: RecordingService) -> None:
    reader, writer = await asyncio.open_connection(*front.listener.address)

    async def trickle() -> None:
        writer.write(BODY)
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(LIMIT / 20)

    trickling = asyncio.create_task(trickle())
    try:
        async with asyncio.timeout(5):
            assert b" 408 " in await reader.readline()
    finally:
        trickling.cancel()
        writer.close()
    assert service.calls == []


async def test_the_next_request_of_a_connection_has_its_own_time(front: Front) -> None:
    reader, writer = await asyncio.open_connection(*front.listener.address)
    writer.write(WHOLE + HEAD)  # the second one begins with the end of the first
    answer = await read_to_end(reader)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.index(b'"total":1') < answer.index(b"HTTP/1.1 408")


async def test_a_request_under_way_has_its_time_though_the_next_one_is_late(
    front: Front, service: RecordingService
) -> None:
    service.gate.clear()
    reader, writer = await asyncio.open_connection(*front.listener.address)
    writer.write(WHOLE + HEAD)
    await service.until(lambda: len(service.calls) == 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 3 * LIMIT)
    service.gate.set()
    answer = await read_to_end(reader)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"HTTP/1.1 408" in answer


async def test_what_follows_an_early_refusal_is_cut_without_a_second_answer(front: Front) -> None:
    reader, writer = await asyncio.open_connection(*front.listener.address)
    writer.write(BODY.replace(b"length: 100", b"length: 9999999"))
    answer = await read_to_end(reader)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_idle_connections_and_websockets_stay(front: Front, service: RecordingService) -> None:
    fresh, fresh_writer = await asyncio.open_connection(*front.listener.address)
    kept, kept_writer = await asyncio.open_connection(*front.listener.address)
    kept_writer.write(WHOLE)
    async with connect(front.ws, proxy=None) as socket, asyncio.timeout(10):
        late, late_writer = await asyncio.open_connection(*front.listener.address)
        late_writer.write(HEAD)
        assert b" 408 " in await late.readline()  # later than all the others
        late_writer.close()
        await socket.send('{"id":1,"method":"getStats"}')
        assert '"ok":true' in str(await socket.recv())
        for reader, writer in ((fresh, fresh_writer), (kept, kept_writer)):
            writer.write(WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            assert (await reader.read()).endswith(b"}")
            writer.close()
    assert len(service.calls) == 4


async def test_a_connection_that_never_sends_is_closed_like_an_idle_one(front: Front) -> None:
    front.listener._server.config.timeout_keep_alive = 0.1  # type: ignore[assignment]  # whole seconds are long in a test
    reader, writer = await asyncio.open_connection(*front.listener.address)
    assert await read_to_end(reader) == b""
    writer.close()


def test_the_limit_is_a_setting_that_is_checked() -> None:
    assert BrokerSettings().receive_timeout == 30
    with pytest.raises(ConfigError, match="receive_timeout"):
        BrokerSettings(receive_timeout=0)
