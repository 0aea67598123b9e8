"""HTTP/2 and gRPC beside HTTP/1.1 and WebSocket on one port, with clients that nobody here wrote."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # its stubs are a package of their own
import httpx
import pyqwest
import pytest
from broker_front.http2_peer import Answer, Peer, connected
from broker_front.support import RPC, Front, RecordingService, front_app, serving
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from interop.test_curl_and_node import node_and_npm, run
from msgspec import Raw
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect

from osqueue_broker import BrokerServer, http2
from osqueue_broker.http2_frames import PREFACE, FrameBoundaries
from osqueue_client import models, wire_json, wire_proto
from osqueue_client._generated.osqueue.v1 import queue_pb
from osqueue_client.errors import ConfigError, LeaseLostError
from osqueue_client.operations import CLAIM_JOB, OPERATIONS, SUBMIT_JOB, AnyOperation
from osqueue_storage import MemoryBackend

CLAIM = b'{"workerId":"w"}'
CLAIM_PATH = "/v1/jobs/claim"
NODE_CLIENT = Path(__file__).parents[1] / "interop"
LOST = "claimJob", models.ClaimJob(worker_id="w"), models.ClaimedJob
PING = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
GRPC = [("content-type", "application/grpc"), ("te", "trailers")]


@pytest.fixture
async def front(service: RecordingService) -> AsyncIterator[Front]:
    async with serving(front_app(service), http2=True) as front:
        yield front


@pytest.fixture
async def impatient(service: RecordingService) -> AsyncIterator[Front]:
    async with serving(front_app(service), http2=True, receive_timeout=0.2) as front:
        yield front


@pytest.fixture
async def peer(front: Front) -> AsyncIterator[Peer]:
    async with connected(front) as peer:
        yield peer


@pytest.fixture
async def channel(front: Front) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(front.host) as channel:
        yield channel


async def rpc(channel: grpc.aio.Channel, name: str, request: bytes, timeout: float = 10) -> bytes:
    answer: bytes = await channel.unary_unary(f"{RPC}/{name}")(request, timeout=timeout)
    return answer


def connections(front: Front) -> set[Any]:
    return front.listener._server.server_state.connections


def lost(service: RecordingService) -> list[tuple[str, models.Model, type[models.Model]]]:
    return [(name, request, type(answer)) for name, request, answer in service.lost]


def assert_refused(answer: Answer, status: int) -> str:
    """An error of REST in our form; return its message."""
    assert answer.status == status
    fields = json.loads(answer.body)
    assert fields["_tag"] == "BrokerProtocolError"
    return str(fields["message"])


def fields_of(operation: AnyOperation, payload: Any) -> dict[str, Any]:
    """A request that every operation takes, as JSON."""
    job = {"payload": payload} if operation.name == "submitJobs" else {"jobId": "id-1"}
    values = {
        "payload": payload, "workerId": "w", "jobId": "id-1", "error": {"type": "E", "message": "m"}, "jobs": [job],
    }  # fmt: skip
    names = {field.json_name for field in wire_proto.messages_of(operation).request.desc().fields}
    return {name: value for name, value in values.items() if name in names}


# gRPC


async def test_every_operation_is_served_to_a_grpc_client(
    channel: grpc.aio.Channel, service: RecordingService
) -> None:
    for operation in OPERATIONS:
        messages = wire_proto.messages_of(operation)
        request = messages.request.from_json(json.dumps(fields_of(operation, "MQ==")))
        answer = await rpc(channel, operation.rpc, request.to_binary())
        expected = wire_proto.response_to_message(operation, service.answers[operation.response])
        assert (operation.name, answer) == (operation.name, expected.to_binary())
    assert [name for name, _ in service.calls] == [operation.name for operation in OPERATIONS]
    assert service.lost == []


@pytest.mark.parametrize(
    ("name", "request_bytes", "fault", "code", "tag"),
    [
        ("ClaimJob", b"\x0a\x01w", LeaseLostError("gone"), "FAILED_PRECONDITION", "LeaseLostError"),
        ("ClaimJob", b"\x0a\x01w", RuntimeError("secret"), "INTERNAL", "EngineStateError"),
        ("ClaimJob", b"", None, "INVALID_ARGUMENT", "BrokerProtocolError"),
        ("ClaimJob", b"\xff\xff", None, "INVALID_ARGUMENT", "BrokerProtocolError"),
        ("SubmitJob", b"\x0a\x01{", None, "INVALID_ARGUMENT", "BrokerProtocolError"),
        ("SubmitJob", bytes(2 * 1024 * 1024), None, "RESOURCE_EXHAUSTED", "RequestTooLargeError"),
        ("NoSuch", b"", None, "UNIMPLEMENTED", "BrokerProtocolError"),
    ],
    ids=["ours", "fault", "field", "malformed", "payload", "large", "procedure"],
)
async def test_an_error_reaches_a_grpc_client_with_its_code_and_our_tag(
    channel: grpc.aio.Channel,
    service: RecordingService,
    name: str,
    request_bytes: bytes,
    fault: Exception | None,
    code: str,
    tag: str,
) -> None:
    service.error = fault
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await rpc(channel, name, request_bytes)
    error = raised.value
    assert error.code().name == code
    assert error.details()
    assert "secret" not in str(error)
    told = {**dict(error.initial_metadata()), **dict(error.trailing_metadata())}
    assert told["osqueue-error"] == tag
    assert tag.encode() in told["grpc-status-details-bin"]
    service.error = None
    assert await rpc(channel, "GetStats", b"")  # the connection is as good as before


@pytest.mark.parametrize("timeout", ["", "1", "123456789S", "1x", "-1S"])
async def test_a_malformed_grpc_timeout_is_refused(peer: Peer, timeout: str) -> None:
    stream = await peer.ask(f"{RPC}/GetStats", bytes(5), headers=[*GRPC, ("grpc-timeout", timeout)])
    answer = await peer.answer(stream)
    assert (answer.status, answer.headers["grpc-status"]) == (200, "3")
    assert answer.headers["osqueue-error"] == "BrokerProtocolError"
    assert answer.has_ended


@pytest.mark.parametrize(
    "body",
    [b"", b"\0", b"\0\0\0\0\x09a", b"\1\0\0\0\1a", b"\x08\0\0\0\0", b"\0\0\0\0\0" * 2, b"\0\xff\xff\xff\xff"],
    ids=["none", "cut", "cut later", "packed", "flags", "two", "endless"],
)
async def test_a_grpc_message_that_is_packed_wrong_is_its_senders_fault(
    peer: Peer, service: RecordingService, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = await peer.answer(await peer.ask(f"{RPC}/GetStats", body, headers=GRPC))
    assert answer.headers["osqueue-error"] in ("BrokerProtocolError", "RequestTooLargeError")
    assert (answer.body, answer.has_ended) == (b"", True)
    assert service.calls == []
    assert caplog.records == []


async def test_grpc_takes_json_and_gzip_too(peer: Peer) -> None:
    text, packed = CLAIM, gzip.compress(b"\x0a\x01w")
    for kind, encoding, flag, body in (("+json", "identity", b"\0", text), ("", "gzip", b"\1", packed)):
        headers = [
            ("content-type", f"application/grpc{kind}"),
            ("te", "trailers"),
            ("grpc-encoding", encoding),
        ]
        stream = await peer.ask(
            f"{RPC}/ClaimJob", flag + len(body).to_bytes(4, "big") + body, headers=headers
        )
        assert b"id-1" in (await peer.answer(stream)).body


async def test_grpc_over_http1_and_of_unknown_codecs_is_refused(front: Front, peer: Peer) -> None:
    stream = await peer.ask(
        f"{RPC}/GetStats", bytes(5), headers=[("content-type", "application/grpc+thrift")]
    )
    assert (await peer.answer(stream)).status == 415
    async with httpx.AsyncClient(trust_env=False) as http:
        headers = {"content-type": "application/grpc"}
        answer = await http.post(f"{front.http}{RPC}/GetStats", content=bytes(5), headers=headers)
        assert answer.status_code == 415


async def test_a_grpc_deadline_ends_the_call_here_too(
    channel: grpc.aio.Channel, service: RecordingService
) -> None:
    service.gate.clear()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await rpc(channel, "ClaimJob", b"\x0a\x01w", timeout=0.2)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await service.until(lambda: service.cancelled == 1)
    service.gate.set()
    assert await rpc(channel, "GetStats", b"")


async def test_a_deadline_is_answered_to_a_client_that_would_wait_longer(
    peer: Peer, service: RecordingService
) -> None:
    service.gate.clear()
    stream = await peer.ask(
        f"{RPC}/ClaimJob", b"\0\0\0\0\x03\x0a\x01w", headers=[*GRPC, ("grpc-timeout", "50m")]
    )
    await peer.answer(stream)
    assert service.cancelled == 1


async def test_a_grpc_call_that_is_cancelled_takes_nothing_with_it(
    channel: grpc.aio.Channel, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    service.gate.clear()
    kept = asyncio.ensure_future(rpc(channel, "GetStats", b""))
    call = channel.unary_unary(f"{RPC}/ClaimJob")(b"\x0a\x01w", timeout=10)
    async with asyncio.timeout(10):
        while len(service.calls) < 2:
            await asyncio.sleep(0.002)
        with caplog.at_level(logging.WARNING):
            call.cancel()
            await service.until(lambda: service.cancelled == 1)
            service.gate.set()
            assert await kept
    assert caplog.records == []


# Connect and REST over HTTP/2, and the others on the same port


@pytest.mark.parametrize("codec", ["json", "proto"])
async def test_every_operation_is_served_over_connect(
    front: Front, service: RecordingService, codec: str
) -> None:
    async with pyqwest.HTTPTransport(http_version=pyqwest.HTTPVersion.HTTP2) as transport:
        for operation in OPERATIONS:
            text = json.dumps(fields_of(operation, "MQ==")).encode()
            request = wire_proto.messages_of(operation).request.from_json(text)
            content = text if codec == "json" else request.to_binary()
            answer = await pyqwest.Client(transport).post(
                f"{front.http}{RPC}/{operation.rpc}", {"content-type": f"application/{codec}"}, content
            )
            assert (operation.name, answer.status) == (operation.name, 200)
        assert [type(connection) for connection in connections(front)] == [http2.Http2Protocol]
    assert [name for name, _ in service.calls] == [operation.name for operation in OPERATIONS]


async def test_every_operation_is_served_over_rest(front: Front, service: RecordingService) -> None:
    async with httpx.AsyncClient(http1=False, http2=True, trust_env=False) as http:
        for operation in OPERATIONS:
            path = operation.path.replace("{jobId}", "id-1")
            body = None if operation.is_read else fields_of(operation, 1)
            answer = await http.request(operation.http_method, f"{front.http}{path}", json=body)
            assert (operation.name, answer.status_code) == (operation.name, operation.success_status)
            expected = wire_json.encode(service.answers[operation.response])
            assert answer.content == (expected if operation.success_status == 200 else b"")
            assert answer.http_version == "HTTP/2"
    assert service.lost == []


async def test_errors_over_rest_are_those_of_http1(front: Front, service: RecordingService) -> None:
    service.error = LeaseLostError("gone")
    texts = []
    for is_new in (True, False):
        async with httpx.AsyncClient(http1=not is_new, http2=is_new, trust_env=False) as http:
            for method, path in (
                ("GET", "/v1/stats"), ("GET", "/no/such"), ("PUT", "/v1/jobs"), ("GET", "/v1/ws"), ("HEAD", "/healthz"),
                ("GET", "/%C3%BC"),
            ):  # fmt: skip
                answer = await http.request(method, f"{front.http}{path}")
                texts.append((answer.status_code, answer.content, answer.headers.get("allow")))
    assert texts[:6] == texts[6:]
    assert [status for status, _, _ in texts[:6]] == [409, 404, 405, 426, 200, 404]


async def test_http1_and_websocket_are_served_on_the_same_port(front: Front) -> None:
    async with httpx.AsyncClient(trust_env=False) as http, connect(front.ws, proxy=None) as socket:
        answer = await http.get(f"{front.http}/v1/stats")
        assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")
        await socket.send('{"id":1,"method":"getStats"}')
        assert json.loads(await socket.recv())["ok"] is True
    reader, writer = await asyncio.open_connection(*front.listener.address)
    for piece in (b"P", b"RI * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"):  # almost HTTP/2
        writer.write(piece)
        await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_a_request_may_come_in_pieces_of_any_size(front: Front, service: RecordingService) -> None:
    peer = Peer(*await asyncio.open_connection(*front.listener.address))
    peer.state.initiate_connection()
    stream = peer.begin(CLAIM_PATH, CLAIM)
    for byte in peer.state.data_to_send():
        peer.writer.write(bytes((byte,)))
        await asyncio.sleep(0.001)  # most of them come alone then
    assert (await peer.answer(stream)).status == 200
    peer.writer.close()
    assert len(service.calls) == 1


def test_frames_are_followed_however_they_are_cut() -> None:
    data = b"ab" + b"\0\0\3\0\0\0\0\0\1xyz" + b"\0\0\0\4\1\0\0\0\0" + b"\0\0\1\1\0\0\0\0\1h"
    data += b"\0\0\1\x09\0\0\0\0\1i" + b"\0\0\1\x09\4\0\0\0\1j"
    starts, ends = {2, 14, 23}, {2, 14, 23, len(data)}
    for step in (1, 2, 3, 7, len(data)):
        frames, at = FrameBoundaries(2), 0
        assert frames.is_amid
        while at < len(data):
            piece = data[at : at + step]
            assert frames.feed(piece) == bool(starts & set(range(at, at + len(piece))))
            at += len(piece)
            assert frames.is_amid == (at not in ends)


NODE_CHANGES = {
    "connect": {'httpVersion: "1.1"': 'httpVersion: "2"'},
    "grpc": {
        "createConnectTransport": "createGrpcTransport",
        "fromBinary }": "fromBinary, toJson }",
        "FileDescriptorProtoSchema }": "FileDescriptorProtoSchema, StructSchema }",
        "detail.debug._tag": "(detail.debug = toJson(StructSchema, fromBinary(StructSchema, detail.value)))._tag",
    },
}
"""What makes of the script for Connect over HTTP/1.1 one for another protocol."""


async def test_the_official_client_for_node_speaks_connect_and_grpc_over_http2(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE_CLIENT / name, folder)
    for protocol, changes in NODE_CHANGES.items():
        script = (NODE_CLIENT / "client.mjs").read_text()
        for old, new in changes.items():
            assert old in script
            script = script.replace(old, new)
        (folder / f"{protocol}.mjs").write_text(script)
    node, npm = node_and_npm()
    env = os.environ | {"PATH": f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"}
    await run(*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder, env=env)
    descriptor = base64.b64encode(queue_pb.desc().proto.to_binary()).decode()
    async with BrokerServer(storage=MemoryBackend(), port=0, http2=True) as server:
        for protocol in NODE_CHANGES:
            out = await run(
                node, f"{protocol}.mjs", f"http://{server.address}", descriptor, "proto", cwd=folder
            )
            assert out == "passed proto\n"


# Many requests, and the end of a connection


async def test_a_grpc_client_makes_more_calls_than_one_connection_may(
    front: Front, channel: grpc.aio.Channel
) -> None:
    call = channel.unary_unary(f"{RPC}/GetStats")
    seen: set[int] = set()

    async def repeat() -> None:
        for _ in range(170):
            assert await call(b"", timeout=20)
            seen.update(map(id, connections(front)))

    await asyncio.gather(*(repeat() for _ in range(32)))
    assert len(seen) > 1


async def test_a_client_of_rest_makes_more_calls_than_one_connection_may(front: Front) -> None:
    async with pyqwest.HTTPTransport(http_version=pyqwest.HTTPVersion.HTTP2) as transport:
        client = pyqwest.Client(transport)

        async def repeat() -> None:
            for _ in range(170):
                answer = await client.post(
                    f"{front.http}{CLAIM_PATH}", {"content-type": "application/json"}, CLAIM
                )
                assert answer.status == 200

        await asyncio.gather(*(repeat() for _ in range(32)))


async def test_a_client_that_asks_for_one_after_the_other_never_fails_for_it(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "SERIAL_REQUESTS", 10)
    monkeypatch.setattr(http2, "REQUESTS", 15)
    async with httpx.AsyncClient(http1=False, http2=True, trust_env=False) as http:
        for _ in range(50):  # httpx fails a request that is under way when the server says goodbye
            assert (await http.get(f"{front.http}/v1/stats")).status_code == 200


async def test_a_connection_with_more_than_one_request_at_once_does_not_end_at_that(
    peer: Peer, service: RecordingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "SERIAL_REQUESTS", 2)
    service.gate.clear()
    streams = [await peer.ask("/v1/stats") for _ in range(2)]
    await service.until(lambda: len(service.calls) == 2)
    service.gate.set()
    for stream in streams:
        await peer.answer(stream)
    assert (await peer.answer(await peer.ask("/v1/stats"))).status == 200
    assert peer.goodbyes == []


async def test_a_client_may_cancel_more_calls_than_one_connection_may(
    channel: grpc.aio.Channel, service: RecordingService
) -> None:
    for _ in range(20):
        service.gate.clear()
        begun = len(service.calls)
        calls = [channel.unary_unary(f"{RPC}/ClaimJob")(b"\x0a\x01w", timeout=10) for _ in range(20)]
        kept = asyncio.ensure_future(rpc(channel, "GetStats", b""))
        await service.until(lambda: len(service.calls) == begun + 21)  # noqa: B023  # it is awaited here
        for call in calls:
            call.cancel()
        service.gate.set()
        assert await kept


async def test_a_connection_is_given_up_in_good_order(
    front: Front, service: RecordingService, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "REQUESTS", 3)
    service.gate.clear()
    streams = [await peer.ask("/v1/stats") for _ in range(3)]
    await service.until(lambda: len(service.calls) == 3)
    streams.append(await peer.ask("/v1/stats"))  # before it could know
    await service.until(lambda: len(service.calls) == 4)
    await peer.read_until(lambda: len(peer.goodbyes) == 1)
    assert (peer.goodbyes[0].last_stream_id, peer.goodbyes[0].error_code) == (2**31 - 1, ErrorCodes.NO_ERROR)
    service.gate.set()
    assert [(await peer.answer(stream)).status for stream in streams] == [200] * 4
    await peer.read_to_end()
    assert peer.goodbyes[-1].last_stream_id == streams[-1]


async def test_an_idle_connection_is_given_up(front: Front, peer: Peer) -> None:
    assert (await peer.answer(await peer.ask("/healthz"))).status == 200
    [connection] = connections(front)
    connection._idle_timeout = 0  # it is looked at within a second
    await peer.read_to_end()
    assert [goodbye.error_code for goodbye in peer.goodbyes] == [ErrorCodes.NO_ERROR] * 2


async def test_what_a_peer_asks_before_it_has_heard_of_the_end_is_answered(front: Front, peer: Peer) -> None:
    assert (await peer.answer(await peer.ask("/healthz"))).status == 200
    [connection] = connections(front)
    connection._idle_timeout = 0
    async with asyncio.timeout(10):
        while connection._retired_at is None:
            await asyncio.sleep(0.002)
    assert (await peer.answer(await peer.ask("/healthz"))).status == 200
    await peer.read_to_end()


async def test_stop_finishes_the_streams_under_way_and_refuses_new_ones(
    front: Front, service: RecordingService, peer: Peer, channel: grpc.aio.Channel
) -> None:
    service.gate.clear()
    stream = await peer.ask(CLAIM_PATH, CLAIM)
    call = asyncio.ensure_future(rpc(channel, "GetStats", b""))
    await service.until(lambda: len(service.calls) == 2)
    stopping = asyncio.ensure_future(front.stop(30))
    await peer.read_until(lambda: bool(peer.goodbyes))
    late = await peer.ask("/v1/stats")
    assert (await peer.answer(late)).reset == ErrorCodes.REFUSED_STREAM
    assert not stopping.done()
    service.gate.set()
    async with asyncio.timeout(10):
        assert await call
        assert (await peer.answer(stream)).status == 200
        await stopping
    assert peer.goodbyes[0].last_stream_id == stream
    assert len(service.calls) == 2
    assert service.lost == []


async def test_stop_does_not_wait_for_idle_connections(front: Front, channel: grpc.aio.Channel) -> None:
    assert await rpc(channel, "GetStats", b"")
    reader, writer = await asyncio.open_connection(*front.listener.address)
    writer.write(b"PRI * HT")
    async with connected(front) as peer, asyncio.timeout(1.5):
        assert (await peer.answer(await peer.ask("/healthz"))).status == 200
        await front.stop(30)
        assert not await reader.read()
    writer.close()


async def test_a_stream_that_outlasts_the_grace_period_is_cancelled(
    front: Front, service: RecordingService, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    service.gate.clear()
    await peer.ask(CLAIM_PATH, CLAIM)
    await service.until(lambda: len(service.calls) == 1)
    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(10):
            await front.stop(0.1)
    assert service.cancelled == 1
    assert caplog.records == []


# Peers that leave, or do not read


@pytest.mark.parametrize("path", [CLAIM_PATH, f"{RPC}/ClaimJob"], ids=["rest", "connect"])
async def test_a_stream_that_is_reset_before_its_answer_is_told(
    front: Front, service: RecordingService, peer: Peer, path: str
) -> None:
    service.gate.clear()
    stream = await peer.ask(path, CLAIM)
    await service.until(lambda: len(service.calls) == 1)
    peer.state.reset_stream(stream)
    assert (await peer.answer(await peer.ask("/healthz"))).status == 200  # so it has seen the reset
    service.gate.set()
    await front.stop(1)
    assert lost(service) == [LOST]


async def test_a_connection_that_ends_before_its_answers_is_told(
    front: Front, service: RecordingService, peer: Peer
) -> None:
    service.gate.clear()
    for _ in range(3):
        await peer.ask(CLAIM_PATH, CLAIM)
    await service.until(lambda: len(service.calls) == 3)
    peer.writer.transport.abort()
    async with asyncio.timeout(10):
        while connections(front):
            await asyncio.sleep(0.002)
    service.gate.set()
    await front.stop(1)
    assert lost(service) == [LOST] * 3


async def test_a_waiting_claim_ends_when_its_stream_is_reset(service: RecordingService, front: Front) -> None:
    service.gate.clear()
    async with connected(front) as peer:
        stream = await peer.ask(CLAIM_PATH, b'{"workerId":"w","wait":60}')
        await service.until(lambda: len(service.calls) == 1)
        peer.state.reset_stream(stream)
        await peer.flush()
        await service.until(lambda: service.cancelled == 1)


def long_list(service: RecordingService) -> bytes:
    """Have the service answer with a list of 4 MB; return its text."""
    job = models.JobInfo(
        id="a", status="unclaimed", payload=Raw(b'"' + b"x" * 1000 + b'"'), created_at=0, attempts=0,
        max_attempts=0, heartbeat=0,
    )  # fmt: skip
    listing = models.JobList(jobs=(job,) * 4000, total=4000, unclaimed=4000, in_progress=0)
    service.answers[models.JobList] = listing
    return wire_json.encode(listing)


async def test_a_slow_reader_has_all_of_a_large_answer_and_holds_up_nobody(
    front: Front, service: RecordingService
) -> None:
    text = long_list(service)
    async with connected(front, window=100_000) as peer:
        peer.state.increment_flow_control_window(10 * 1024 * 1024)  # of the connection
        stream = await peer.ask("/v1/jobs")
        answer = peer.answers[stream]
        peer.grants = False
        await peer.read_until(lambda: len(answer.body) == 100_000)
        [connection] = connections(front)
        assert connection.unread > 3_000_000
        assert connection.transport.get_write_buffer_size() == 0
        assert not connection._parser.has_pending_send()
        assert (await peer.answer(await peer.ask("/v1/stats"))).status == 200
        while not answer.has_ended:
            seen = len(answer.body)
            peer.state.increment_flow_control_window(300_000, stream)
            await peer.flush()
            await peer.read_until(lambda: answer.has_ended or len(answer.body) > seen)  # noqa: B023  # awaited here
        assert answer.body == text
        assert connection.unread == 0


async def test_large_answers_reach_clients_of_every_kind(front: Front, service: RecordingService) -> None:
    text = long_list(service)
    options = [("grpc.max_receive_message_length", -1)]
    async with httpx.AsyncClient(http1=False, http2=True, trust_env=False) as http:
        answers = await asyncio.gather(*(http.get(f"{front.http}/v1/jobs") for _ in range(4)))
        assert [answer.content for answer in answers] == [text] * 4
    async with grpc.aio.insecure_channel(front.host, options=options) as channel:
        listed = await asyncio.gather(*(rpc(channel, "ListJobs", b"") for _ in range(4)))
    assert [size > 4_000_000 for size in map(len, listed)] == [True] * 4


async def test_an_answer_that_a_peer_does_not_take_is_given_up(
    impatient: Front, service: RecordingService
) -> None:
    async with connected(impatient, window=5) as peer:
        peer.grants = False
        stream = await peer.ask(CLAIM_PATH, CLAIM)
        answer = await peer.answer(stream)
        assert (answer.status, len(answer.body), answer.reset) == (200, 5, ErrorCodes.CANCEL)
        peer.state.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        assert (await peer.answer(await peer.ask("/healthz"))).body == b'{"status":"ok"}'
    await impatient.stop(1)
    assert lost(service) == [LOST]


async def test_a_peer_that_leaves_too_many_answers_unread_is_refused_more(
    front: Front, service: RecordingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "UNREAD_LIMIT", 5_000_000)
    long_list(service)
    async with connected(front, window=10) as peer:
        peer.grants = False
        for _ in range(2):
            held = await peer.ask("/v1/jobs")
            await peer.read_until(lambda: len(peer.answers[held].body) == 10)  # noqa: B023  # awaited here
        refused = await peer.ask("/v1/stats")
        assert (await peer.answer(refused)).reset == ErrorCodes.REFUSED_STREAM
        peer.state.reset_stream(held)
        await peer.flush()
        [connection] = connections(front)
        async with asyncio.timeout(10):
            while connection.unread > 5_000_000:
                await asyncio.sleep(0.002)
        peer.state.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        assert (await peer.answer(await peer.ask("/v1/stats"))).status == 200


@pytest.mark.parametrize("kind", ["pings", "lists"])
async def test_a_peer_that_never_reads_is_cut_off_and_fills_no_memory(
    impatient: Front, service: RecordingService, kind: str
) -> None:
    long_list(service)
    async with connected(impatient, window=2**31 - 1) as peer:
        peer.state.increment_flow_control_window(2**31 - 1 - 65535)
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a socket's
        asked = [await peer.ask("/v1/jobs") for _ in range(20 if kind == "lists" else 0)]
        await peer.flush()
        assert [len(peer.answers[stream].body) for stream in asked] == [0] * len(asked)
        largest = 0
        async with asyncio.timeout(10):
            while not (there := connections(impatient)):
                await asyncio.sleep(0.001)
            while there := connections(impatient):
                largest = max(largest, *(other.transport.get_write_buffer_size() for other in there))
                if kind == "pings" and peer.writer.transport.get_write_buffer_size() < 1024 * 1024:
                    peer.writer.write(PING * 10_000)
                await asyncio.sleep(0)
        assert 0 < largest < 1024 * 1024


async def test_no_more_is_read_of_a_connection_whose_application_takes_no_body() -> None:
    body, may_read = b"x" * 1_000_000, asyncio.Event()
    taken = bytearray()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await may_read.wait()
        while True:
            message = await receive()
            taken.extend(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with (
        serving(app, http2=True) as front,
        httpx.AsyncClient(http1=False, http2=True, trust_env=False) as http,
    ):
        asking = asyncio.ensure_future(http.post(front.http, content=body))
        async with asyncio.timeout(10):
            while not any(getattr(connection, "_holding", ()) for connection in connections(front)):
                await asyncio.sleep(0.002)
            [connection] = connections(front)
            assert [len(stream._body) < 300_000 for stream in connection._streams.values()] == [True]
            may_read.set()
            assert (await asking).status_code == 204
    assert taken == body


async def test_a_fault_of_an_application_ends_its_stream_and_not_the_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if scope["path"] != "/none":
            raise RuntimeError("secret")

    async with serving(app, http2=True) as front, connected(front) as peer:
        early = await peer.answer(await peer.ask("/early"))
        assert (early.status, json.loads(early.body)["_tag"]) == (500, "EngineStateError")
        assert b"secret" not in early.body
        assert (await peer.answer(await peer.ask("/late"))).reset == ErrorCodes.INTERNAL_ERROR
        assert (await peer.answer(await peer.ask("/none"))).reset == ErrorCodes.INTERNAL_ERROR


# Requests that are too slow or too large


async def test_half_a_body_is_answered_408_and_the_others_go_on(
    impatient: Front, service: RecordingService
) -> None:
    async with connected(impatient) as peer:
        half = await peer.ask("/v1/jobs", b"{", ends=False)
        service.gate.clear()
        waiting = await peer.ask("/v1/stats")  # it has come in full: it may wait for its answer
        answer = await peer.answer(half)
        assert "0.2 s" in assert_refused(answer, 408)
        await peer.read_until(lambda: answer.reset is not None)
        assert answer.reset == ErrorCodes.NO_ERROR
        service.gate.set()
        assert (await peer.answer(waiting)).status == 200
    assert [name for name, _ in service.calls] == ["getStats"]


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\0\0\x10\1", b"\0\x10\0\1\4\0\0\0\1abc", b"\0\0\1\1\0\0\0\0\1\x82"]
)
async def test_what_never_becomes_a_request_is_closed(impatient: Front, data: bytes) -> None:
    reader, writer = await asyncio.open_connection(*impatient.listener.address)
    writer.write(PREFACE[:10] if not data else PREFACE + b"\0\0\0\4\0\0\0\0\0" + data)

    async def trickle() -> None:
        while data.endswith(b"c"):
            await asyncio.sleep(0.03)
            writer.write(b"x")

    trickling = asyncio.ensure_future(trickle())
    async with asyncio.timeout(3):
        answer = await reader.read()
    trickling.cancel()
    writer.close()
    assert (b"\0\0\x08\x07\0" in answer) == bool(data)  # GOAWAY


@pytest.mark.parametrize("data", [b"\0\0\0\1\0\0\0\0\0", b"\xff" * 100, b"\0\0\4\x08\0\0\0\0\7\0\0\0\1"])
async def test_what_is_no_http2_ends_its_connection_only(
    front: Front, peer: Peer, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection(*front.listener.address)
    with caplog.at_level(logging.WARNING):
        writer.write(PREFACE + b"\0\0\0\4\0\0\0\0\0" + data)
        async with asyncio.timeout(5):
            assert b"\0\0\x08\x07\0" in await reader.read()
        writer.close()
        assert (await peer.answer(await peer.ask("/healthz"))).status == 200
    assert caplog.records == []


async def test_a_head_that_is_too_large_ends_the_connection(
    front: Front, service: RecordingService, peer: Peer
) -> None:
    assert (await peer.answer(await peer.ask("/v1/stats"))).status == 200
    assert peer.settings[SettingCodes.MAX_HEADER_LIST_SIZE] == 64 * 1024
    peer.state.max_outbound_frame_size = 16384
    await peer.ask("/v1/stats", headers=[("a", "x" * 90_000)])
    await peer.read_to_end()
    assert peer.goodbyes[-1].error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert len(service.calls) == 1


async def test_no_more_than_128_requests_are_under_way_on_a_connection(
    service: RecordingService, front: Front, peer: Peer
) -> None:
    service.gate.clear()
    assert (await peer.answer(await peer.ask("/healthz"))).status == 200
    assert peer.settings[SettingCodes.MAX_CONCURRENT_STREAMS] == 128
    peer.state.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
    peer.state.remote_settings.acknowledge()
    streams = [await peer.ask("/v1/stats") for _ in range(129)]
    assert (await peer.answer(streams[-1])).reset == ErrorCodes.REFUSED_STREAM
    service.gate.set()
    assert [(await peer.answer(stream)).status for stream in streams[:-1]] == [200] * 128


async def test_a_body_may_be_as_large_as_over_http1(front: Front, service: RecordingService) -> None:
    fits = b'{"payload":"' + b"x" * (1024 * 1024 - 14) + b'"}'
    async with httpx.AsyncClient(http1=False, http2=True, trust_env=False) as http:
        for content, status in ((fits, 200), (fits[:-2] + b'x"}', 413), (fits * 3, 413), (fits, 200)):
            answer = await http.post(
                f"{front.http}/v1/jobs", content=content, headers={"content-type": "application/json"}
            )
            assert answer.status_code == status
    assert len(service.calls) == 2


# What a user sets


async def test_without_the_extra_it_is_a_config_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("osqueue_broker.either_http", "osqueue_broker.http2", "osqueue_broker.http2_stream"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "zttp", None)
    with pytest.raises(ConfigError, match=r'pip install "osqueue-broker\[h2\]"'):
        BrokerServer(storage=MemoryBackend(), http2=True)


def test_the_default_imports_nothing_of_it() -> None:
    program = (
        "import sys; from osqueue_broker import BrokerServer; from osqueue_storage import MemoryBackend\n"
        "BrokerServer(storage=MemoryBackend()); print(any(name.startswith('zttp') for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "False\n"


async def test_the_command_takes_http2() -> None:
    command = [sys.executable, "-m", "osqueue_broker", "--http2", "--port", "0", "--storage", "memory:"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            address = (await process.stdout.readline()).decode().split()[-1]
            async with grpc.aio.insecure_channel(address) as channel:
                request = wire_proto.messages_of(SUBMIT_JOB).request(payload=b"1")
                assert await rpc(channel, "SubmitJob", request.to_binary())
                claimed = await rpc(channel, "ClaimJob", b"\x0a\x01w")
                answer = wire_proto.messages_of(CLAIM_JOB).response.from_binary(claimed)
                assert wire_proto.response_from_message(CLAIM_JOB, answer).payload == Raw(b"1")
    finally:
        process.terminate()
        await process.wait()
    assert process.returncode == 0
