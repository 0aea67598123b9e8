"""The worker and a broker that knows batches and waiting: no polling, one heartbeat for all, nothing stranded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from worker.support import Overridden, until

from osqueue_broker import BrokerServer
from osqueue_client import BrokerLeadershipError, OsqueueClient
from osqueue_storage import MemoryBackend
from osqueue_worker import Worker

NEVER = 3600.0
"""A poll interval that no test can wait for."""


@pytest.fixture
async def server() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        yield server


@pytest.fixture
async def transport(server: BrokerServer) -> Overridden:
    return Overridden(f"http://{server.address}")


@pytest.fixture
async def other(server: BrokerServer) -> AsyncIterator[OsqueueClient]:
    async with OsqueueClient(server.address) as other:
        yield other


async def until_waiting(client: OsqueueClient, count: int) -> None:
    async with asyncio.timeout(10):
        while (await client.get_stats()).waiting_claims != count:
            await asyncio.sleep(0.005)


def claims(transport: Overridden) -> list[Any]:
    return [request for request in transport.requests if type(request).__name__ == "ClaimJobs"]


@pytest.mark.parametrize("name", ["rest", "ws", "connect"])
async def test_idle_worker_starts_a_job_without_polling(
    server: BrokerServer, other: OsqueueClient, name: Any
) -> None:
    ran: list[object] = []
    async with (
        OsqueueClient(server.address, transport=name) as client,
        Worker(client=client, handlers={"a": ran.append}, poll_interval=NEVER),
    ):
        await until_waiting(other, 1)
        for n in range(3):
            await other.submit_job("a", n)
            await until(lambda n=n: len(ran) == n + 1, 5)  # type: ignore[misc]
    assert ran == [0, 1, 2]


async def test_idle_worker_sends_nothing_but_a_claim_that_waits(
    transport: Overridden, other: OsqueueClient
) -> None:
    async with OsqueueClient(transport=transport) as client:
        settings: dict[str, Any] = {"concurrency": 7, "poll_interval": 0.01, "heartbeat_interval": 0.01}
        async with Worker(client=client, handlers={"a": print}, **settings):
            await until_waiting(other, 1)
            await asyncio.sleep(0.2)
            assert transport.called == {"getStats": 1, "claimJob": 1}
    [claim] = claims(transport)
    assert (claim.limit, claim.wait, claim.types) == (7, 20.0, ("a",))


async def test_slots_that_come_free_are_asked_for_while_a_claim_waits(
    transport: Overridden, other: OsqueueClient
) -> None:
    go: dict[int, asyncio.Event] = {n: asyncio.Event() for n in range(6)}
    running: set[int] = set()

    async def handle(n: int) -> None:
        running.add(n)
        await go[n].wait()

    async with (
        OsqueueClient(transport=transport) as client,
        Worker(client=client, handlers={"a": handle}, concurrency=3, poll_interval=NEVER),
    ):
        await until_waiting(other, 1)
        await other.submit_jobs([("a", 0), ("a", 1)])
        await until(lambda: running == {0, 1})
        await until_waiting(other, 1)  # for the third slot
        go[0].set()
        await until_waiting(other, 2)  # and for the first
        go[1].set()
        await until(lambda: transport.called["completeJob"] == 2)
        await other.submit_jobs([("a", n) for n in range(2, 6)])
        await until(lambda: running == {0, 1, 2, 3, 4}, 5)
        assert [claim.limit for claim in claims(transport)][:3] == [3, 1, 1]
        for event in go.values():
            event.set()
        await until(lambda: 5 in running)


async def test_one_request_keeps_the_leases_of_all_jobs(transport: Overridden, other: OsqueueClient) -> None:
    running: list[object] = []
    go = asyncio.Event()

    async def handle(payload: object) -> None:
        running.append(payload)
        await go.wait()

    async with OsqueueClient(transport=transport) as client:
        await other.submit_jobs([("a", n) for n in range(50)])
        settings: dict[str, Any] = {"concurrency": 50, "heartbeat_interval": 0.05}
        async with Worker(client=client, handlers={"a": handle}, **settings):
            await until(lambda: transport.called["heartbeat"] >= 3)
            beats = [request for request in transport.requests if type(request).__name__ == "LeasedJobs"]
            assert {len(beat.jobs) for beat in beats} == {50}
            assert {lease.lease_token is None for lease in beats[0].jobs} == {False}
            go.set()


async def test_only_the_job_whose_lease_is_lost_is_cancelled(
    transport: Overridden, other: OsqueueClient, caplog: pytest.LogCaptureFixture
) -> None:
    running: set[int] = set()
    cancelled: list[int] = []
    done: list[object] = []
    go = asyncio.Event()

    async def handle(n: int) -> None:
        running.add(n)
        try:
            await go.wait()
        except asyncio.CancelledError:
            cancelled.append(n)
            raise

    async with OsqueueClient(transport=transport) as client:
        ids = await other.submit_jobs([("a", n) for n in range(5)])
        worker = Worker(
            client=client,
            handlers={"a": handle},
            worker_id="w",
            heartbeat_interval=0.05,
            on_job_completed=lambda job: done.append(job.payload),
        )
        with caplog.at_level(logging.WARNING, "osqueue.worker"):
            async with worker:
                await until(lambda: len(running) == 5)
                await other.complete_job(ids[2], "w")
                await until(lambda: cancelled)
                go.set()
    assert cancelled == [2]
    assert sorted(done, key=str) == [0, 1, 3, 4]
    assert [record.job_id for record in caplog.records if record.event == "lease_lost"] == [ids[2]]  # type: ignore[attr-defined]


async def test_jobs_that_end_together_are_reported_and_followed_in_one_request_each(
    transport: Overridden, other: OsqueueClient
) -> None:
    done: list[object] = []

    async def handle(payload: object) -> None:
        return None

    async with OsqueueClient(transport=transport) as client:
        await other.submit_jobs([("a", n) for n in range(300)])
        async with Worker(
            client=client,
            handlers={"a": handle},
            concurrency=100,
            on_job_completed=lambda job: done.append(1),
        ):
            await until(lambda: len(done) == 300)
    assert transport.called["completeJob"] <= 6
    assert [claim.limit for claim in claims(transport)][:3] == [100, 100, 100]
    assert (await other.get_stats()).completed_total == 300


@pytest.mark.parametrize("name", ["rest", "ws", "connect"])
async def test_stop_ends_a_claim_that_waits_and_strands_no_job(
    server: BrokerServer, other: OsqueueClient, name: Any
) -> None:
    async with OsqueueClient(server.address, transport=name) as client:
        working = Worker(client=client, handlers={"a": print}, poll_interval=NEVER)
        working.start()
        await until_waiting(other, 1)
        await asyncio.wait_for(working.stop(), 3)
        await until_waiting(other, 0)
        job_id = await other.submit_job("a", 1)
        job = await other.claim_job("another")
        assert job is not None
        assert (job.id, job.attempt) == (job_id, 1)


async def test_worker_turns_to_polling_when_the_next_broker_knows_no_waiting_and_back(
    transport: Overridden, other: OsqueueClient
) -> None:
    ran: list[object] = []
    async with (
        OsqueueClient(transport=transport) as client,
        Worker(client=client, handlers={"a": ran.append}, poll_interval=0.02),
    ):
        await until_waiting(other, 1)
        transport.knows_batches = False
        transport.before["claimJob"] = _elsewhere(transport)
        await other.submit_job("a", 1)  # answers the claim that waits
        await until(lambda: transport.called["claimJob"] >= 6)
        await other.submit_job("a", 2)
        await until(lambda: ran == [1, 2])
        transport.knows_batches = True
        await client.reconnect()
        await until_waiting(other, 1)
        await other.submit_job("a", 3)
        await until(lambda: ran == [1, 2, 3])


async def test_worker_that_polls_an_old_broker_waits_at_the_next_that_knows_how(
    transport: Overridden, other: OsqueueClient
) -> None:
    ran: list[object] = []
    transport.knows_batches = False
    async with (
        OsqueueClient(transport=transport) as client,
        Worker(client=client, handlers={"a": ran.append}, poll_interval=0.02),
    ):
        await until(lambda: transport.called["claimJob"] >= 3)
        await other.submit_jobs([("a", n) for n in range(15)])
        await until(lambda: len(ran) == 15)
        transport.knows_batches = True
        await client.reconnect()
        await until_waiting(other, 1)


def _elsewhere(transport: Overridden) -> Any:
    """The first claim meets another broker, and the client learns anew what it knows."""

    async def once() -> None:
        del transport.before["claimJob"]
        raise BrokerLeadershipError("not me")

    return once


async def test_jobs_of_a_worker_that_fails_to_report_do_not_pile_up(
    transport: Overridden, other: OsqueueClient
) -> None:
    ran: list[object] = []
    go = asyncio.Event()
    transport.before["completeJob"] = go.wait

    async def handle(payload: object) -> None:
        ran.append(payload)

    async with OsqueueClient(transport=transport) as client:
        await other.submit_jobs([("a", n) for n in range(50)])
        async with Worker(client=client, handlers={"a": handle}, concurrency=5):
            await until(lambda: len(ran) >= 10)
            await asyncio.sleep(0.1)
            assert len(ran) <= 15
            go.set()
            await until(lambda: len(ran) == 50)
