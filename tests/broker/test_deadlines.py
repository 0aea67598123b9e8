"""A claim that waits longer than its call may last: it is told that it got nothing, where that is sure."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]  # its stubs are a package of their own
import httpx
import pytest
from broker.support import JSON, SERVICE, FaultyStore, opened, until
from broker_front.support import RecordingService, front_app
from protobuf.wkt import Struct

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import models
from osqueue_client._generated.osqueue.v1 import queue_pb
from osqueue_storage import MemoryBackend

ID = {"session": "0123456789abcdef", "number": 1, "lowest": 1}


async def claim(http: httpx.AsyncClient, rpc: str, deadline_ms: int, **fields: Any) -> httpx.Response:
    headers = JSON | {"connect-timeout-ms": str(deadline_ms)}
    return await http.post(f"{SERVICE}/{rpc}", json={"workerId": "w"} | fields, headers=headers)


def refusal(answer: httpx.Response) -> dict[str, Any]:
    """The error in an answer whose deadline has passed."""
    assert answer.status_code == 504
    body = answer.json()
    assert body["code"] == "deadline_exceeded"
    [detail] = body["details"]
    fields: dict[str, Any] = detail["debug"]
    packed = base64.b64decode(detail["value"] + "==")
    assert Struct.from_binary(packed).to_python() == fields
    assert (fields["_tag"], fields["message"]) == (answer.headers["osqueue-error"], body["message"])
    return fields


@pytest.mark.parametrize("rpc", ["ClaimJob", "ClaimJobs"])
@pytest.mark.parametrize("id", [{}, {"requestId": ID}], ids=["", "id"])
async def test_a_claim_whose_deadline_comes_before_a_job_had_surely_no_effect(
    http: httpx.AsyncClient, rpc: str, id: dict[str, Any]
) -> None:
    fields = refusal(await claim(http, rpc, 300, wait=50, **id))
    assert (fields["_tag"], fields["outcome"]) == ("DeadlineExceededError", "not_applied")
    assert "no job came before the deadline" in fields["message"]
    assert "store" not in fields["message"]
    assert (await http.get("/v1/stats")).json().get("waitingClaims", 0) == 0
    await http.post("/v1/jobs", json={"payload": 1})
    assert (await http.post("/v1/jobs/claim", json={"workerId": "v"})).json()["attempt"] == 1


async def test_a_grpc_client_is_told_before_it_gives_up_by_itself() -> None:
    async with (
        BrokerServer(storage=MemoryBackend(), port=0, http2=True) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        call = channel.unary_unary(f"{SERVICE}/ClaimJob")
        request = queue_pb.ClaimJobRequest(worker_id="w", wait=50.0).to_binary()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(request, timeout=3)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no job came before the deadline" in raised.value.details()
    assert dict(raised.value.initial_metadata())["osqueue-error"] == "DeadlineExceededError"


@pytest.mark.parametrize("rpc", ["ClaimJob", "ClaimJobs"])
async def test_a_job_that_comes_before_the_deadline_is_given(http: httpx.AsyncClient, rpc: str) -> None:
    async with asyncio.TaskGroup() as group, asyncio.timeout(10):
        claiming = group.create_task(claim(http, rpc, 9000, wait=50))
        while not (await http.get("/v1/stats")).json().get("waitingClaims"):  # of a server, bounded
            await asyncio.sleep(0.005)
        id = (await http.post("/v1/jobs", json={"payload": 1})).json()["jobId"]
    given = claiming.result().json()
    assert [job["jobId"] for job in given.get("jobs", [given])] == [id]


async def test_a_wait_that_ends_before_the_deadline_ends_without_a_job_as_ever(
    http: httpx.AsyncClient,
) -> None:
    answer = await claim(http, "ClaimJob", 9000, wait=0.05)
    assert (answer.status_code, answer.json()) == (200, {})


@pytest.mark.parametrize(
    ("wait", "deadline_ms", "least", "most"),
    [(50, 10_000, 8.0, 9.5), (50, 1_000, 0.5, 0.9), (5, 10_000, 5.0, 5.0), (50, 0, 0.0, 0.0)],
    ids=["long", "short", "later", "none left"],
)
async def test_the_wait_ends_so_long_before_the_deadline_that_its_end_can_be_told(
    wait: float, deadline_ms: int, least: float, most: float
) -> None:
    service = RecordingService()
    transport = httpx.ASGITransport(front_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        await claim(http, "ClaimJob", deadline_ms, wait=wait)
    for _, request in service.calls:
        assert isinstance(request, models.ClaimJob)
        assert least <= (request.wait or 0.0) <= most
    assert service.calls or not deadline_ms


@asynccontextmanager
async def served() -> AsyncIterator[tuple[FaultyStore, httpx.AsyncClient]]:
    """A broker, whose store may be held up, and a client."""
    store = FaultyStore()
    async with (
        BrokerServer(storage=store, port=0, settings=BrokerSettings(max_attempts=1)) as server,
        opened(server) as rest,
    ):
        try:
            yield store, rest.http
        finally:
            store.gate.set()


async def claimed_by_another(http: httpx.AsyncClient) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while not (claimed := (await http.post("/v1/jobs/claim", json={"workerId": "other"})).json()):
            pass
        assert isinstance(claimed, dict)
        return claimed


async def test_a_claim_that_was_being_given_a_job_at_its_deadline_may_have_had_it_and_it_is_taken_back() -> (
    None
):
    async with served() as (store, http), asyncio.TaskGroup() as group:
        claiming = group.create_task(claim(http, "ClaimJob", 2000, wait=50))
        async with asyncio.timeout(10):
            while not (await http.get("/v1/stats")).json().get("waitingClaims"):  # of a server, bounded
                await asyncio.sleep(0.005)
        store.gate.clear()
        submitting = group.create_task(http.post("/v1/jobs", json={"payload": 1}))
        await until(lambda: store.at_gate == 1)
        fields = refusal(await claiming)
        assert (fields["_tag"], fields["outcome"]) == ("StorageBackendError", "unknown")
        assert "before the store had answered" in fields["message"]
        assert "taken back" in fields["message"]
        store.gate.set()
        claimed = await claimed_by_another(http)
        assert (claimed["jobId"], claimed["attempt"]) == ((await submitting).json()["jobId"], 1)


async def test_a_claim_whose_deadline_passes_while_the_store_does_not_answer_may_have_had_an_effect() -> None:
    async with served() as (store, http):
        id = (await http.post("/v1/jobs", json={"payload": 1})).json()["jobId"]
        store.gate.clear()
        fields = refusal(await claim(http, "ClaimJob", 200, wait=50))
        assert (fields["_tag"], fields["outcome"]) == ("StorageBackendError", "unknown")
        store.gate.set()
        claimed = await claimed_by_another(http)
        assert (claimed["jobId"], claimed["attempt"]) == (id, 1)
