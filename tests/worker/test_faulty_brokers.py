"""The worker against proxies and brokers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from worker.support import CUT_BODY, NOT_JSON, Overridden, Proxy, answer, proxy_before, raising, until

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import (
    BrokerLeadershipError,
    BrokerProtocolError,
    DiscoveryError,
    Job,
    OsqueueClient,
    OsqueueError,
    QueueFullError,
    StorageBackendError,
    TransportConfigError,
    TransportConnectionError,
    TransportRequestError,
)
from osqueue_storage import MemoryBackend
from osqueue_worker import Worker, WorkerExecutionError

HTML = [answer(status) for status in ("502 Bad Gateway", "404 Not Found", "403 Forbidden", "400 Bad Request")]
TAGGED = answer(
    "400 Bad Request", '{"_tag": "BrokerProtocolError", "message": "cut on its way"}', "application/json"
)


@pytest.fixture
async def server() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        yield server


@pytest.fixture
async def proxy(server: BrokerServer) -> AsyncIterator[Proxy]:
    async with proxy_before(server.address) as proxy:
        yield proxy


@pytest.fixture(params=["waits", "polls"])
async def transport(server: BrokerServer, request: pytest.FixtureRequest) -> Overridden:
    return Overridden(f"http://{server.address}", knows_batches=request.param == "waits")


class Recorded:
    """A worker's settings that write down which hooks were called."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def settings(self) -> dict[str, Any]:
        return {
            "poll_interval": 0.01,
            "on_job_completed": lambda job: self.ends.append("completed"),
            "on_job_failed": lambda job, error: self.ends.append(f"failed: {error}"),
        }


def fails(payload: object) -> None:
    raise ValueError("no")


@pytest.mark.parametrize("transport_name", ["rest", "connect"])
@pytest.mark.parametrize("wrong", [*HTML, CUT_BODY, NOT_JSON, TAGGED])
async def test_wrong_answer_to_a_claim_is_survived(proxy: Proxy, transport_name: Any, wrong: bytes) -> None:
    proxy.instead["claimJob"] = [wrong, wrong]
    recorded = Recorded()
    async with OsqueueClient(proxy.url, transport=transport_name) as client:
        await client.submit_job("a", 1)
        async with Worker(client=client, handlers={"a": lambda payload: None}, **recorded.settings()):
            await until(lambda: recorded.ends == ["completed"])
    assert proxy.seen["claimJob"] >= 3


@pytest.mark.parametrize("leader", ["no address at all", "127.0.0.1:1"])
async def test_claim_that_is_sent_to_a_wrong_leader_is_survived(proxy: Proxy, leader: str) -> None:
    body = f'{{"_tag": "BrokerLeadershipError", "message": "not me", "leader": "{leader}"}}'
    proxy.instead["claimJob"] = [answer("503 Service Unavailable", body, "application/json")]
    recorded = Recorded()
    async with OsqueueClient(proxy.url, transport="rest") as client:
        await client.submit_job("a", 1)
        async with Worker(client=client, handlers={"a": lambda payload: None}, **recorded.settings()):
            await until(lambda: recorded.ends == ["completed"])


async def test_job_of_a_type_that_was_not_asked_for_is_left_alone(
    server: BrokerServer, transport: Overridden
) -> None:
    async with OsqueueClient(f"http://{server.address}") as producer:
        await producer.submit_job("other", 1)
    inner = transport.inner

    class Careless:
        """Asks for any job, as a broker would that ignores the types."""

        async def call(self, operation: Any, request: Any, /) -> Any:
            if operation.name == "claimJobs":
                request = msgspec.structs.replace(request, types=None)
            return await inner.call(operation, request)

        async def aclose(self) -> None:
            await inner.aclose()

    ran: list[object] = []
    async with OsqueueClient(transport=Careless()) as client:
        recorded = Recorded()
        async with Worker(client=client, handlers={"a": ran.append}, **recorded.settings()):
            async with asyncio.timeout(10):
                while (await client.get_stats()).in_progress == 0:
                    await asyncio.sleep(0.005)
            await client.submit_job("a", 2)
            await until(lambda: recorded.ends == ["completed"])
    assert ran == [2]


async def test_job_runs_at_once_while_another_claim_gets_no_answer(server: BrokerServer) -> None:
    transport = Overridden(f"http://{server.address}", knows_batches=False)
    ran: list[object] = []
    async with OsqueueClient(transport=transport) as client:
        never = asyncio.Event()
        calls: list[int] = []

        async def hang_at_the_third() -> None:
            calls.append(1)
            if len(calls) == 3:
                await never.wait()

        transport.before["claimJob"] = hang_at_the_third
        for n in range(3):
            await client.submit_job("a", n)
        async with Worker(client=client, handlers={"a": ran.append}, concurrency=3, poll_interval=0.01):
            await until(lambda: len(calls) >= 3 and len(ran) >= 2, 5)
            never.set()


PASSING: list[OsqueueError] = [
    TransportRequestError("HTML", status=502, outcome="unknown"),
    TransportRequestError("HTML", status=500, outcome="unknown"),
    TransportRequestError("slow down", status=429, outcome="not_applied"),
    TransportRequestError("slow down", remote_tag="resource_exhausted", outcome="not_applied"),
    TransportRequestError("HTML", remote_tag="unavailable", outcome="unknown"),
    TransportConnectionError("refused", outcome="not_applied"),
    DiscoveryError("the leader's address cannot be used"),
    BrokerProtocolError("the answer is malformed", outcome="unknown"),
    BrokerLeadershipError("not me"),
    StorageBackendError("slow", outcome="unknown"),
    QueueFullError("full"),
]
REFUSALS: list[OsqueueError] = [
    *(
        TransportRequestError("no", status=status, outcome="not_applied")
        for status in (400, 401, 403, 404, 405)
    ),
    TransportRequestError("no", status=501, outcome="unknown"),
    TransportRequestError("no", remote_tag="unimplemented", outcome="not_applied"),
    BrokerProtocolError("there is nothing here"),
    TransportConfigError("no Connect in a fork"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
@pytest.mark.parametrize("operation", ["completeJob", "failJob"])
async def test_report_is_repeated_after_what_may_pass(
    transport: Overridden, operation: str, error: OsqueueError
) -> None:
    transport.before[operation] = raising(error, error)
    recorded = Recorded()
    handler = fails if operation == "failJob" else lambda payload: None
    async with OsqueueClient(transport=transport) as client:
        await client.submit_job("a", 1, max_attempts=1)
        async with Worker(client=client, handlers={"a": handler}, **recorded.settings()):
            await until(lambda: recorded.ends)
        stats = await client.get_stats()
    assert transport.called[operation] == 3
    assert recorded.ends == ["failed: no" if operation == "failJob" else "completed"]
    assert (stats.dead, stats.completed_total) == ((1, 0) if operation == "failJob" else (0, 1))


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
@pytest.mark.parametrize("operation", ["completeJob", "failJob"])
async def test_report_that_is_refused_is_not_repeated(
    transport: Overridden, operation: str, error: OsqueueError
) -> None:
    transport.before[operation] = raising(error)
    recorded = Recorded()
    handler = fails if operation == "failJob" else lambda payload: None
    async with OsqueueClient(transport=transport) as client:
        await client.submit_job("a", 1, max_attempts=1)
        async with Worker(client=client, handlers={"a": handler}, **recorded.settings()):
            await until(lambda: transport.called[operation] == 1)
        stats = await client.get_stats()
    assert transport.called[operation] == 1
    assert recorded.ends == (["failed: no"] if operation == "failJob" else [])
    assert (stats.in_progress, stats.dead, stats.completed_total) == (1, 0, 0)


@pytest.mark.parametrize("transport_name", ["rest", "connect"])
@pytest.mark.parametrize("operation", ["completeJob", "failJob"])
async def test_report_whose_answer_was_lost_counts_as_taken(
    proxy: Proxy, transport_name: Any, operation: str
) -> None:
    proxy.after[operation] = [HTML[0]]
    recorded = Recorded()
    handler = fails if operation == "failJob" else lambda payload: None
    async with OsqueueClient(proxy.url, transport=transport_name) as client:
        await client.submit_job("a", 1, max_attempts=1)
        async with Worker(client=client, handlers={"a": handler}, **recorded.settings()):
            await until(lambda: recorded.ends)
    assert recorded.ends == ["failed: no" if operation == "failJob" else "completed"]
    assert proxy.seen[operation] == 2


@pytest.mark.parametrize("outcome", ["not_applied", "unknown"])
async def test_completion_that_came_too_late_is_not_called_completed(outcome: Any) -> None:
    rules = BrokerSettings(heartbeat_timeout=0.2)
    async with BrokerServer(storage=MemoryBackend(), port=0, settings=rules) as server:
        transport = Overridden(f"http://{server.address}")
        recorded = Recorded()
        async with OsqueueClient(transport=transport) as client, OsqueueClient(server.address) as other:
            await client.submit_job("a", 1)
            waiting: list[asyncio.Task[Job | None]] = []

            async def handle(payload: object) -> None:
                # Before this worker has room for another job, and so waits for one behind it.
                waiting.append(asyncio.create_task(other.claim_job("another", wait=30)))
                async with asyncio.timeout(10):
                    while not (await other.get_stats()).waiting_claims:
                        await asyncio.sleep(0.01)

            async def lose_the_lease() -> None:
                if transport.called["completeJob"] == 1:
                    job = await asyncio.wait_for(waiting[0], 10)
                    assert job is not None
                    waiting[0] = asyncio.create_task(kept(job))
                    raise TransportConnectionError("gone", outcome=outcome)

            async def kept(job: Job) -> None:
                while True:
                    await other.heartbeat(job.id, "another", lease_token=job.lease_token)
                    await asyncio.sleep(0.02)

            transport.before["completeJob"] = lose_the_lease
            settings = recorded.settings() | {"concurrency": 1}
            working = Worker(client=client, handlers={"a": handle}, **settings)
            working.start()
            await until(lambda: transport.called["completeJob"] == 2)
            await asyncio.wait_for(working.stop(), 10)
            waiting[0].cancel()
    assert recorded.ends == []


async def test_failure_is_not_told_of_a_job_that_another_has(server: BrokerServer) -> None:
    recorded = Recorded()
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(payload: object) -> None:
        started.set()
        await go.wait()
        raise ValueError("too late")

    async with OsqueueClient(server.address) as client:
        job_id = await client.submit_job("a", 1)
        settings = recorded.settings() | {"worker_id": "w1"}
        working = Worker(client=client, handlers={"a": handle}, **settings)
        working.start()
        await asyncio.wait_for(started.wait(), 5)
        await client.complete_job(job_id, "w1")
        go.set()
        await asyncio.wait_for(working.stop(), 10)
    assert recorded.ends == []


async def test_report_is_given_up_when_no_lease_can_hold_any_longer(
    transport: Overridden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osqueue_worker.reports._PATIENCE", 0.5)

    async def unreachable() -> None:
        raise TransportConnectionError("gone", outcome="unknown")

    transport.before["failJob"] = unreachable
    recorded = Recorded()
    async with OsqueueClient(transport=transport, timeout=0.02) as client:
        await client.submit_job("a", 1)
        async with Worker(client=client, handlers={"a": fails}, **recorded.settings()):
            await until(lambda: recorded.ends)
    assert recorded.ends == ["failed: no"]
    assert 2 <= transport.called["failJob"] <= 5


async def test_earlier_attempt_says_no_more_once_the_job_was_claimed_again(
    transport: Overridden, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The broker cannot tell the two apart: both are this worker's.
    monkeypatch.setattr("osqueue_worker.reports._FIRST_DELAY", 1.0)
    transport.is_old = True
    recorded = Recorded()
    attempts: list[int | None] = []
    go = asyncio.Event()

    async def handle(payload: object) -> None:
        if len(attempts) == 1:
            raise ValueError("once")
        await go.wait()

    transport.after["failJob"] = raising(TransportConnectionError("the answer was lost", outcome="unknown"))
    async with OsqueueClient(transport=transport) as client:
        await client.submit_job("a", 1, max_attempts=2)
        settings = recorded.settings() | {"on_job_claimed": lambda job: attempts.append(job.attempt)}
        async with Worker(client=client, handlers={"a": handle}, concurrency=2, **settings) as working:
            await until(lambda: len(attempts) == 2)
            await until(lambda: working._runs.running == 1)  # the first attempt has ended
            go.set()
            await until(lambda: recorded.ends == ["completed"])
        stats = await client.get_stats()
    assert transport.called["failJob"] == 1
    assert (stats.dead, stats.completed_total) == (0, 1)


async def test_fault_in_a_heartbeat_does_not_fail_the_job(transport: Overridden) -> None:
    recorded = Recorded()
    go = asyncio.Event()

    async def handle(payload: object) -> None:
        await go.wait()

    transport.before["heartbeat"] = raising(LookupError("a fault of ours"))
    async with OsqueueClient(transport=transport) as client:
        await client.submit_job("a", 1)
        working = Worker(
            client=client, handlers={"a": handle}, heartbeat_interval=0.02, **recorded.settings()
        )
        working.start()
        await until(lambda: transport.called["heartbeat"] >= 2)
        go.set()
        with pytest.raises(OsqueueError, match="a fault of ours"):
            await asyncio.wait_for(working.wait(), 10)
        assert (await client.get_stats()).completed_total == 1
    assert recorded.ends == ["completed"]


async def test_setting_that_can_never_work_stops_the_worker(transport: Overridden) -> None:
    async with OsqueueClient(transport=transport) as client:
        transport.before["claimJob"] = raising(TransportConfigError("no Connect in a fork"))
        working = Worker(client=client, handlers={"a": print}, poll_interval=0.01)
        working.start()
        with pytest.raises(WorkerExecutionError, match="no Connect in a fork"):
            await asyncio.wait_for(working.wait(), 10)
    assert transport.called["claimJob"] == 1


async def test_address_of_a_leader_that_is_none_does_not_stop_the_worker(transport: Overridden) -> None:
    recorded = Recorded()
    async with OsqueueClient(transport=transport) as client:
        await client.submit_job("a", 1)
        transport.before["claimJob"] = raising(*[DiscoveryError("the leader's address is not one")] * 2)
        async with Worker(client=client, handlers={"a": lambda payload: None}, **recorded.settings()):
            await until(lambda: recorded.ends == ["completed"])


async def test_jobs_that_run_are_finished_when_the_worker_fails(transport: Overridden) -> None:
    recorded = Recorded()
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(payload: object) -> None:
        started.set()
        await go.wait()

    async with OsqueueClient(transport=transport) as client:
        await client.submit_job("a", 1)
        transport.before["claimJob"] = raising(None, LookupError("a fault of ours"))
        working = Worker(client=client, handlers={"a": handle}, **recorded.settings())
        working.start()
        await asyncio.wait_for(started.wait(), 5)
        await until(lambda: transport.called["claimJob"] >= 2)
        go.set()
        with pytest.raises(OsqueueError, match="a fault of ours"):
            await asyncio.wait_for(working.wait(), 10)
    assert recorded.ends == ["completed"]


async def test_job_that_went_while_no_report_was_sent_is_not_called_completed(
    server: BrokerServer, transport: Overridden
) -> None:
    recorded = Recorded()
    ids: list[str] = []
    async with OsqueueClient(transport=transport) as client, OsqueueClient(server.address) as other:

        async def end_it_elsewhere() -> None:
            if transport.called["completeJob"] == 1:
                await other.complete_job(ids[0], "w1")
                raise TransportConnectionError("refused", outcome="not_applied")

        transport.before["completeJob"] = end_it_elsewhere
        ids.append(await client.submit_job("a", 1))
        settings = recorded.settings() | {"worker_id": "w1"}
        working = Worker(client=client, handlers={"a": lambda payload: None}, **settings)
        working.start()
        await until(lambda: transport.called["completeJob"] == 2)
        await asyncio.wait_for(working.stop(), 10)
    assert recorded.ends == []


async def test_stop_does_not_wait_for_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osqueue_worker.claims._PATIENCE", 0.1)
    asked = asyncio.Event()

    class Away:
        async def call(self, operation: Any, request: Any, /) -> Any:
            asked.set()
            raise TransportConnectionError("refused", outcome="not_applied")

        async def aclose(self) -> None:
            pass

    async with OsqueueClient(transport=Away(), timeout=60) as client:
        working = Worker(client=client, handlers={"a": print})
        working.start()
        await asyncio.wait_for(asked.wait(), 10)
        await asyncio.wait_for(working.stop(), 10)
