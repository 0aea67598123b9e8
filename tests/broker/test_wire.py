"""Every MUST of the wire contract, transport by transport."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from broker.support import JSON, PATHS, SERVICE, Refused, opened
from openapi_spec_validator import validate
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from osqueue_broker import BrokerServer
from osqueue_storage import MemoryBackend

HARD_NUMBERS = (
    "12345678901234567890123456789", "-0", "-0.0", "1.0", "1e400", "1E+2", "0.1000000000000000055511151231257827",
    "9007199254740993", "18446744073709551616",
)  # fmt: skip


# Over all transports


async def test_a_job_lives_from_submit_to_complete(wire: Any) -> None:
    job = (await wire.call("submitJob", payload='{"a":[1,"é"]}', type="t"))["jobId"]
    assert str(uuid.UUID(job)) == job
    claimed = await wire.call("claimJob", workerId="w")
    assert (claimed["jobId"], claimed["payload"], claimed["type"]) == (job, '{"a":[1,"é"]}', "t")
    assert await wire.call("heartbeat", jobId=job, workerId="w") == {}
    assert await wire.call("completeJob", jobId=job, workerId="w") == {}
    stats = await wire.call("getStats")
    assert stats["completedTotal"] == 1
    assert stats.get("total", 0) == 0
    assert await wire.call("claimJob", workerId="w") == {}


async def test_payload_numbers_come_back_digit_for_digit(wire: Any) -> None:
    payload = '{"n":[' + ",".join(HARD_NUMBERS) + "]}"
    await wire.call("submitJob", payload=payload)
    assert (await wire.call("listJobs"))["jobs"][0]["payload"] == payload
    assert (await wire.call("claimJob", workerId="w"))["payload"] == payload


@pytest.mark.parametrize("payload", ["null", '"x"', "0", "false", "[]", "{}", '""', *HARD_NUMBERS])
async def test_any_json_value_is_a_payload(wire: Any, payload: str) -> None:
    await wire.call("submitJob", payload=payload)
    assert (await wire.call("claimJob", workerId="w"))["payload"] == payload


async def test_absent_payload_stays_absent(wire: Any) -> None:
    if wire.name.startswith("connect"):
        for fields in ({}, {"payload": ""}):
            with pytest.raises(Refused) as refused:
                await wire.call("submitJob", **fields)
            assert (refused.value.code, refused.value.tag) == ("invalid_argument", "BrokerProtocolError")
            assert "payload" in refused.value.message
        return
    await wire.call("submitJob")
    assert "payload" not in (await wire.call("listJobs"))["jobs"][0]
    assert (await wire.call("claimJob", workerId="w")).keys() & {"jobId", "payload"} == {"jobId"}


async def test_claims_are_first_in_first_out_and_filtered_by_type(wire: Any) -> None:
    ids = [(await wire.call("submitJob", payload="1", type=t))["jobId"] for t in ("", "a", "b", "a", "c")]
    untyped, a1, b, a2, c = ids
    assert (await wire.call("claimJob", workerId="w", types=["c", "b"]))["jobId"] == b
    assert (await wire.call("claimJob", workerId="w", types=["b", "a"]))["jobId"] == a1
    assert await wire.call("claimJob", workerId="w", types=["b"]) == {}
    assert await wire.call("claimJob", workerId="w", types=[""]) == {}  # with types never an untyped job
    first = await wire.call("claimJob", workerId="w", types=[])
    assert first["jobId"] == untyped
    assert "type" not in first
    assert [(await wire.call("claimJob", workerId="w"))["jobId"] for _ in range(2)] == [a2, c]


async def test_list_and_stats(server: BrokerServer, wire: Any) -> None:
    await wire.call("submitJob", payload="1")
    second = (await wire.call("submitJob", payload="2", type="t", maxAttempts=7))["jobId"]
    await wire.call("claimJob", workerId="w", types=["t"])
    listed = await wire.call("listJobs")
    assert (listed["total"], listed["unclaimed"], listed["inProgress"]) == (2, 1, 1)
    assert listed["brokerAddress"] == server.address
    one, two = listed["jobs"]
    if not wire.name.startswith("connect"):  # proto3 leaves zeros out
        assert one["maxAttempts"] == one["heartbeat"] == one["attempts"] == 0
        assert listed["completedTotal"] == 0
        assert not one.keys() & {"type", "workerId"}
    assert (one["status"], two["status"]) == ("unclaimed", "in_progress")
    assert (two["id"], two["type"], two["workerId"]) == (second, "t", "w")
    assert (two["attempts"], two["maxAttempts"]) == (1, 7)
    assert two["heartbeat"] >= two["createdAt"] > 1_600_000_000_000
    stats = await wire.call("getStats")
    assert (stats["total"], stats["unclaimed"], stats["inProgress"]) == (2, 1, 1)
    assert stats["brokerAddress"] == server.address
    assert stats["completedTotal"] == 0
    assert "fail" in stats["features"]


@pytest.mark.parametrize("attempts", [0, 1, 2, 2**31 - 1])
async def test_max_attempts(wire: Any, attempts: int) -> None:
    await wire.call("submitJob", payload="1", maxAttempts=attempts)
    for _ in range(min(max(attempts, 1), 2)):
        job = (await wire.call("claimJob", workerId="w"))["jobId"]
        await wire.call("failJob", jobId=job, workerId="w", error={"type": "E", "message": "m"})
    assert (await wire.call("getStats")).get("dead", 0) == (attempts <= 2)


async def test_three_attempts_unless_the_job_says_otherwise(wire: Any) -> None:
    await wire.call("submitJob", payload="1")
    for attempt in (1, 2, 3):
        claimed = await wire.call("claimJob", workerId="w")
        assert claimed["attempt"] == attempt
        error = {"type": "E", "message": f"m{attempt}"}
        await wire.call("failJob", jobId=claimed["jobId"], workerId="w", error=error, retry=True)
    assert await wire.call("claimJob", workerId="w") == {}
    (dead,) = (await wire.call("listDead"))["jobs"]
    assert (dead["attempts"], dead["error"], dead["payload"]) == (3, {"type": "E", "message": "m3"}, "1")


async def test_a_failed_job_is_claimable_at_once_in_its_old_place(wire: Any) -> None:
    ids = [(await wire.call("submitJob", payload="1"))["jobId"] for _ in range(2)]
    await wire.call("claimJob", workerId="w")
    await wire.call("failJob", jobId=ids[0], workerId="w", error={"type": "E", "message": "m"})
    assert (await wire.call("claimJob", workerId="v"))["jobId"] == ids[0]


async def test_dead_jobs_are_paged_requeued_and_deleted(wire: Any) -> None:
    ids = []
    for n in range(5):
        job = (await wire.call("submitJob", payload=str(n), type="t"))["jobId"]
        await wire.call("claimJob", workerId="w")
        await wire.call("failJob", jobId=job, workerId="w", error={"type": "E", "message": "m"}, retry=False)
        ids.append(job)
    seen: list[str] = []
    page: dict[str, Any] = {"nextCursor": None}
    while "nextCursor" in page:
        cursor = {"cursor": page["nextCursor"]} if page["nextCursor"] else {}
        page = await wire.call("listDead", limit=2, **cursor)
        assert page["total"] == 5
        assert len(page["jobs"]) <= 2
        seen += [job["id"] for job in page["jobs"]]
    assert seen == ids
    dead = page["jobs"][0]
    assert (dead["payload"], dead["type"], dead["attempts"]) == ("4", "t", 1)
    assert dead["deadAt"] >= dead["createdAt"] > 0
    later = (await wire.call("submitJob", payload="9"))["jobId"]
    assert await wire.call("requeueDead", jobId=ids[3]) == {}
    assert await wire.call("deleteDead", jobId=ids[0]) == {}
    listed = (await wire.call("listJobs"))["jobs"]
    assert [job["id"] for job in listed] == [later, ids[3]]
    assert listed[1].get("attempts", 0) == 0
    assert [job["id"] for job in (await wire.call("listDead"))["jobs"]] == [ids[1], ids[2], ids[4]]
    for method in ("requeueDead", "deleteDead"):
        with pytest.raises(Refused) as refused:
            await wire.call(method, jobId=ids[0])
        assert refused.value.tag == "JobNotFoundError"


async def test_a_lost_lease_is_a_conflict(wire: Any) -> None:
    job = (await wire.call("submitJob", payload="1"))["jobId"]
    await wire.call("claimJob", workerId="w")
    fail = {"error": {"type": "E", "message": "m"}}
    for method, more in (("heartbeat", {}), ("completeJob", {}), ("failJob", fail)):
        with pytest.raises(Refused) as refused:
            await wire.call(method, jobId=job, workerId="other", **more)
        assert refused.value.tag == "LeaseLostError"
        if wire.name == "rest":
            assert refused.value.status == 409
        if wire.name.startswith("connect"):
            assert refused.value.code == "failed_precondition"
            assert b"LeaseLostError" in refused.value.error["detail"]
    await wire.call("completeJob", jobId=job, workerId="w")


# REST


async def test_pages_that_are_no_operations(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/v1/throttle-stats")).json() == {"throttling": False}
    state = (await http.get("/state")).json()
    assert state["jobs"] == []
    assert state["broker"] == str(http.base_url.netloc.decode())
    await http.post("/v1/jobs", json={"payload": 1})
    assert len((await http.get("/state")).json()["jobs"]) == 1


async def test_rest_is_lenient_where_it_must_be(http: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in (b'{"payl', b'oad": [1', b", 2]}"):
            yield piece

    assert (await http.post("/v1/jobs", content=chunks(), headers=JSON)).status_code == 200
    charset = {"content-type": "application/json; charset=utf-8"}
    nulls = b'{"payload":null,"type":null,"maxAttempts":null,"colour":"red"}'
    assert (await http.post("/v1/jobs", content=nulls, headers=charset)).status_code == 200
    no_types: list[str] = []
    claims = [
        (await http.post("/v1/jobs/claim", json={"workerId": "w", "types": types})).json()
        for types in (None, no_types, None)
    ]
    assert [claim.get("payload", "absent") for claim in claims] == [[1, 2], None, "absent"]
    assert claims[2] == {}
    listed = (await http.get("/v1/jobs?unknown=1")).json()["jobs"]
    assert [job["maxAttempts"] for job in listed] == [0, 0]


async def test_rest_unknown_paths_and_methods(http: httpx.AsyncClient) -> None:
    for verb, path, status in (
        ("GET", "/nowhere", 404), ("GET", "/v1/jobs/claim", 405), ("DELETE", "/v1/jobs", 405),
        ("POST", "/v1/stats", 405), ("GET", f"{SERVICE}/Nothing", 404), ("POST", f"{SERVICE}/Nothing", 404),
    ):  # fmt: skip
        answer = await http.request(verb, path)
        assert answer.status_code == status, path
        if status == 405 or SERVICE not in path:
            assert answer.json()["_tag"] == "BrokerProtocolError"
    assert "POST" in (await http.delete("/v1/jobs")).headers["allow"]


# Origins

PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


@pytest.mark.parametrize(
    ("allowed", "origin", "is_allowed"),
    [
        (None, "http://localhost:5173", True), (None, "https://localhost", True),
        (None, "http://127.0.0.1:3000", True), (None, "http://[::1]:3000", True),
        (None, "null", False), (None, "https://evil.example", False), (None, "http://localhost.evil.example", False),
        (None, "http://127.0.0.1.evil.example", False), (None, "http://localhost@evil.example", False),
        (None, "file://localhost", False), (None, "nonsense", False), (None, "http://[::1", False),
        (["https://app.example"], "https://app.example", True),
        (["https://app.example"], "http://localhost:1", False),
        (["https://app.example"], "https://app.example:444", False),
        (["*"], "https://any.example", True), (["*"], "null", False),
    ],
)  # fmt: skip
async def test_origins_for_http_and_websocket(allowed: Any, origin: str, is_allowed: bool) -> None:
    async with (
        BrokerServer(storage=MemoryBackend(), port=0, allow_origins=allowed) as server,
        opened(server) as wire,
    ):
        for path in ("/v1/jobs", "/v1/jobs/x/complete", f"{SERVICE}/SubmitJob"):
            answer = await wire.http.options(path, headers={**PREFLIGHT, "origin": origin})
            assert answer.status_code == 204
            assert "Origin" in answer.headers["vary"]
            assert answer.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
            if is_allowed:
                assert answer.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
                names = answer.headers["access-control-allow-headers"].lower()
                for name in ("content-type", "connect-protocol-version", "connect-timeout-ms"):
                    assert name in names
        for verb, path in (
            ("GET", "/v1/stats"), ("POST", "/v1/jobs"), ("GET", "/none"), ("POST", f"{SERVICE}/SubmitJob"),
        ):  # fmt: skip
            answer = await wire.http.request(verb, path, headers={"origin": origin})
            assert "Origin" in answer.headers["vary"]
            assert answer.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
            if is_allowed:
                exposed = answer.headers["access-control-expose-headers"]
                assert "connect-protocol-version" in exposed.lower()
        socket = connect(f"ws://{server.address}/v1/ws", additional_headers={"origin": origin}, proxy=None)
        if is_allowed:
            async with socket as opened_socket:
                await opened_socket.send('{"id":1,"method":"getStats"}')
                assert json.loads(await opened_socket.recv())["ok"] is True
        else:
            with pytest.raises(InvalidStatus) as refused:
                await socket
            assert refused.value.response.status_code == 403


async def test_without_an_origin_nothing_of_cors_is_said(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/stats")
    assert "access-control-allow-origin" not in answer.headers


# WebSocket


@pytest.fixture
async def socket(server: BrokerServer) -> AsyncIterator[ClientConnection]:
    async with connect(f"ws://{server.address}/v1/ws?token=x&y=1", proxy=None, max_size=None) as socket:
        yield socket


async def receive(socket: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(socket.recv(), 10))


async def test_ws_pipelined_requests_are_all_answered_under_their_ids(socket: ClientConnection) -> None:
    ids = [1, "two", None, 3.5, [1, {"a": 2}], {"x": None}, True, *range(100, 150)]
    for id in ids:
        await socket.send(json.dumps({"id": id, "method": "submitJob", "params": {"payload": 1}}))
    answers = [await receive(socket) for _ in ids]
    assert all(answer.keys() == {"id", "ok", "result"} and answer["ok"] for answer in answers)
    assert sorted(map(repr, (answer["id"] for answer in answers))) == sorted(map(repr, ids))
    assert len({answer["result"]["jobId"] for answer in answers}) == len(ids)


async def test_ws_big_ids_come_back_as_they_were(socket: ClientConnection) -> None:
    await socket.send('{"id": 123456789012345678901234567890.50, "method": "getStats", "params": {}}')
    assert b"123456789012345678901234567890.50" in await asyncio.wait_for(socket.recv(decode=False), 10)


@pytest.mark.parametrize("text", ["not json", "", "{", "[1]", "5", '"x"', "null", "[" * 100_000, '{"a":1}x'])
async def test_ws_text_that_is_no_request(socket: ClientConnection, text: str) -> None:
    await socket.send(text)
    answer = await receive(socket)
    assert answer["id"] is None
    assert answer["ok"] is False
    assert answer["error"]["_tag"] == "BrokerProtocolError"
    assert answer["error"]["message"]
    await socket.send('{"id":1,"method":"getStats","params":{}}')
    assert (await receive(socket))["ok"] is True


async def test_ws_unknown_method_is_named(socket: ClientConnection) -> None:
    for method in ("launchRocket", "SubmitJob", "__class__"):
        await socket.send(json.dumps({"id": 7, "method": method, "params": {}}))
        answer = await receive(socket)
        assert (answer["id"], answer["ok"], answer["error"]["_tag"]) == (7, False, "BrokerProtocolError")
        assert method in answer["error"]["message"]
    for request in ('{"id":7}', '{"id":7,"method":5}', '{"id":7,"method":null}'):
        await socket.send(request)
        answer = await receive(socket)
        assert (answer["id"], answer["error"]["_tag"]) == (7, "BrokerProtocolError")
        assert "method" in answer["error"]["message"]


async def test_ws_frames_of_all_kinds(socket: ClientConnection) -> None:
    request = b'{"id":1,"method":"submitJob","params":{"payload":"\xc3\xa9"},"more":1}'
    await socket.send(request)  # binary
    assert (await receive(socket))["ok"] is True
    await socket.send([request[:20], request[20:50], request[50:]])  # fragmented
    assert (await receive(socket))["ok"] is True
    await socket.send([request.decode()[:9], request.decode()[9:]])
    assert (await receive(socket))["ok"] is True
    await asyncio.wait_for(await socket.ping(), 10)
    await socket.send('{"id":2,"method":"getStats","params":null}')
    assert (await receive(socket))["result"]["total"] == 3
    await socket.send('{"id":2,"method":"getStats"}')
    assert (await receive(socket))["ok"] is True
    assert socket.response is not None
    assert "permessage-deflate" in (socket.response.headers.get("sec-websocket-extensions") or "")


async def test_ws_without_deflate(server: BrokerServer) -> None:
    async with connect(f"ws://{server.address}/v1/ws", compression=None, proxy=None) as socket:
        await socket.send('{"id":1,"method":"claimJob","params":{"workerId":"w"}}')
        assert await receive(socket) == {"id": 1, "ok": True, "result": {}}


async def test_ws_stop_closes_with_1012() -> None:
    server = BrokerServer(storage=MemoryBackend(), port=0)
    await server.start()
    async with connect(f"ws://{server.address}/v1/ws", proxy=None) as socket:
        await asyncio.wait_for(server.stop(), 5)
        await asyncio.wait_for(socket.wait_closed(), 5)
        assert socket.close_code == 1012


# Connect


async def unary(http: httpx.AsyncClient, method: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await http.post(f"{SERVICE}/{method}", content=content, headers={**JSON, **headers})


async def test_connect_headers_and_names(http: httpx.AsyncClient) -> None:
    b64 = base64.b64encode(b'{"a":1}').decode()
    for headers in ({}, {"connect-protocol-version": "1"}, {"connect-timeout-ms": "5000"}):
        answer = await unary(http, "SubmitJob", {"payload": b64, "maxAttempts": 2, "type": "t"}, **headers)
        assert answer.status_code == 200
        assert answer.json().keys() == {"jobId"}
    assert (await unary(http, "SubmitJob", {"payload": b64, "max_attempts": 2})).status_code == 200
    claimed = (await unary(http, "ClaimJob", {"worker_id": "w", "types": ["t"]})).json()
    assert base64.b64decode(claimed["payload"]) == b'{"a":1}'
    done = await unary(http, "CompleteJob", {"job_id": claimed["jobId"], "worker_id": "w"})
    assert (done.status_code, done.json()) == (200, {})
    packed = gzip.compress(json.dumps({"payload": b64}).encode())
    answer = await unary(http, "SubmitJob", packed, **{"content-encoding": "gzip"})
    assert answer.status_code == 200
    plain = await unary(http, "ListJobs", {}, **{"accept-encoding": "identity"})
    assert plain.headers.get("content-encoding", "identity") == "identity"
    zipped = await unary(http, "ListJobs", {}, **{"accept-encoding": "gzip"})
    assert zipped.json() == plain.json()
    assert isinstance(plain.json()["jobs"][0]["createdAt"], str)  # int64 in proto3 JSON


async def test_connect_unknown_fields_are_ignored_in_proto(http: httpx.AsyncClient) -> None:
    body = b"\x0a\x01w" + b"\xfa\x3f\x03abc"  # worker_id = "w", and field 1023
    answer = await http.post(
        f"{SERVICE}/ClaimJob", content=body, headers={"content-type": "application/proto"}
    )
    assert (answer.status_code, answer.content) == (200, b"")


async def test_connect_errors_carry_code_and_tag(http: httpx.AsyncClient) -> None:
    answer = await unary(http, "CompleteJob", {"jobId": "none", "workerId": "w"})
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"
    (detail,) = answer.json()["details"]
    assert b"JobNotFoundError" in base64.b64decode(detail["value"] + "==")
    for text in (b"not json", b"{", b"1 2", b"\xff", b"NaN"):
        answer = await unary(http, "SubmitJob", {"payload": base64.b64encode(text).decode()})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
        assert "payload" in answer.json()["message"]


async def test_connect_wrong_content_type_is_415(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{SERVICE}/GetStats", content=b"x", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


# OpenAPI


async def test_openapi_is_valid_and_has_every_operation(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    validate(document)
    found = {
        entry["operationId"]: (verb.upper(), path)
        for path, verbs in document["paths"].items()
        for verb, entry in verbs.items()
    }
    pages = {
        "health": "/healthz",
        "readiness": "/readyz",
        "state": "/state",
        "throttleStats": "/v1/throttle-stats",
    }
    assert found == PATHS | {name: ("GET", path) for name, path in pages.items()}
