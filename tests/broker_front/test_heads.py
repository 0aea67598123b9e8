"""Requests with heads that are too large, or that are none: refused in our form, and never kept."""

from __future__ import annotations

import asyncio
import logging

import pytest
from broker_front.support import Front, RecordingService

from osqueue_broker.connection import HEAD_LIMIT

LINE = b"GET /v1/stats HTTP/1.1\r\nhost: x\r\n"
WHOLE = LINE + b"\r\n"
LAST = LINE + b"connection: close\r\n\r\n"
CHUNKED = (
    b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b'transfer-encoding: chunked\r\n\r\nd\r\n{"payload":1}\r\n0\r\n'
)
MANY = b"".join(b"a%d: b\r\n" % number for number in range(HEAD_LIMIT // 4))


async def exchange(front: Front, *pieces: bytes) -> bytes:
    """Send the pieces one by one, each when the one before has left; return all that is answered."""
    reader, writer = await asyncio.open_connection(*front.listener.address)
    try:
        async with asyncio.timeout(20):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        LINE + b"a: " + b"x" * 2 * HEAD_LIMIT + b"\r\n\r\n",
        LINE + b"a: " + b"x" * 10 * HEAD_LIMIT,
        LINE + b"x" * 10 * HEAD_LIMIT,
        LINE + MANY * 4,
        LINE + MANY + b"\r\n",
        b"GET /" + b"x" * 2 * HEAD_LIMIT + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /" + b"x" * 10 * HEAD_LIMIT,
        CHUNKED + b"a: " + b"x" * 10 * HEAD_LIMIT,
        CHUNKED + MANY * 4,
    ],
    ids=["whole", "value", "name", "many", "many, whole", "line, whole", "line", "trailer", "trailers"],
)
async def test_a_head_that_is_too_large_is_refused_however_it_comes(
    front: Front, service: RecordingService, data: bytes
) -> None:
    for size in (len(data), 5000):
        answer = await exchange(front, *(data[at : at + size] for at in range(0, len(data), size)))
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answer
        assert b'"_tag":"BrokerProtocolError"' in answer
        assert b"65,536 bytes" in answer
    assert service.calls == []


async def test_a_head_just_below_the_limit_is_taken_and_so_are_many_that_come_at_once(front: Front) -> None:
    large = b"a: " + b"x" * (HEAD_LIMIT - 200) + b"\r\n"
    answer = await exchange(front, LINE + large, LAST.removeprefix(LINE))
    assert answer.startswith(b"HTTP/1.1 200 ")
    answer = await exchange(front, WHOLE * 3000 + LINE + large + b"connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 3001


async def test_a_body_is_no_head(front: Front) -> None:
    head = CHUNKED.partition(b"d\r\n{")[0]
    chunks = [b"f\r\n" + b" " * 15 + b"\r\n"] * 20_000
    answer = await exchange(
        front, head.replace(b"host: x", b"connection: close"), *chunks, b"2\r\n{}\r\n0\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("bad", "status"),
    [(LINE + b"a: " + b"x" * 10 * HEAD_LIMIT, 431), (b"no http\r\n\r\n", 400)],
    ids=["large", "none"],
)
async def test_the_requests_before_it_are_answered_first(
    front: Front, service: RecordingService, bad: bytes, status: int
) -> None:
    service.gate.clear()
    asking = asyncio.ensure_future(exchange(front, WHOLE * 2 + bad))
    await service.until(lambda: len(service.calls) == 1)
    service.gate.set()
    answer = await asking
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.rindex(b"HTTP/1.1 200 ") < answer.index(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize(
    "data", [b"no http at all\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x00\xa5" * 9]
)
async def test_what_is_no_http_is_refused_in_our_form(front: Front, data: bytes) -> None:
    answer = await exchange(front, data)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'"_tag":"BrokerProtocolError"' in answer


async def test_a_body_that_goes_wrong_is_refused_once(front: Front, service: RecordingService) -> None:
    answer = await exchange(front, CHUNKED.replace(b"\r\n0\r\n", b"\r\nnone\r\n"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"content-length") == 1
    assert service.calls == []


async def test_an_application_that_waits_for_such_a_body_is_not_to_answer_too(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection(*front.listener.address)
    request = CHUNKED.removesuffix(b"0\r\n").replace(b"/v1/jobs", b"/osqueue.v1.QueueService/SubmitJob")
    writer.write(request.replace(b"host: x", b"host: x\r\nconnect-timeout-ms: 300"))
    async with asyncio.timeout(10):
        tasks = front.listener._server.server_state.tasks
        while not tasks:
            await asyncio.sleep(0.002)
        with caplog.at_level(logging.ERROR):
            writer.write(b"none\r\n")
            answer = await reader.read()
            while tasks:  # bounded by the deadline
                await asyncio.sleep(0.002)
            await asyncio.sleep(0)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"content-length") == 1
    assert caplog.records == []
