"""Claims that wait for a job in the broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from client.support import NAMES, OLD, Watched, transport_to
from client.virtual_time import SILENCE, Broker, in_virtual_time, now
from websockets.asyncio.client import connect

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import BrokerLeadershipError, ConfigError, Job, OsqueueClient, TransportConnectionError
from osqueue_client.models import ClaimedJob
from osqueue_client.operations import CLAIM_JOB, GET_STATS, Operation
from osqueue_client.session import SingleSessions
from osqueue_client.transports import TransportName
from osqueue_storage import MemoryBackend

# No sign of life, and no other write, comes into a commit that is counted.
QUIET = BrokerSettings(broker_heartbeat_interval=20.0, broker_heartbeat_timeout=90.0)


@pytest.fixture
async def server() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(storage=MemoryBackend(), port=0, settings=QUIET) as server:
        yield server


async def until_waiting(client: OsqueueClient, count: int) -> None:
    """Return when so many claims wait in the broker."""
    async with asyncio.timeout(10):
        while (await client.get_stats()).waiting_claims != count:
            await asyncio.sleep(0.005)


async def test_waiting_claim_is_answered_by_the_commit_of_the_submit(client: OsqueueClient) -> None:
    waiting = asyncio.create_task(client.claim_job("w", ["a"], wait=30))
    await until_waiting(client, 1)
    before = (await client.get_stats()).commits
    job_id = await client.submit_job("a", {"n": 1})
    job = await asyncio.wait_for(waiting, 5)
    after = (await client.get_stats()).commits
    assert job is not None
    assert (job.id, job.attempt, job.payload) == (job_id, 1, {"n": 1})
    assert before is not None
    assert after is not None
    assert after.writes - before.writes == 1


async def test_claims_are_served_in_the_order_in_which_they_came(client: OsqueueClient) -> None:
    waiting: list[asyncio.Task[list[Job]]] = []
    for n in range(3):
        claim = client.claim_jobs(f"w{n}", limit=2, wait=30)
        waiting.append(asyncio.create_task(claim))
        await until_waiting(client, n + 1)
    ids = await client.submit_jobs([("a", n) for n in range(3)])
    got = [[job.id for job in await asyncio.wait_for(claim, 5)] for claim in waiting[:2]]
    assert got == [ids[:2], ids[2:]]
    assert not waiting[2].done()
    waiting[2].cancel()


async def test_claim_that_is_cancelled_leaves_its_place_and_strands_no_job(client: OsqueueClient) -> None:
    waiting = [asyncio.create_task(client.claim_job(f"w{n}", wait=30)) for n in range(4)]
    await until_waiting(client, 4)
    for claim in waiting[:3]:
        claim.cancel()
    await until_waiting(client, 1)
    waiting[3].cancel()
    await until_waiting(client, 0)
    job_id = await client.submit_job("a", 1)
    job = await client.claim_job("another")
    assert job is not None
    assert (job.id, job.attempt) == (job_id, 1)


async def test_answer_that_a_cancellation_crosses_on_its_way_is_taken_back(server: BrokerServer) -> None:
    async with (
        connect(f"ws://{server.address}/v1/ws", proxy=None) as socket,
        OsqueueClient(server.address) as other,
    ):

        async def answer() -> Any:
            async with asyncio.timeout(5):
                return json.loads(await socket.recv())

        claim = {"id": "mine", "method": "claimJob", "params": {"workerId": "w", "wait": 30}}
        cancel = {"id": 2, "method": "cancelRequest", "params": {"id": "mine"}}
        await socket.send(json.dumps(claim))
        await until_waiting(other, 1)
        job_id = await other.submit_job("a", 1)
        assert (await answer())["result"]["jobId"] == job_id
        await socket.send(json.dumps(cancel | {"params": {"id": "another's"}}))
        assert await answer() == {"id": 2, "ok": True, "result": {}}
        assert await other.claim_job("another") is None
        await socket.send(json.dumps(cancel))
        await answer()
        async with asyncio.timeout(5):
            job = await other.claim_job("another", wait=5)
        assert job is not None
        assert (job.id, job.attempt) == (job_id, 1)
        # And one that still waits is answered with nothing.
        await socket.send(json.dumps(claim))
        await until_waiting(other, 1)
        await socket.send(json.dumps(cancel))
        answers = [await answer(), await answer()]
        assert {"id": "mine", "ok": True, "result": {}} in answers


async def test_other_calls_of_the_connection_go_on_when_a_claim_is_cancelled(client: OsqueueClient) -> None:
    waiting = asyncio.create_task(client.claim_job("w", ["a"], wait=30))
    staying = asyncio.create_task(client.claim_job("w", ["b"], wait=30))
    await until_waiting(client, 2)
    waiting.cancel()
    await until_waiting(client, 1)
    job_id = await client.submit_job("b", 1)
    job = await asyncio.wait_for(staying, 5)
    assert job is not None
    assert job.id == job_id


async def test_claim_without_a_job_returns_when_its_wait_is_over(client: OsqueueClient) -> None:
    began_at = asyncio.get_running_loop().time()
    assert await client.claim_job("w", wait=0.3) is None
    assert await client.claim_jobs("w", limit=5, wait=0.2) == []
    assert 0.45 < asyncio.get_running_loop().time() - began_at < 5


async def test_broker_that_knows_no_waiting_is_asked_once(server: BrokerServer, transport_name: str) -> None:
    watched = Watched(transport_to(transport_name, f"http://{server.address}"), *OLD)
    async with OsqueueClient(transport=watched) as client:
        assert await client.claim_job("w", wait=30) is None
        assert await client.claim_jobs("w", limit=5, wait=30) == []
        job_id = await client.submit_job("a", 1)
        [job] = await client.claim_jobs("w", limit=5, wait=30)
        assert job.id == job_id
    assert {request.wait for request in watched.of("claimJob")} == {None}


@pytest.mark.parametrize("transport", NAMES)
async def test_wait_goes_on_across_a_takeover(transport: TransportName) -> None:
    store = MemoryBackend()
    first = BrokerServer(storage=store, port=0)
    await first.start()
    async with (
        BrokerServer(storage=store, port=0, standby=True) as second,
        OsqueueClient(storage=store, transport=transport, timeout=20) as client,
    ):
        waiting = asyncio.create_task(client.claim_job("w", wait=60))
        await until_waiting(client, 1)
        await first.stop()
        await asyncio.wait_for(second.wait_leading(), 20)
        async with OsqueueClient(second.address) as producer:
            await until_waiting(producer, 1)
            job_id = await producer.submit_job("a", 1)
        job = await asyncio.wait_for(waiting, 10)
    assert job is not None
    assert job.id == job_id


async def test_claims_that_wait_are_numbered_apart_from_all_else(server: BrokerServer) -> None:
    watched = Watched(transport_to("rest", f"http://{server.address}"))
    async with OsqueueClient(transport=watched) as client:
        waiting = [asyncio.create_task(client.claim_job("w", ["never"], wait=30)) for _ in range(2)]
        await until_waiting(client, 2)
        for n in range(5):
            await client.submit_job("a", n)
            assert await client.claim_job("w", ["a"], wait=30)
        for claim in waiting:
            claim.cancel()
    claims = [request.request_id for request in watched.of("claimJob")]
    submits = [request.request_id for request in watched.of("submitJob")]
    assert len({id.session for id in claims[:2]}) == 2
    assert len({id.session for id in claims[2:]}) == 1
    assert {id.session for id in submits}.isdisjoint(id.session for id in claims)
    # Nothing that was answered need be remembered.
    assert [(id.number, id.lowest) for id in submits] == [(n, n) for n in range(1, 6)]
    assert [(id.number, id.lowest) for id in claims[2:]] == [(n, n) for n in range(1, 6)]


def test_single_session_is_used_again_only_when_nobody_waits_in_it() -> None:
    names = iter(["first", "second", "third"])
    sessions = SingleSessions(lambda: next(names))
    one, two = sessions.take(0.0), sessions.take(0.0)
    assert (one.session.id, two.session.id) == ("first", "second")
    one.give_back()
    again = sessions.take(1.0)
    assert (again.session.id, again.number) == ("first", 2)
    again.give_back()
    two.give_back()
    assert sessions.take(100.0).session.id == "third"


class Waits(Broker):
    """A broker without jobs, where claims wait; an answer of its script comes at the end of the wait."""

    def __init__(self, *script: Any) -> None:
        super().__init__(*script, features=("requestIds", "wait", "batch"))

    async def call(self, operation: Operation[Any, Any], request: Any, /) -> Any:
        answer = super().call(operation, request)
        if operation is CLAIM_JOB and (not self.script or self.script[0] is not SILENCE):
            await asyncio.sleep(getattr(request, "wait", None) or 0)
        return await answer

    @property
    def waits(self) -> list[float | None]:
        return [getattr(request, "wait", None) for request in self.asked]


def client_of(broker: Broker, timeout: float = 30.0) -> OsqueueClient:
    def connected(url: str) -> Broker:
        broker.is_closed = False
        return broker

    return OsqueueClient("http://a", transport=connected, timeout=timeout)


@in_virtual_time
async def test_long_wait_is_made_of_requests_of_20_seconds() -> None:
    broker = Waits()
    async with client_of(broker) as client:
        assert await client.claim_job("w", wait=50) is None
    assert broker.waits == [20.0, 20.0, 10.0]
    assert [id.number for id in broker.ids] == [1, 2, 3]
    assert now() == pytest.approx(50, abs=0.1)


@in_virtual_time
async def test_waiting_request_is_given_up_and_repeated_after_its_wait_and_what_any_other_gets() -> None:
    broker = Waits(SILENCE)
    async with client_of(broker) as client:
        assert await client.claim_job("w", wait=45) is None
    assert broker.waits[0] == 20.0
    assert [id.number for id in broker.ids] == [1, 1]
    assert broker.waits[1] == pytest.approx(45 - 33, abs=0.1)
    assert now() == pytest.approx(45, abs=0.1)


@in_virtual_time
async def test_timeout_of_a_waiting_claim_begins_when_its_wait_is_over() -> None:
    refused = TransportConnectionError("refused", outcome="not_applied")

    class Away(Broker):
        async def call(self, operation: Operation[Any, Any], request: Any, /) -> Any:
            await asyncio.sleep(0)
            raise refused

    async with client_of(Away(), timeout=5) as client:
        with pytest.raises(TransportConnectionError):
            await client.claim_job("w", wait=100)
        assert 100 < now() <= 105
        with pytest.raises(TransportConnectionError):
            await client.claim_job("w", timeout=2)
        assert now() <= 107


@in_virtual_time
async def test_claim_that_is_too_old_to_be_repeated_is_asked_anew_while_its_caller_waits() -> None:
    lost = TransportConnectionError("the answer was lost", outcome="unknown")

    class Gone(Waits):
        """Does not answer from its first claim on, for 70 s."""

        async def call(self, operation: Operation[Any, Any], request: Any, /) -> Any:
            if operation is not GET_STATS and now() < 70:
                self.asked.append(request)
                await asyncio.sleep(1)
                raise lost
            return await super().call(operation, request)

    broker = Gone()
    async with client_of(broker) as client:
        assert await client.claim_job("w", wait=100) is None
    numbers = [id.number for id in broker.ids]
    assert sorted(set(numbers)) == [1, 2, 3]
    assert all(id.age_ms < 60_000 for id in broker.ids)


@in_virtual_time
async def test_broker_that_stops_is_followed_by_the_next_within_the_wait() -> None:
    stops = BrokerLeadershipError("this broker stops", outcome="not_applied")
    job = ClaimedJob(job_id="j", attempt=1)
    broker = Waits(stops, job)
    async with client_of(broker) as client:
        found = await client.claim_job("w", wait=30)
    assert found is not None
    assert found.id == "j"
    assert len({(id.session, id.number) for id in broker.ids}) == 1


@in_virtual_time
async def test_broker_that_answers_at_once_is_not_asked_again_and_again() -> None:
    broker = Broker(features=("requestIds", "wait", "batch"))
    async with client_of(broker) as client:
        assert await client.claim_job("w", wait=30) is None
    assert len(broker.asked) == 1


@pytest.mark.parametrize("wait", [-1.0, float("nan")])
async def test_wait_that_cannot_be_is_refused(wait: float) -> None:
    async with OsqueueClient("http://127.0.0.1:1") as client:
        with pytest.raises(ConfigError, match="wait"):
            await client.claim_job("w", wait=wait)
