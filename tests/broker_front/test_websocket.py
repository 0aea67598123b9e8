"""WebSocket: many requests on one connection, and what becomes of them when either side goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from broker_front.support import HANDSHAKE, Front, RecordingService, frame, front_app, serving
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from osqueue_broker.connection import PiecewiseWebSocketProtocol
from osqueue_broker.websocket import MAX_BYTES_IN_FLIGHT, MAX_IN_FLIGHT, WebSocketEndpoint
from osqueue_client import models, wire_json
from osqueue_client.errors import LeaseLostError, QueueFullError

STATS = '{"id":%d,"method":"getStats"}'


@pytest.fixture
async def socket(front: Front) -> AsyncIterator[ClientConnection]:
    async with connect(front.ws, proxy=None, max_size=None) as socket:
        yield socket


async def answer_of(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(10):
        answer: dict[str, Any] = json.loads(await socket.recv())
        return answer


async def ask(socket: ClientConnection, text: str | bytes) -> dict[str, Any]:
    await socket.send(text)
    return await answer_of(socket)


@pytest.mark.parametrize(
    "id", ["1", "-0.0", "12345678901234567890123", '"x"', "null", "[1, 2]", '{"a":  1.50}']
)
async def test_the_id_comes_back_as_it_was_written(socket: ClientConnection, id: str) -> None:
    await socket.send(f'{{"id":{id},"method":"getStats","params":{{}}}}')
    async with asyncio.timeout(10):
        assert f'"id":{id},' in str(await socket.recv())
    await socket.send(f'{{"params":7,"method":"getStats","id":{id}}}')
    async with asyncio.timeout(10):
        assert f'"id":{id},' in str(await socket.recv())


@pytest.mark.parametrize(
    "text", ['{"id":1,"method":"getStats"}', '{"id":1,"method":"getStats","params":null}']
)
async def test_params_may_be_left_out(socket: ClientConnection, text: str) -> None:
    assert (await ask(socket, text))["result"]["total"] == 1
    assert (await ask(socket, text.encode()))["id"] == 1


@pytest.mark.parametrize(
    ("text", "id", "named"),
    [
        ("{", None, ""),
        ("[]", None, ""),
        ("5", None, ""),
        ('{"id":1}', 1, "method"),
        ('{"id":1,"method":5}', 1, "method"),
        ('{"id":1,"method":null}', 1, "method"),
        ('{"id":1,"method":"no/such"}', 1, "no/such"),
        ('{"id":1,"method":"claimJob"}', 1, "workerId"),
        ('{"id":1,"method":"claimJob","params":[]}', 1, ""),
        ('{"method":"claimJob","params":{"workerId":5}}', None, "workerId"),
        ('{"id":' + "[" * 100_000 + "]" * 100_000 + ',"method":"getStats"}', None, "nested"),
        ('{"id":1,"x":' + "[" * 100_000, None, "nested"),
        ('{"id":1,"x":' + "[" * 300 + "]" * 300 + "}", 1, "nested"),
    ],
    ids=range(13),
)
async def test_a_bad_message_is_answered_and_the_connection_stays(
    socket: ClientConnection, text: str, id: object, named: str
) -> None:
    answer = await ask(socket, text)
    assert (answer["id"], answer["ok"]) == (id, False)
    assert answer["error"]["_tag"] == "BrokerProtocolError"
    assert named in answer["error"]["message"]
    assert (await ask(socket, STATS % 2))["ok"] is True


async def test_our_errors_keep_their_fields(socket: ClientConnection, service: RecordingService) -> None:
    service.error = QueueFullError("full", retry_after=2.0)
    assert (await ask(socket, STATS % 1))["error"] == {
        "_tag": "QueueFullError", "message": "full", "outcome": "not_applied", "retryAfter": 2.0,
    }  # fmt: skip
    service.error = LeaseLostError("lost")
    assert (await ask(socket, STATS % 1))["error"]["_tag"] == "LeaseLostError"


async def test_a_fault_of_ours_is_logged_once_and_ends_nothing(
    socket: ClientConnection, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = RuntimeError("secret")
    with caplog.at_level(logging.INFO):
        answer = await ask(socket, STATS % 1)
    assert (answer["id"], answer["error"]["_tag"]) == (1, "EngineStateError")
    assert "secret" not in json.dumps(answer)
    assert len([record for record in caplog.records if record.exc_info]) == 1
    service.error = None
    assert (await ask(socket, STATS % 2))["ok"] is True


async def test_requests_wait_for_each_other_only_when_there_are_too_many(
    socket: ClientConnection, service: RecordingService
) -> None:
    service.gate.clear()
    asked = MAX_IN_FLIGHT + 200
    for number in range(asked):
        await socket.send(STATS % number)
    await service.until(lambda: len(service.calls) == MAX_IN_FLIGHT)
    assert (await asyncio.wait_for(socket.ping(), 10)) is not None
    assert len(service.calls) == MAX_IN_FLIGHT
    service.gate.set()
    answers = [await answer_of(socket) for _ in range(asked)]
    assert {answer["id"] for answer in answers} == set(range(asked))


async def test_a_peer_that_does_not_read_is_kept_waiting_and_harms_nobody(
    front: Front, http: httpx.AsyncClient, service: RecordingService
) -> None:
    job = models.JobInfo(
        id="x" * 1_000_000, status="unclaimed", created_at=0, attempts=0, max_attempts=0, heartbeat=0
    )
    service.answers[models.JobList] = models.JobList(jobs=(job,), total=1, unclaimed=1, in_progress=0)
    asked = 200
    host, _, port = front.host.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=4096)  # stops reading soon
    writer.write(HANDSHAKE + b"\r\n")
    async with asyncio.timeout(30):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(frame(b'{"id":1,"method":"listJobs"}') * asked)
        await service.until(lambda: len(service.calls) > 2)
        for _ in range(100):  # as many turns as it would need to make every answer
            assert (await http.get("/healthz")).status_code == 200
        assert len(service.calls) < asked / 3
        received = 0
        while received < asked * 1_000_000:
            received += len(await reader.read(2**20))
    assert len(service.calls) == asked
    writer.close()


class Peer:
    """A peer at the ASGI seam that sends without end and reads nothing."""

    def __init__(self, endpoint: WebSocketEndpoint, make: Any) -> None:
        self.sent = 0
        self._make = make
        self._endpoint = endpoint
        self._never = asyncio.Event()

    async def receive(self) -> Any:
        if self.sent == 0:
            self.sent = 1
            return {"type": "websocket.connect"}
        await asyncio.sleep(0)
        self.sent += 1
        return {"type": "websocket.receive", "bytes": self._make(self.sent)}

    async def send(self, message: Any) -> None:
        if message["type"] != "websocket.accept":
            await self._never.wait()

    async def sent_in_all(self) -> int:
        """Let the endpoint run until it reads no more, and return how many messages it has read."""
        task = asyncio.ensure_future(self._endpoint({"type": "websocket"}, self.receive, self.send))
        async with asyncio.timeout(30):
            before = -1
            while self.sent != before:
                before = self.sent
                for _ in range(20):
                    await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return self.sent - 1


async def test_messages_over_the_limit_are_not_kept_while_their_refusals_wait(
    service: RecordingService,
) -> None:
    peer = Peer(WebSocketEndpoint(service, 1000), lambda n: b'{"id":"%d","x":"' % n + b"x" * 100_000)
    tracemalloc.start()
    try:
        assert await peer.sent_in_all() == MAX_IN_FLIGHT
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert service.calls == []


async def test_what_is_under_way_is_bounded_by_its_bytes(service: RecordingService) -> None:
    service.gate.clear()
    size = 500_000
    body = b'{"id":1,"method":"submitJob","params":{"payload":"' + b"x" * size + b'"}}'
    peer = Peer(WebSocketEndpoint(service, 1_000_000), lambda _: body)
    assert await peer.sent_in_all() == MAX_BYTES_IN_FLIGHT // size + 1
    assert service.cancelled == len(service.calls) == peer.sent - 1


@pytest.mark.parametrize(("method", "calls"), [("listJobs", 1), ("claimJob", MAX_IN_FLIGHT)])
async def test_one_answer_is_made_at_a_time_and_one_list_is_asked_for(
    service: RecordingService, monkeypatch: pytest.MonkeyPatch, method: str, calls: int
) -> None:
    made: list[object] = []

    def encode(model: models.Model) -> bytes:
        made.append(model)
        return b"{}"

    monkeypatch.setattr(wire_json, "encode", encode)
    text = b'{"id":1,"method":"%b","params":{"workerId":"w"}}' % method.encode()
    peer = Peer(WebSocketEndpoint(service, 1000), lambda _: text)
    assert await peer.sent_in_all() == MAX_IN_FLIGHT
    assert (len(service.calls), len(made)) == (calls, 1)


async def test_a_long_id_of_a_message_over_the_limit_is_not_kept_either(
    socket: ClientConnection,
) -> None:
    for id, kept in (('"x"', "x"), ('"' + "x" * 2000 + '"', None)):
        answer = await ask(socket, '{"id":%s,"y":"%s"}' % (id, "y" * 1_100_000))  # noqa: UP031
        assert (answer["id"], answer["error"]["_tag"]) == (kept, "RequestTooLargeError")


async def test_deflated_messages_are_unpacked_a_few_at_a_time() -> None:
    """One read of 256 KiB may hold 256 MiB of them."""
    has_ended = asyncio.Event()

    async def takes_none(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await has_ended.wait()

    deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
    message = deflate.compress(b" " * 4_000_000) + deflate.flush(zlib.Z_SYNC_FLUSH)
    async with serving(takes_none) as front, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*front.listener.address)
        writer.write(HANDSHAKE + b"sec-websocket-extensions: permessage-deflate\r\n\r\n")
        assert b"permessage-deflate" in await reader.readuntil(b"\r\n\r\n")
        [connection] = front.listener._server.server_state.connections
        assert isinstance(connection, PiecewiseWebSocketProtocol)
        tracemalloc.start()
        try:
            writer.write(frame(message[:-4], is_deflated=True) * 15)
            while connection.queue.empty():
                await asyncio.sleep(0)
            assert 0 < connection.queue.qsize() < 15
            assert tracemalloc.get_traced_memory()[1] < 50_000_000
        finally:
            tracemalloc.stop()
        has_ended.set()
        writer.close()


async def test_half_a_surrogate_pair_is_called_so_under_its_field(socket: ClientConnection) -> None:
    for text, field in (
        ('{"id":1,"method":"claimJob","params":{"workerId":"\\ud800"}}', "workerId"),
        ('{"id":1,"method":"submitJob","params":{"payload":["a\\uDC00"]}}', "payload"),
    ):
        error = (await ask(socket, text))["error"]
        assert (error["_tag"], error["field"]) == ("BrokerProtocolError", field)
        assert "lone surrogate" in error["message"]
    pair = '{"id":1,"method":"submitJob","params":{"payload":"\\ud83d\\ude00 \\\\ud800"}}'
    assert (await ask(socket, pair))["ok"] is True


async def test_a_drain_that_is_given_up_leaves_a_peer_that_does_not_read_to_the_listener(
    front: Front, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    job = models.JobInfo(
        id="x" * 5_000_000, status="unclaimed", created_at=0, attempts=0, max_attempts=0, heartbeat=0
    )
    service.answers[models.JobList] = models.JobList(jobs=(job,), total=1, unclaimed=1, in_progress=0)
    reader, writer = await asyncio.open_connection(*front.listener.address, limit=4096)
    writer.write(HANDSHAKE + b"\r\n")
    await reader.readuntil(b"\r\n\r\n")
    writer.write(frame(b'{"id":1,"method":"listJobs"}') * 25)
    await service.until(lambda: len(service.calls) == 2)  # the first answer is made, and not read
    async with connect(front.ws, proxy=None) as reading, asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await front.app.drain()
        with pytest.raises(ConnectionClosed) as closed:
            await reading.recv()  # who reads has been told meanwhile
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        with caplog.at_level(logging.WARNING):
            await front.stop(0.2)
        assert caplog.records == []
    assert len(service.calls) < 25
    writer.close()


async def test_drain_answers_what_was_read_and_then_closes_with_1012(
    front: Front, socket: ClientConnection, service: RecordingService
) -> None:
    service.gate.clear()
    for number in range(3):
        await socket.send(STATS % number)
    await service.until(lambda: len(service.calls) == 3)
    async with connect(front.ws, proxy=None) as idle, asyncio.timeout(10):
        draining = asyncio.ensure_future(front.app.drain())
        with pytest.raises(ConnectionClosed) as closed:
            await idle.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        with pytest.raises(InvalidStatus) as refused:
            await connect(front.ws, proxy=None)
        assert refused.value.response.status_code == 503
        await socket.send(STATS % 4)
        assert not draining.done()
        service.gate.set()
        assert {(await answer_of(socket))["id"] for _ in range(3)} == {0, 1, 2}
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        await draining
    assert len(service.calls) == 3


async def test_what_was_read_is_done_when_the_peer_goes_away(
    front: Front, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    service.gate.clear()
    with caplog.at_level(logging.INFO):
        async with connect(front.ws, proxy=None) as socket:
            for number in range(5):
                await socket.send(STATS % number)
            await service.until(lambda: len(service.calls) == 5)
            socket.transport.abort()
        async with connect(front.ws, proxy=None) as other:
            service.gate.set()
            assert (await ask(other, STATS % 1))["ok"] is True
        await asyncio.wait_for(front.app.drain(), 10)
    assert service.cancelled == 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_fragments_and_pings_between_them(socket: ClientConnection) -> None:
    async def parts() -> AsyncIterator[str]:
        yield '{"id":1,'
        await asyncio.wait_for(await socket.ping(), 10)
        yield '"method":'
        yield '"getStats"}'

    await socket.send(parts())
    assert (await answer_of(socket))["ok"] is True


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_with_and_without_deflate(front: Front, compression: Any) -> None:
    async with connect(front.ws, proxy=None, compression=compression) as socket:
        assert (await ask(socket, STATS % 1))["ok"] is True


async def test_a_query_string_and_a_prefix_make_no_difference(service: RecordingService) -> None:
    async with serving(Starlette(routes=[Mount("/queue", app=front_app(service))])) as front:
        url = f"ws://{front.host}/queue/v1/ws?token=x"
        async with connect(url, proxy=None) as socket:
            assert (await ask(socket, STATS % 1))["ok"] is True
        with pytest.raises(InvalidStatus):
            await connect(f"ws://{front.host}/queue/v1/other", proxy=None)
