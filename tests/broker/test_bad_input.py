"""Bad input on each transport: the honest status, our tag, a message that names the field, no harm done."""

# ruff: noqa: UP031  # JSON is full of braces: percent formats are the readable ones here

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from broker.support import JSON, PATHS, SERVICE, Refused, opened, rpc
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from osqueue_broker import BrokerServer

DEEP = "[" * 100_000 + "]" * 100_000
BIG = "x" * 2_000_000
JOB = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
async def broker_still_answers(server: BrokerServer) -> AsyncIterator[None]:
    async with opened(server) as wire:
        kept = (await wire.call("submitJob", payload='"kept"', type="kept"))["jobId"]
        yield
        listed = (await wire.call("listJobs"))["jobs"]
        assert [job["id"] for job in listed] == [kept]
        assert (await wire.call("claimJob", workerId="w"))["payload"] == '"kept"'


# What every JSON transport must refuse: method, JSON text of the fields, what the message names.
TABLE = [
    ("submitJob", '{"payload":1,"type":5}', "type"),
    ("submitJob", '{"payload":1,"type":["t"]}', "type"),
    ("submitJob", '{"payload":1,"maxAttempts":-1}', "maxAttempts"),
    ("submitJob", '{"payload":1,"maxAttempts":1.5}', "maxAttempts"),
    ("submitJob", '{"payload":1,"maxAttempts":2147483648}', "maxAttempts"),
    ("submitJob", '{"payload":1,"maxAttempts":1e99}', "maxAttempts"),
    ("submitJob", '{"payload":1,"maxAttempts":"3"}', "maxAttempts"),
    ("submitJob", '{"payload":1,"maxAttempts":true}', "maxAttempts"),
    ("claimJob", "{}", "workerId"),
    ("claimJob", '{"workerId":null}', "workerId"),
    ("claimJob", '{"workerId":""}', "workerId"),
    ("claimJob", '{"workerId":5}', "workerId"),
    ("claimJob", '{"workerId":"w","types":"t"}', "types"),
    ("claimJob", '{"workerId":"w","types":[1]}', "types"),
    ("heartbeat", '{"jobId":"%s"}' % JOB, "workerId"),
    ("completeJob", '{"jobId":"%s","workerId":7}' % JOB, "workerId"),
    ("completeJob", '{"jobId":"%s","workerId":""}' % JOB, "workerId"),
    ("failJob", '{"jobId":"%s","workerId":"w"}' % JOB, "error"),
    ("failJob", '{"jobId":"%s","workerId":"w","error":"no"}' % JOB, "error"),
    ("failJob", '{"jobId":"%s","workerId":"w","error":{"type":"T"}}' % JOB, "message"),
    ("failJob", '{"jobId":"%s","workerId":"w","error":{"type":1,"message":""}}' % JOB, "type"),
    ("failJob", '{"jobId":"%s","workerId":"w","error":{"type":"","message":""},"retry":"no"}' % JOB, "retry"),
]  # fmt: skip
# proto3 JSON takes numbers in strings, and a string that is absent is "".
CONNECT_TABLE = [row for row in TABLE if row[1:] not in (
    ('{"payload":1,"maxAttempts":"3"}', "maxAttempts"),
    ('{"jobId":"%s","workerId":"w","error":{"type":"T"}}' % JOB, "message"),
)]  # fmt: skip
# What is no JSON object at all.
BROKEN = ["", "{", '{"payload": {"a":', '{"payload": NaN}', '{"payload": Infinity}', "[]", "5", "null", '"x"',
          '{"payload": 01}', "{'payload': 1}", '{"payload":1}}', '{"payload": ' + DEEP + "}", DEEP,
          '{"ignored": ' + DEEP + "}", "{" * 100_000, '{"payload": 1,}']  # fmt: skip


def assert_malformed(error: dict[str, Any], named: str = "") -> None:
    assert error["_tag"] == "BrokerProtocolError"
    assert named in error["message"]
    assert error["message"]
    if named:
        assert named in error["field"]


def path_of(method: str) -> str:
    return PATHS[method][1].replace("{jobId}", JOB)


@pytest.mark.parametrize(("method", "text", "named"), TABLE)
async def test_rest_wrong_fields(http: httpx.AsyncClient, method: str, text: str, named: str) -> None:
    answer = await http.post(path_of(method), content=text, headers=JSON)
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("application/json")
    assert_malformed(answer.json(), named)


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
async def test_rest_no_json_object(http: httpx.AsyncClient, text: str) -> None:
    for method in ("submitJob", "claimJob", "completeJob", "failJob"):
        answer = await http.post(path_of(method), content=text, headers=JSON)
        assert answer.status_code == 400
        assert_malformed(answer.json())
        assert method in answer.json()["message"]


async def test_rest_not_utf8(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/jobs", content=b'{"payload":"\xff"}', headers=JSON)
    assert answer.status_code == 400
    assert_malformed(answer.json())


async def test_rest_too_large_also_chunked(http: httpx.AsyncClient) -> None:
    body = json.dumps({"payload": BIG}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 50_000):
            yield body[at : at + 50_000]

    for content in (body, chunks()):
        answer = await http.post("/v1/jobs", content=content, headers=JSON)
        assert answer.status_code == 413
        assert answer.json()["_tag"] == "RequestTooLargeError"
        assert "1,048,576" in answer.json()["message"]


async def test_rest_queries(http: httpx.AsyncClient) -> None:
    for query, named in (("limit=0", "limit"), ("limit=x", "limit"), ("limit=1001", "limit"),
                         ("cursor=abc", "cursor"), ("cursor=-1", "cursor")):  # fmt: skip
        answer = await http.get(f"/v1/dead-jobs?{query}")
        assert answer.status_code == 400
        assert_malformed(answer.json(), named)


async def test_unknown_job(wire: Any) -> None:
    failed = {"error": {"type": "E", "message": "m"}}
    for method, more in (
        ("heartbeat", {"workerId": "w"}), ("completeJob", {"workerId": "w"}),
        ("failJob", {"workerId": "w", **failed}), ("requeueDead", {}), ("deleteDead", {}),
    ):  # fmt: skip
        for job in (JOB, "no-uuid", "ü %"):
            if wire.name == "rest" and job == "ü %":
                continue
            with pytest.raises(Refused) as refused:
                await wire.call(method, jobId=job, **more)
            assert refused.value.tag == "JobNotFoundError"
            assert job in refused.value.message
            assert refused.value.status in (404, None)
            assert refused.value.code in ("not_found", None)


# WebSocket


@pytest.fixture
async def socket(server: BrokerServer) -> AsyncIterator[Any]:
    async with connect(f"ws://{server.address}/v1/ws", proxy=None, max_size=None) as socket:
        yield socket


async def ask(socket: Any, text: str | bytes | list[str]) -> dict[str, Any]:
    await socket.send(text)
    answer: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 10))
    return answer


@pytest.mark.parametrize(("method", "text", "named"), TABLE)
async def test_ws_wrong_fields(socket: Any, method: str, text: str, named: str) -> None:
    answer = await ask(socket, '{"id":[1],"method":"%s","params":%s}' % (method, text))
    assert (answer["id"], answer["ok"]) == ([1], False)
    assert_malformed(answer["error"], named)


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
async def test_ws_params_that_are_no_object(socket: Any, text: str) -> None:
    if text == "null":
        return
    answer = await ask(socket, '{"id":1,"method":"submitJob","params":%s}' % text)
    assert answer["ok"] is False
    assert answer["id"] in (1, None)
    assert_malformed(answer["error"])
    assert (await ask(socket, '{"id":2,"method":"getStats"}'))["id"] == 2


async def test_ws_missing_job_id_and_paging(socket: Any) -> None:
    for method in ("heartbeat", "completeJob", "failJob", "requeueDead", "deleteDead"):
        for job in ("", '"jobId":"",'):
            params = '{%s"workerId":"w","error":{"type":"E","message":"m"}}' % job
            answer = await ask(socket, '{"id":1,"method":"%s","params":%s}' % (method, params))
            assert_malformed(answer["error"], "jobId")
    for page, named in (({"limit": 0}, "limit"), ({"limit": "2"}, "limit"), ({"cursor": "x"}, "cursor")):
        answer = await ask(socket, json.dumps({"id": 1, "method": "listDead", "params": page}))
        assert_malformed(answer["error"], named)


async def test_ws_bad_requests_leave_their_pipelined_neighbours_alone(socket: Any) -> None:
    texts = ["{", '{"id":1,"method":"getStats"}', DEEP, '{"id":2,"method":"x"}', b"\xff\x00",
             '{"id":3,"method":"claimJob"}', '{"id":4,"method":"getStats"}']  # fmt: skip
    for text in texts:
        await socket.send(text)
    answers = [json.loads(await asyncio.wait_for(socket.recv(), 10)) for _ in texts]
    assert {answer["id"] for answer in answers if answer["ok"]} == {1, 4}
    assert sorted(answer["id"] or 0 for answer in answers if not answer["ok"]) == [0, 0, 0, 2, 3]


async def test_ws_too_large(server: BrokerServer, socket: Any) -> None:
    request = json.dumps({"id": 1, "method": "submitJob", "params": {"payload": BIG}})
    in_two = [request[:900_000], request[900_000:]]
    for text in (request, in_two):
        answer = await ask(socket, text)
        assert answer["ok"] is False
        assert answer["error"]["_tag"] == "RequestTooLargeError"
    async with connect(f"ws://{server.address}/v1/ws", proxy=None, compression=None) as other:
        with pytest.raises(ConnectionClosed) as closed:
            await ask(other, "x" * 40_000_000)
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009


# Connect


def as_connect(text: str) -> str:
    """The same fields with the payload as proto3 JSON wants it."""
    return text.replace('"payload":1', '"payload":"MQ=="')


@pytest.mark.parametrize(("method", "text", "named"), CONNECT_TABLE)
async def test_connect_json_wrong_fields(http: httpx.AsyncClient, method: str, text: str, named: str) -> None:
    answer = await http.post(f"{SERVICE}/{rpc(method)}", content=as_connect(text), headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_argument"
    assert answer.headers["osqueue-error"] == "BrokerProtocolError"
    assert b"BrokerProtocolError" in base64.b64decode(answer.json()["details"][0]["value"] + "==")
    message = answer.json()["message"]  # protobuf's own reader names fields in snake_case, a message by type
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in named)
    assert named in message or snake in message or (named == "error" and "JobError" in message)


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
async def test_connect_json_no_message(http: httpx.AsyncClient, text: str) -> None:
    for method in ("SubmitJob", "ClaimJob", "CompleteJob"):
        answer = await http.post(f"{SERVICE}/{method}", content=text, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
        assert answer.headers["osqueue-error"] == "BrokerProtocolError"


@pytest.mark.parametrize(
    "body", [b"\xff\xff", b"\x0a\x05ab", b"\x0a", b"\x0a\x02\xff\xfe", b"\x0b" * 100_000]
)
async def test_connect_proto_garbage(http: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/proto"}
    answer = await http.post(f"{SERVICE}/ClaimJob", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
    assert answer.headers["osqueue-error"] == "BrokerProtocolError"


@pytest.mark.parametrize("name", ["connect-json", "connect-proto"])
async def test_connect_payloads_and_missing_fields(server: BrokerServer, name: str) -> None:
    async with opened(server, name) as wire:
        for method, fields, named in (
            ("submitJob", {"payload": "NaN"}, "payload"), ("submitJob", {"payload": '{"a":'}, "payload"),
            ("submitJob", {"payload": DEEP}, "payload"), ("submitJob", {}, "payload"),
            ("submitJob", {"payload": "1", "maxAttempts": -1}, "maxAttempts"),
            ("claimJob", {}, "workerId"), ("claimJob", {"workerId": ""}, "workerId"),
            ("heartbeat", {"workerId": "w"}, "jobId"), ("completeJob", {"jobId": JOB}, "workerId"),
            ("failJob", {"jobId": JOB, "workerId": "w"}, "error"), ("deleteDead", {}, "jobId"),
            ("listDead", {"limit": 0}, "limit"), ("listDead", {"cursor": "x"}, "cursor"),
        ):  # fmt: skip
            with pytest.raises(Refused) as refused:
                await wire.call(method, **fields)
            assert (refused.value.status, refused.value.code) == (400, "invalid_argument")
            assert refused.value.tag == "BrokerProtocolError"
            assert named in refused.value.message, (method, fields)


async def test_connect_too_large_also_chunked_and_zipped(http: httpx.AsyncClient) -> None:
    encoded = base64.b64encode(json.dumps(BIG).encode()).decode()
    body = json.dumps({"payload": encoded}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 50_000):
            yield body[at : at + 50_000]

    for content, more in (
        (body, {}), (chunks(), {}), (gzip.compress(body), {"content-encoding": "gzip"}),
    ):  # fmt: skip
        answer = await http.post(f"{SERVICE}/SubmitJob", content=content, headers={**JSON, **more})
        assert answer.json()["code"] == "resource_exhausted"
        assert answer.status_code in (413, 429)
        assert answer.headers["osqueue-error"] == "RequestTooLargeError"
