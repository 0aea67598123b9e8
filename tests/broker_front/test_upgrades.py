"""Requests that ask for another protocol than HTTP/1.1 and WebSocket: they are served as if they did not ask."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import shutil
from collections.abc import AsyncIterator
from importlib.machinery import ModuleSpec

import pytest
from broker_front.support import Front, RecordingService, front_app, raw_exchange, serving
from msgspec import Raw

from osqueue_broker.connection import HEAD_LIMIT
from osqueue_broker.http2_frames import PREFACE
from osqueue_client import models

H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
"""What curl --http2 asks for."""

LINE = b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def submit(payload: bytes, asks: bytes = H2C) -> bytes:
    body = b'{"payload":%b}' % payload
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (LINE, asks, len(body), body)


def chunked(payload: bytes) -> bytes:
    body = b'{"payload":%b}' % payload
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    return b"%b%btransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % (LINE, H2C, chunks)


def payloads(service: RecordingService) -> list[bytes]:
    found = []
    for _, request in service.calls:
        assert isinstance(request, models.SubmitJob)
        assert isinstance(request.payload, Raw)
        found.append(bytes(request.payload))
    return found


@pytest.fixture(params=[False, True], ids=["http1", "either"])
async def front(service: RecordingService, request: pytest.FixtureRequest) -> AsyncIterator[Front]:
    async with serving(front_app(service), http2=request.param) as front:
        yield front


@pytest.mark.parametrize(
    "request_",
    [
        submit(b"1"),
        chunked(b"1"),
        submit(b"1", b"upgrade: TLS/1.0\r\nconnection: upgrade\r\n"),
        submit(b"1", b"upgrade: websocket, h2c\r\nconnection: keep-alive, Upgrade\r\n"),
        submit(b"1", b"upgrade: h2c\r\nconnection: close, upgrade\r\n"),
    ],
    ids=["h2c", "chunked", "tls", "two", "close"],
)
async def test_an_upgrade_that_is_not_known_is_ignored_and_the_body_is_kept(
    front: Front, service: RecordingService, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = await raw_exchange(front.host, request_ + (b"" if b"close" in request_ else LAST))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'{"jobId":"id-1"}' in answer
    assert b" 101 " not in answer
    assert payloads(service) == [b"1"]
    assert caplog.records == []


async def test_it_may_come_byte_by_byte(front: Front, service: RecordingService) -> None:
    name, port = front.listener.address
    reader, writer = await asyncio.open_connection(name, port)
    async with asyncio.timeout(20):
        for at in range(len(data := submit(b"1") + chunked(b"2") + LAST)):
            writer.write(data[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)
        answer = await reader.read()
    writer.close()
    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert payloads(service) == [b"1", b"2"]


async def test_many_at_once_are_answered_in_order(front: Front, service: RecordingService) -> None:
    count = 1500
    data = b"".join(submit(b"%d" % number, H2C if number % 3 else b"") for number in range(count))
    answer = await raw_exchange(front.host, data + LAST)
    assert answer.count(b"HTTP/1.1 200 ") == count + 1
    assert payloads(service) == [b"%d" % number for number in range(count)]


async def test_its_body_is_no_part_of_its_head_and_its_head_is_limited_as_ever(
    front: Front, service: RecordingService
) -> None:
    large = json.dumps("x" * 4 * HEAD_LIMIT).encode()
    answer = await raw_exchange(front.host, submit(large) + LAST)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert payloads(service) == [large]
    answer = await raw_exchange(front.host, submit(b"1", H2C + b"a: " + b"x" * HEAD_LIMIT + b"\r\n"))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert payloads(service) == [large]


async def test_what_goes_wrong_behind_such_a_head_is_refused(front: Front, service: RecordingService) -> None:
    answer = await raw_exchange(front.host, chunked(b"1").replace(b"\r\n1\r\n", b"\r\nnone\r\n", 1))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"content-length") == 1
    assert service.calls == []


async def test_its_body_has_to_arrive_in_time(service: RecordingService) -> None:
    async with serving(front_app(service), http2=False, receive_timeout=0.2) as front:
        answer = await raw_exchange(front.host, submit(b"1")[:-1])
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert service.calls == []


@pytest.mark.parametrize(("target", "status"), [(b"/v1/jobs", 405), (b"x:80", 400)])
@pytest.mark.parametrize(
    "asks", [b"", H2C, b"connection: upgrade\r\nupgrade: websocket\r\n"], ids=["", "h2c", "ws"]
)
async def test_a_connect_is_refused_whatever_it_asks_for(
    front: Front, asks: bytes, target: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection(*front.listener.address)
    with caplog.at_level(logging.ERROR):
        writer.write(b"CONNECT %b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (target, asks))
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b'"_tag":"BrokerProtocolError"')
    writer.close()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert caplog.records == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
async def test_curl_that_asks_for_http2_is_served(front: Front, service: RecordingService) -> None:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--max-time", "10", "--noproxy", "*", "--http2",
        "--header", "content-type: application/json", "--data", '{"payload":1}', f"{front.http}/v1/jobs",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    told, _ = await process.communicate()
    assert json.loads(told) == {"jobId": "id-1"}
    assert payloads(service) == [b"1"]


# HTTP/2 with prior knowledge


async def preface_answered(front: Front, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*front.listener.address)
    async with asyncio.timeout(10):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # that they come one by one
            await asyncio.sleep(0)
        answer = await reader.read()
    writer.close()
    return answer


async def test_http2_where_it_is_off_is_refused_and_the_log_says_once_how_to_have_it(
    service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with serving(front_app(service), http2=False) as front:
            for pieces in ([PREFACE + bytes(9)], [PREFACE[:7], PREFACE[7:]], [PREFACE]):
                answer = await preface_answered(front, *pieces)
                assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    [record] = caplog.records
    assert (record.name, record.levelname) == ("osqueue.broker.http", "WARNING")
    assert "--http2" in record.message
    assert "pip" not in record.message


async def test_the_log_says_what_to_install_for_http2_where_it_is_missing(
    service: RecordingService, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def find_all_but_zttp(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "zttp" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_all_but_zttp)
    with caplog.at_level(logging.WARNING):
        async with serving(front_app(service), http2=False) as front:
            await preface_answered(front, PREFACE)
    [record] = caplog.records
    assert 'pip install "osqueue-broker[h2]"' in record.message


async def test_a_broker_that_speaks_http2_does_not_say_how_to_have_it(
    service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with serving(front_app(service), http2=True) as front:
            answer = await preface_answered(front, PREFACE.replace(b"SM", b"XX"))
            assert answer.startswith(b"HTTP/1.1 400 ")
    assert [record.message for record in caplog.records if "--http2" in record.message] == []
