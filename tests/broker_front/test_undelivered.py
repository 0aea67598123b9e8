"""An answer that could not be handed to its connection: the service hears of it, whatever the transport."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from broker_front.support import HANDSHAKE, RPC, Front, RecordingService, frame, front_app, serving
from starlette.types import Message
from websockets.asyncio.client import connect

from osqueue_broker.transport import ClientLeft, call_while_connected
from osqueue_client import models, operations

CLAIM = b'{"workerId":"w"}'
REQUEST = models.ClaimJob(worker_id="w")
LOST = "claimJob", REQUEST, models.ClaimedJob
PATHS = {"rest": "/v1/jobs/claim", "connect": f"{RPC}/ClaimJob"}


def head(path: str, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *more]
    return "\r\n".join((*lines, f"content-length: {len(CLAIM)}", "", "")).encode()


def lost(service: RecordingService) -> list[tuple[str, models.Model, type[models.Model]]]:
    return [(name, request, type(answer)) for name, request, answer in service.lost]


async def has_noticed(front: Front) -> None:
    """Return when the front has seen all that happened to its connections before."""
    for _ in range(2):
        reader, writer = await asyncio.open_connection(*front.listener.address)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(10):
            assert b" 200 " in await reader.read()
        writer.close()


@pytest.mark.parametrize("kind", PATHS)
async def test_a_connection_that_ends_before_its_answer_is_told(
    front: Front, service: RecordingService, kind: str
) -> None:
    service.gate.clear()
    _, writer = await asyncio.open_connection(*front.listener.address)
    writer.write(head(PATHS[kind]) + CLAIM)
    await service.until(lambda: len(service.calls) == 1)
    writer.close()
    await has_noticed(front)
    assert service.lost == []
    service.gate.set()
    await front.stop(1)
    assert lost(service) == [LOST]


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("more", [(), ("connection: close",)], ids=["kept", "closed"])
async def test_an_answer_that_was_sent_is_not_told(
    front: Front, service: RecordingService, kind: str, more: tuple[str, ...]
) -> None:
    reader, writer = await asyncio.open_connection(*front.listener.address)
    writer.write(head(PATHS[kind], *more) + CLAIM)
    async with asyncio.timeout(10):
        await reader.readuntil(b'"jobId":"id-1"')
    writer.close()
    await front.stop(1)
    assert service.lost == []


@pytest.mark.parametrize("kind", PATHS)
async def test_a_request_behind_one_that_closes_the_connection_is_told(
    front: Front, service: RecordingService, kind: str
) -> None:
    service.gate.clear()
    reader, writer = await asyncio.open_connection(*front.listener.address)
    writer.write(head(PATHS[kind]) + CLAIM + head(PATHS[kind]) + CLAIM)
    await service.until(lambda: len(service.calls) == 1)
    writer.transport.abort()
    await has_noticed(front)
    service.gate.set()
    await front.stop(1)
    assert lost(service) == [LOST] * len(service.calls)
    assert not await reader.read()


async def test_websocket_answers_that_find_the_session_ended_are_told(
    front: Front, service: RecordingService
) -> None:
    service.gate.clear()
    async with connect(front.ws, proxy=None) as socket:
        for id in range(3):
            await socket.send(json.dumps({"id": id, "method": "claimJob", "params": {"workerId": "w"}}))
        await service.until(lambda: len(service.calls) == 3)
    await has_noticed(front)
    assert service.lost == []
    service.gate.set()
    await front.stop(1)
    assert lost(service) == [LOST] * 3


async def test_websocket_answers_that_are_sent_are_not_told(front: Front, service: RecordingService) -> None:
    async with connect(front.ws, proxy=None) as socket:
        await socket.send('{"id":1,"method":"claimJob","params":{"workerId":"w"}}')
        async with asyncio.timeout(10):
            assert "id-1" in str(await socket.recv())
    await front.stop(1)
    assert service.lost == []


async def test_websocket_answers_that_wait_for_a_peer_that_does_not_read_are_told_when_it_is_cut_off(
    service: RecordingService,
) -> None:
    service.answers[models.DeadJobList] = models.DeadJobList(
        jobs=(), total=0, next_cursor="x" * 16 * 1024 * 1024
    )
    async with serving(front_app(service)) as front:
        reader, writer = await asyncio.open_connection(*front.listener.address)
        writer.write(HANDSHAKE + b"\r\n")
        async with asyncio.timeout(10):
            await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(b'{"id":1,"method":"listDead"}'))
        for id in (2, 3):
            writer.write(frame(b'{"id":%d,"method":"claimJob","params":%b}' % (id, CLAIM)))
        await service.until(lambda: len(service.calls) == 3)
        await front.stop(0.1)
        writer.close()
    assert lost(service)[-2:] == [LOST] * 2


async def test_a_websocket_peer_that_vanishes_while_the_connection_is_drained_is_told(
    front: Front, service: RecordingService
) -> None:
    service.gate.clear()
    socket = await connect(front.ws, proxy=None)
    await socket.send('{"id":1,"method":"claimJob","params":{"workerId":"w"}}')
    await service.until(lambda: len(service.calls) == 1)
    draining = asyncio.create_task(front.app.drain())
    socket.transport.abort()
    await socket.close()
    await has_noticed(front)
    service.gate.set()
    async with asyncio.timeout(10):
        await draining
    assert lost(service) == [LOST]


# Servers that are not ours


def scope_of(path: str) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(CLAIM))]
    return {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "extensions": {},
    }  # fmt: skip


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": CLAIM, "more_body": False}


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("failing", ["http.response.start", "http.response.body"])
async def test_a_server_that_says_at_sending_that_the_peer_has_gone_is_believed(
    service: RecordingService, kind: str, failing: str
) -> None:
    async def send(message: dict[str, Any]) -> None:
        if message["type"] == failing:
            raise OSError("the peer has gone")

    with pytest.raises(OSError, match="the peer has gone"):
        await front_app(service)(scope_of(PATHS[kind]), receive, send)  # type: ignore[arg-type]  # close enough
    assert lost(service) == [LOST]


@pytest.mark.parametrize("kind", PATHS)
async def test_a_server_that_says_nothing_is_taken_to_have_sent_the_answer(
    service: RecordingService, kind: str
) -> None:
    sent: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    await front_app(service)(scope_of(PATHS[kind]), receive, send)  # type: ignore[arg-type]  # close enough
    assert sent == ["http.response.start", "http.response.body"]
    assert service.lost == []


@pytest.mark.parametrize("kind", PATHS)
async def test_a_request_that_is_cancelled_while_its_answer_is_sent_is_told(
    service: RecordingService, kind: str
) -> None:
    is_sending = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        is_sending.set()
        await asyncio.Event().wait()  # the peer does not read

    app = front_app(service)
    task = asyncio.ensure_future(app(scope_of(PATHS[kind]), receive, send))  # type: ignore[arg-type]  # close enough
    await is_sending.wait()
    task.cancel()
    await asyncio.wait((task,), timeout=0.1)  # connectrpc would still say that it was cancelled
    task.cancel()
    await asyncio.wait((task,), timeout=10)
    assert lost(service) == [LOST]


@pytest.mark.parametrize("how", ["hung up", "cancelled"])
async def test_an_answer_that_comes_together_with_the_end_of_its_request_is_told(
    service: RecordingService, how: str
) -> None:
    waiting = models.ClaimJob(worker_id="w", wait=10.0)
    end = asyncio.Event()

    async def receive() -> Message:
        await end.wait()
        return {"type": "http.disconnect"}

    service.gate.clear()
    request = asyncio.create_task(call_while_connected(service, operations.CLAIM_JOB, waiting, receive))
    await service.until(lambda: len(service.calls) == 1)
    service.gate.set()
    end.set()
    if how == "cancelled":
        end.clear()
        for _ in range(2):
            await asyncio.sleep(0)  # the call ends, but the request has not seen it
        request.cancel()
    with pytest.raises(asyncio.CancelledError if how == "cancelled" else ClientLeft):
        await request
    assert lost(service) == [("claimJob", waiting, models.ClaimedJob)] or service.cancelled == 1
    assert len(service.lost) + service.cancelled == 1
