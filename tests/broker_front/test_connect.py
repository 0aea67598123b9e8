"""Connect: every operation, every refusal in one form, and no input that ends the process."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import time
import tracemalloc
from typing import Any

import httpx
import pytest
from broker_front.support import JSON, RPC, Front, RecordingService, front_app, raw_exchange, serving
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from osqueue_broker.connect_codec import OneMemberGzip
from osqueue_client import models, wire_proto
from osqueue_client.errors import LeaseLostError, QueueFullError
from osqueue_client.operations import OPERATIONS, AnyOperation

PROTO = {"content-type": "application/proto"}
SECRET = "secret-of-the-store"
READS = [operation for operation in OPERATIONS if operation.is_read]
FIELDS: dict[str, Any] = {
    "payload": "MQ==", "workerId": "w", "jobId": "id-1", "error": {"type": "E", "message": "m"},
}  # fmt: skip


def fields_for(operation: AnyOperation) -> dict[str, Any]:
    names = {field.json_name for field in wire_proto.messages_of(operation).request.desc().fields}
    entry = {"payload": "MQ=="} if operation.name == "submitJobs" else {"jobId": "id-1"}
    return {name: value for name, value in (FIELDS | {"jobs": [entry]}).items() if name in names}


def assert_refused(
    answer: httpx.Response, status: int, code: str, tag: str = "BrokerProtocolError"
) -> dict[str, Any]:
    """The one form of a Connect error; return our fields."""
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["osqueue-error"] == tag
    [detail] = answer.json()["details"]
    assert detail["type"] == "google.protobuf.Struct"
    assert tag.encode() in base64.b64decode(detail["value"] + "==")
    fields: dict[str, Any] = detail["debug"]
    assert fields["_tag"] == tag
    assert fields["message"] == answer.json()["message"] != ""
    return fields


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_every_operation_is_served_in_both_codecs(
    http: httpx.AsyncClient, service: RecordingService, operation: AnyOperation
) -> None:
    url = f"{RPC}/{operation.rpc}"
    answer = await http.post(url, json=fields_for(operation))
    assert answer.status_code == 200
    request = wire_proto.messages_of(operation).request.from_json(answer.request.content)
    answer = await http.post(url, content=request.to_binary(), headers=PROTO)
    assert answer.status_code == 200
    expected = wire_proto.response_to_message(operation, service.answers[operation.response])
    assert answer.content == expected.to_binary()
    assert [name for name, _ in service.calls] == [operation.name] * 2


@pytest.mark.parametrize("operation", READS, ids=lambda operation: operation.name)
async def test_reads_may_be_gets_and_nothing_else_may(
    http: httpx.AsyncClient, operation: AnyOperation
) -> None:
    for query in (
        "encoding=json&message={}",
        "encoding=json&message=e30&base64=1",
        "encoding=proto&message=",
    ):
        answer = await http.get(f"{RPC}/{operation.rpc}?{query}")
        assert answer.status_code == 200
    assert_refused(await http.get(f"{RPC}/SubmitJob?encoding=json&message={{}}"), 405, "invalid_argument")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("encoding=json", "invalid_argument"),
        ("encoding=json&message=" + "[" * 50_000, "invalid_argument"),
        ("encoding=json&message=%5B&base64=1", "invalid_argument"),
        ("encoding=json&message={}&compression=zz", "unimplemented"),
        ("encoding=json&message=e30&base64=1&compression=gzip", "invalid_argument"),
    ],
    ids=["none", "deep", "base64", "compression", "gzip"],
)
async def test_bad_queries(http: httpx.AsyncClient, query: str, code: str) -> None:
    answer = await http.get(f"{RPC}/ListDead?{query}")
    assert_refused(answer, 501 if code == "unimplemented" else 400, code)
    assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("query", "given"), [("encoding=xml&message=x", "xml"), ("message=x", "none"), ("", "none")]
)
async def test_bad_encoding_of_a_get(http: httpx.AsyncClient, query: str, given: str) -> None:
    message = assert_refused(await http.get(f"{RPC}/ListDead?{query}"), 415, "invalid_argument")["message"]
    assert message.endswith(f"must be proto or json, not {given}")


async def test_a_content_type_on_a_get_says_nothing(http: httpx.AsyncClient) -> None:
    for kind in ("application/grpc", "application/connect+json", "application/json"):
        answer = await http.get(f"{RPC}/GetStats?encoding=json&message={{}}", headers={"content-type": kind})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


async def test_parameters_of_a_content_type_change_nothing(http: httpx.AsyncClient) -> None:
    request = wire_proto.messages_of(OPERATIONS[1]).request(worker_id="w").to_binary()
    for kind in ("application/proto; x=1", "Application/Proto;charset=utf-8"):
        for rpc, body, status in (
            ("GetStats", b"", 200),
            ("ClaimJob", request, 200),
            ("ClaimJob", b'{"a":1}', 400),
        ):
            answer = await http.post(f"{RPC}/{rpc}", content=body, headers={"content-type": kind})
            assert answer.status_code == status
            assert answer.headers["content-type"] == (
                "application/proto" if status == 200 else "application/json"
            )
    answer = await http.post(
        f"{RPC}/GetStats", content=b"{}", headers={"content-type": "application/json;x=1"}
    )
    assert answer.json()["total"] == 1


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (gzip.compress(b"") * 50_000, "more than one member"),
        (gzip.compress(b'{"workerId":"w"}') + gzip.compress(b""), "more than one member"),
        (gzip.compress(b'{"workerId":"w"}') + b"\0", "more than one member"),
        (gzip.compress(b'{"workerId":"w"}')[:-1], "too early"),
        (gzip.compress(b'{"workerId":"w"}')[:10], "too early"),
    ],
    ids=["tiny", "two", "garbage", "cut", "head"],
)
async def test_gzip_of_anything_but_one_whole_member(
    http: httpx.AsyncClient, packed: bytes, said: str
) -> None:
    started = time.process_time()
    answer = await http.post(f"{RPC}/ClaimJob", content=packed, headers={**JSON, "content-encoding": "gzip"})
    assert time.process_time() - started < 1
    assert said in assert_refused(answer, 400, "invalid_argument")["message"]


def test_unpacking_stops_at_the_limit() -> None:
    bomb = gzip.compress(b"A" * 100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ConnectError) as refused:
            OneMemberGzip().decompress(bomb, 1_000_000)
        assert refused.value.code == Code.RESOURCE_EXHAUSTED
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    whole = gzip.compress(b"A" * 1_000_000)
    assert len(OneMemberGzip().decompress(whole, 1_000_000)) == 1_000_000
    assert len(OneMemberGzip().decompress(bomb)) == 100_000_000


@pytest.mark.parametrize(
    ("rpc", "body", "field"),
    [
        ("ClaimJob", r'{"workerId":"\ud800"}', "workerId"),
        ("FailJob", r'{"jobId":"x","workerId":"w","error":{"message":"\ud800 so"}}', "error.message"),
        ("SubmitJob", json.dumps({"payload": base64.b64encode(rb'{"a":"\udc00"}').decode()}), "payload.a"),
    ],
)
async def test_half_a_surrogate_pair_is_called_so_under_its_field(
    http: httpx.AsyncClient, rpc: str, body: str, field: str
) -> None:
    answer = await http.post(f"{RPC}/{rpc}", content=body, headers=JSON)
    fields = assert_refused(answer, 400, "invalid_argument")
    assert "lone surrogate" in fields["message"]
    assert fields["field"] == field


@pytest.mark.parametrize("path", ["Nothing", "", "submitJob", "SubmitJob/"])
async def test_unknown_procedure_is_unimplemented(http: httpx.AsyncClient, path: str) -> None:
    assert_refused(await http.post(f"{RPC}/{path}", json={}), 404, "unimplemented")


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/grpc", "application/grpc+proto", "application/grpc-web", "application/connect+json",
     "application/xml", ""],
)  # fmt: skip
async def test_other_content_types_are_415(
    http: httpx.AsyncClient, service: RecordingService, kind: str
) -> None:
    answer = await http.post(f"{RPC}/GetStats", content=b"{}", headers={"content-type": kind} if kind else {})
    assert_refused(answer, 415, "invalid_argument")
    assert "application/proto" in answer.headers["accept-post"]
    assert service.calls == []
    assert "connection" not in answer.headers


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
async def test_other_methods_are_405(http: httpx.AsyncClient, method: str) -> None:
    answer = await http.request(method, f"{RPC}/GetStats", headers=PROTO)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"
    assert answer.headers["osqueue-error"] == "BrokerProtocolError"


@pytest.mark.parametrize(
    "headers",
    [
        {"connect-protocol-version": "2"},
        {"connect-timeout-ms": "-1"},
        {"connect-timeout-ms": "1_0"},
        {"connect-timeout-ms": "99999999999"},
        {"connect-timeout-ms": "soon"},
        {"user-agent": "caf\u00e9".encode("latin-1")},
    ],
    ids=str,
)
async def test_bad_headers(http: httpx.AsyncClient, headers: dict[str, Any]) -> None:
    answer = await http.post(f"{RPC}/GetStats", content=b"", headers={**PROTO, **headers})
    message = assert_refused(answer, 400, "invalid_argument")["message"]
    assert next(iter(headers)) in message
    if "connect-timeout-ms" in headers:
        assert "at most 10 digits" in message


@pytest.mark.parametrize(
    ("rpc", "body", "field"),
    [
        ("ClaimJob", b'{"workerId":5}', "workerId"),
        ("ClaimJob", b'{"workerId":"w","types":"t"}', "types"),
        ("ClaimJob", b'{"worker_id":""}', "workerId"),
        ("SubmitJob", b'{"payload":"MQ==","maxAttempts":1.5}', "maxAttempts"),
        ("SubmitJob", b'{"payload":"MQ==","max_attempts":-1}', "maxAttempts"),
        ("SubmitJob", b'{"payload":"!"}', "payload"),
        ("SubmitJob", b"{}", "payload"),
        ("Heartbeat", b'{"workerId":"w"}', "jobId"),
        ("FailJob", b'{"jobId":"x","workerId":"w","error":{"type":5}}', "type"),
    ],
)
async def test_the_field_is_named_as_it_is_spelt_on_the_wire(
    http: httpx.AsyncClient, rpc: str, body: bytes, field: str
) -> None:
    fields = assert_refused(
        await http.post(f"{RPC}/{rpc}", content=body, headers=JSON), 400, "invalid_argument"
    )
    assert fields["field"] == field
    assert field in fields["message"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", JSON), (b"[]", JSON), (b"{", JSON), (b"null", JSON), (b"\xff", JSON), (b"[" * 100_000, JSON),
        (b'{"x":' * 100_000, JSON), (b"\xff\xff", PROTO), (b"\x0a\x05ab", PROTO), (b"\x0b" * 100_000, PROTO),
        (b"no gzip", {**JSON, "content-encoding": "gzip"}),
    ],
    ids=range(11),
)  # fmt: skip
async def test_what_is_no_message(http: httpx.AsyncClient, body: bytes, headers: dict[str, str]) -> None:
    fields = assert_refused(
        await http.post(f"{RPC}/ClaimJob", content=body, headers=headers), 400, "invalid_argument"
    )
    assert len(fields["message"]) < 300
    assert (await http.get("/healthz")).status_code == 200


async def test_a_message_that_was_not_read_is_not_sent_back(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{RPC}/ClaimJob", json=["x" * 100_000])
    assert len(assert_refused(answer, 400, "invalid_argument")["message"]) < 300


async def test_too_large_before_and_after_unpacking(http: httpx.AsyncClient) -> None:
    bomb = gzip.compress(b'{"payload":"' + b"A" * 20_000_000 + b'"}')
    for body, headers in ((b" " * 2_000_000, JSON), (bomb, {**JSON, "content-encoding": "gzip"})):
        answer = await http.post(f"{RPC}/SubmitJob", content=body, headers=headers)
        assert_refused(answer, 429, "resource_exhausted", "RequestTooLargeError")


async def test_unknown_compression(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{RPC}/GetStats", content=b"", headers={**PROTO, "content-encoding": "zz"})
    assert_refused(answer, 501, "unimplemented")


async def test_our_errors_keep_their_code_and_their_fields(
    http: httpx.AsyncClient, service: RecordingService
) -> None:
    service.error = QueueFullError("full", retry_after=1.5)
    answer = await http.post(f"{RPC}/GetStats", json={})
    fields = assert_refused(answer, 429, "resource_exhausted", "QueueFullError")
    assert (fields["retryAfter"], fields["outcome"]) == (1.5, "not_applied")
    service.error = LeaseLostError("lost")
    answer = await http.post(f"{RPC}/GetStats", json={})
    assert_refused(answer, 400, "failed_precondition", "LeaseLostError")


async def test_a_fault_of_ours_is_logged_once_and_told_to_nobody(
    http: httpx.AsyncClient, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = RuntimeError(SECRET)
    with caplog.at_level(logging.INFO):
        answer = await http.post(f"{RPC}/GetStats", json={})
    assert_refused(answer, 500, "internal", "EngineStateError")
    assert SECRET not in answer.text
    assert "connection" not in answer.headers
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_an_answer_that_cannot_be_written_is_told_to_nobody(
    http: httpx.AsyncClient, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    wrong: Any = "x"
    service.answers[models.QueueStats] = models.QueueStats(total=wrong, unclaimed=0, in_progress=0)
    with caplog.at_level(logging.CRITICAL):
        answer = await http.post(f"{RPC}/GetStats", json={})
    assert_refused(answer, 500, "internal", "EngineStateError")


async def test_the_deadline_ends_the_call_with_an_unknown_outcome(
    http: httpx.AsyncClient, service: RecordingService
) -> None:
    service.gate.clear()
    answer = await http.post(
        f"{RPC}/SubmitJob", json={"payload": "MQ=="}, headers={"connect-timeout-ms": "20"}
    )
    fields = assert_refused(answer, 504, "deadline_exceeded", "StorageBackendError")
    assert fields["outcome"] == "unknown"
    assert service.cancelled == 1


async def test_a_call_under_way_survives_its_client(
    http: httpx.AsyncClient, service: RecordingService
) -> None:
    service.gate.clear()
    with pytest.raises(httpx.ReadTimeout):
        await http.post(f"{RPC}/SubmitJob", json={"payload": "MQ=="}, timeout=0.1)
    service.gate.set()
    assert (await http.get("/healthz")).status_code == 200
    assert service.cancelled == 0


@pytest.mark.parametrize("size", [1, 900, 1100, 70_000])
async def test_answers_in_gzip_of_any_size(
    http: httpx.AsyncClient, service: RecordingService, size: int
) -> None:
    service.answers[models.JobSubmitted] = models.JobSubmitted(job_id="é" * size)
    answer = await http.post(
        f"{RPC}/SubmitJob", json={"payload": "MQ=="}, headers={"accept-encoding": "gzip"}
    )
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json() == {"jobId": "é" * size}


async def test_empty_chunked_body_of_a_message_without_fields(front: Front) -> None:
    head = (
        f"POST {RPC}/GetStats HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n"
        "transfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n"
    )
    assert (await raw_exchange(front.host, head.encode())).startswith(b"HTTP/1.1 200 ")


async def test_the_limit_is_that_of_the_broker(service: RecordingService) -> None:
    async with serving(front_app(service, limit=100)) as front, httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"{front.http}{RPC}/ClaimJob", json={"workerId": "w" * 101})
        assert_refused(answer, 429, "resource_exhausted", "RequestTooLargeError")
        assert "100 bytes" in answer.json()["message"]
