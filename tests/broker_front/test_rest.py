"""REST: what goes to the service and what comes back, whatever is sent."""

from __future__ import annotations

import asyncio
import gzip
import logging

import httpx
import pytest
from broker_front.support import JSON, Front, RecordingService, front_app, raw_exchange, serving
from starlette.applications import Starlette
from starlette.routing import Mount

from osqueue_client import models
from osqueue_client.errors import BrokerLeadershipError, OsqueueError, QueueFullError, StorageBackendError
from osqueue_client.operations import OPERATIONS, AnyOperation

SECRET = "secret-of-the-store"


def concrete(path: str) -> str:
    return path.replace("{jobId}", "id-1")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_every_operation_of_the_table_is_served(
    http: httpx.AsyncClient, service: RecordingService, operation: AnyOperation
) -> None:
    body = {"workerId": "w", "error": {"type": "E", "message": "m"}, "jobs": [{"jobId": "id-1"}]}
    answer = await http.request(
        operation.http_method,
        concrete(operation.path),
        json=body if operation.http_method == "POST" else None,
    )
    assert answer.status_code == operation.success_status
    assert [name for name, _ in service.calls] == [operation.name]
    assert getattr(service.calls[0][1], "job_id", "id-1") == "id-1"
    if answer.status_code == 204:
        assert answer.content == b""
        assert "content-type" not in answer.headers
    else:
        assert answer.headers["content-type"] == "application/json"


async def test_the_job_id_of_the_path_wins_over_that_of_the_body(
    http: httpx.AsyncClient, service: RecordingService
) -> None:
    answer = await http.post("/v1/jobs/a/heartbeat", json={"jobId": "b", "workerId": "w"})
    assert answer.status_code == 204
    [(_, request)] = service.calls
    assert isinstance(request, models.LeasedJob)
    assert request.job_id == "a"


async def test_health_does_not_ask_the_service_and_get_routes_take_head(
    http: httpx.AsyncClient, service: RecordingService
) -> None:
    service.gate.clear()
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/state")).content == b'{"jobs":[]}'
    for path in ("/healthz", "/state", "/v1/throttle-stats", "/openapi.json"):
        answer = await http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/jobs", {"GET", "HEAD", "POST"}),
        ("GET", "/v1/jobs/claim", {"POST"}),
        ("DELETE", "/v1/jobs/x/complete", {"POST"}),
        ("POST", "/v1/stats", {"GET", "HEAD"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
    ],
)
async def test_405_names_every_method_that_the_path_takes(
    http: httpx.AsyncClient, method: str, path: str, allow: set[str]
) -> None:
    answer = await http.request(method, path, json={})
    assert answer.status_code == 405
    assert {name.strip() for name in answer.headers["allow"].split(",")} == allow
    assert answer.json()["_tag"] == "BrokerProtocolError"
    assert method in answer.json()["message"]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/jobs/", "/v1/job", "/v1/jobs/x", "//v1/jobs", "/v1/jobs/x/y/z"]
)
async def test_unknown_path_is_404_in_our_shape_and_never_a_redirect(
    http: httpx.AsyncClient, path: str
) -> None:
    answer = await http.post(path, json={})
    assert answer.status_code == 404
    assert answer.json()["_tag"] == "BrokerProtocolError"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "x"]
)
async def test_what_is_not_json_is_415(http: httpx.AsyncClient, service: RecordingService, kind: str) -> None:
    answer = await http.post("/v1/jobs", content=b'{"payload":1}', headers={"content-type": kind})
    assert answer.status_code == 415
    assert answer.json()["_tag"] == "BrokerProtocolError"
    assert "application/json" in answer.json()["message"]
    assert service.calls == []


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/json;x=y"]
)
async def test_json_with_any_parameters_is_taken(http: httpx.AsyncClient, kind: str) -> None:
    answer = await http.post("/v1/jobs", content=b'{"payload":1}', headers={"content-type": kind})
    assert answer.status_code == 200


async def test_a_body_without_a_type_is_taken_but_not_from_a_web_page(
    http: httpx.AsyncClient, service: RecordingService
) -> None:
    # A page of any origin may send a body without a type and without a preflight.
    assert (await http.post("/v1/jobs", content=b'{"payload":1}')).status_code == 200
    answer = await http.post("/v1/jobs", content=b'{"payload":1}', headers={"origin": "https://evil.example"})
    assert answer.status_code == 415
    assert len(service.calls) == 1


async def test_empty_body_says_so(http: httpx.AsyncClient) -> None:
    for path in ("/v1/jobs", "/v1/jobs/claim", "/v1/jobs/x/complete"):
        answer = await http.post(path, headers=JSON)
        assert answer.status_code == 400
        assert "no body" in answer.json()["message"]
    # Nothing but the path is needed here.
    assert (await http.post("/v1/dead-jobs/x/requeue")).status_code == 204


async def test_too_large_is_refused_by_its_length_before_the_body_is_sent(front: Front) -> None:
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nhost: {front.host}\r\ncontent-type: application/json\r\n"
        "content-length: 99999999\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
    )
    answer = await raw_exchange(front.host, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"RequestTooLargeError" in answer


async def test_the_connection_is_of_use_after_a_body_that_was_too_large(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/jobs", content=b"[" * 2_000_000, headers=JSON)
    assert answer.status_code == 413
    assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "fields"),
    [
        (QueueFullError("full", retry_after=0.2), 429, {"outcome": "not_applied", "retryAfter": 0.2}),
        (BrokerLeadershipError("no", leader="h:1"), 503, {"leader": "h:1", "outcome": "not_applied"}),
        (StorageBackendError("down", outcome="unknown"), 503, {"outcome": "unknown"}),
    ],
)
async def test_errors_carry_their_status_and_their_fields(
    http: httpx.AsyncClient,
    service: RecordingService,
    error: OsqueueError,
    status: int,
    fields: dict[str, object],
) -> None:
    service.error = error
    answer = await http.post("/v1/jobs", json={"payload": 1})
    assert answer.status_code == status
    assert answer.json() == {"_tag": error.tag, "message": error.message, **fields}
    assert answer.headers.get("retry-after") == ("1" if status == 429 else None)


async def test_a_fault_of_ours_is_logged_once_and_told_to_nobody(
    http: httpx.AsyncClient, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = RuntimeError(SECRET)
    with caplog.at_level(logging.INFO):
        answer = await http.post("/v1/jobs", json={"payload": 1})
    assert answer.status_code == 500
    assert answer.json()["_tag"] == "EngineStateError"
    assert SECRET not in answer.text
    assert "connection" not in answer.headers
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_a_page_that_fails_is_told_in_our_shape(
    http: httpx.AsyncClient, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    service.document_error = StorageBackendError("no document yet")
    answer = await http.get("/state")
    assert (answer.status_code, answer.json()["_tag"]) == (503, "StorageBackendError")
    service.document_error = RuntimeError(SECRET)
    with caplog.at_level(logging.CRITICAL):
        answer = await http.get("/state")
    assert (answer.status_code, answer.json()["_tag"]) == (500, "EngineStateError")
    assert SECRET not in answer.text


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_nobodys_fault(
    front: Front, http: httpx.AsyncClient, service: RecordingService, caplog: pytest.LogCaptureFixture
) -> None:
    name, port = front.host.rsplit(":", 1)
    _, writer = await asyncio.open_connection(name, int(port))
    writer.write(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    with caplog.at_level(logging.INFO):
        assert (await http.get("/healthz")).status_code == 200
    assert service.calls == []
    assert caplog.records == [] or all(record.levelno < logging.WARNING for record in caplog.records)


async def test_a_call_under_way_survives_its_client(
    front: Front, http: httpx.AsyncClient, service: RecordingService
) -> None:
    service.gate.clear()
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/jobs", json={"payload": 1}, timeout=0.1)
    service.gate.set()
    assert (await http.get("/healthz")).status_code == 200
    assert service.cancelled == 0


async def test_pipelined_requests_are_answered_in_order(front: Front) -> None:
    one = f"GET /healthz HTTP/1.1\r\nhost: {front.host}\r\n\r\n"
    two = f"GET /v1/stats HTTP/1.1\r\nhost: {front.host}\r\nconnection: close\r\n\r\n"
    answer = await raw_exchange(front.host, (one + two).encode())
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b'"status"') < answer.index(b'"total"')


async def test_the_front_works_below_a_prefix(service: RecordingService) -> None:
    inner = Starlette(routes=[Mount("/deep", app=front_app(service))])
    outer = Starlette(routes=[Mount("/queue", app=inner)])
    async with serving(outer) as front, httpx.AsyncClient(trust_env=False) as http:
        http.base_url = httpx.URL(f"{front.http}/queue/deep/")
        assert (await http.post("/v1/jobs", json={"payload": 1})).json() == {"jobId": "id-1"}
        assert (await http.get("/v1/stats")).json()["total"] == 1
        assert (await http.post("/v1/jobs/x/heartbeat", json={"workerId": "w"})).status_code == 204
        assert (await http.get("/nothing")).status_code == 404
        answer = await http.post("/osqueue.v1.QueueService/GetStats", json={})
        assert answer.json()["total"] == 1
        answer = await http.post("/osqueue.v1.QueueService/Nothing", json={})
        assert (answer.status_code, answer.json()["code"]) == (404, "unimplemented")


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({**JSON, "content-encoding": "gzip"}, "content-encoding must be identity, not gzip"),
        ({**JSON, "content-encoding": ""}, "not empty"),
        ({"content-type": ""}, "application/json, not empty"),
        ({"content-type": "text/plain"}, "application/json, not text/plain"),
    ],
)  # fmt: skip
async def test_what_a_body_must_not_be_is_said(
    http: httpx.AsyncClient, service: RecordingService, headers: dict[str, str], said: str
) -> None:
    answer = await http.post("/v1/jobs", content=gzip.compress(b'{"payload":1}'), headers=headers)
    assert (answer.status_code, answer.json()["_tag"]) == (415, "BrokerProtocolError")
    assert said in answer.json()["message"]
    assert ("accept-encoding" in answer.headers) == ("content-encoding" in headers)
    assert service.calls == []


async def test_the_identity_encoding_is_none(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/jobs", json={"payload": 1}, headers={"content-encoding": "identity"})
    assert answer.status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_websocket_path_asks_for_an_upgrade(http: httpx.AsyncClient, method: str) -> None:
    answer = await http.request(method, "/v1/ws")
    assert answer.status_code == 426
    assert answer.headers["upgrade"] == "websocket"
    if method == "GET":
        assert answer.json()["_tag"] == "BrokerProtocolError"
    assert (await http.post("/v1/ws", json={})).status_code == 405


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/jobs", r'{"payload":"\ud800"}', "payload"),
        ("/v1/jobs", r'{"payload":{"a":["b","\uDFFF and more"]}}', "payload.a"),
        ("/v1/jobs/claim", r'{"workerId":"\ud800\u0041"}', "workerId"),
        ("/v1/jobs/x/fail", r'{"workerId":"w","error":{"type":"t","message":"\udc00\ud800"}}', "error.message"),
        ("/v1/jobs", r'{"payload":1,"\ud800":2}', None),
    ],
)  # fmt: skip
async def test_half_a_surrogate_pair_is_called_so_under_its_field(
    http: httpx.AsyncClient, path: str, body: str, field: str | None
) -> None:
    answer = await http.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["_tag"] == "BrokerProtocolError"
    assert "lone surrogate" in answer.json()["message"]
    assert answer.json().get("field") == field


async def test_whole_pairs_and_escaped_backslashes_are_taken_and_other_faults_keep_their_names(
    http: httpx.AsyncClient,
) -> None:
    good = r'{"payload":"\ud83d\ude00 \\ud800"}'
    assert (await http.post("/v1/jobs", content=good, headers=JSON)).status_code == 200
    for bad in (r'{"payload":"\ud83d\ude00",}', r'{"payload":1,"type":5,"x":"\ud800"}'):
        answer = await http.post("/v1/jobs", content=bad, headers=JSON)
        assert answer.status_code == 400
        assert "surrogate" not in answer.json()["message"]
