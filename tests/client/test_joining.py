"""Single calls that begin together go as one request, and each caller has its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from client.support import OLD, Watched, transport_to

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import (
    BrokerProtocolError,
    Job,
    JobNotFoundError,
    LeaseLostError,
    OsqueueClient,
    RequestTooLargeError,
    TransportConnectionError,
)
from osqueue_storage import MemoryBackend


@pytest.fixture
async def watched(server: BrokerServer, transport_name: str) -> Watched:
    return Watched(transport_to(transport_name, f"http://{server.address}"))


@pytest.fixture
async def client(watched: Watched) -> AsyncIterator[OsqueueClient]:
    async with OsqueueClient(transport=watched, timeout=20) as client:
        await client.connect()
        yield client


async def leased(client: OsqueueClient, count: int) -> list[Job]:
    await client.submit_jobs([("a", n) for n in range(count)])
    return await client.claim_jobs("w", limit=count)


async def test_calls_of_one_turn_are_one_request_in_their_order(
    client: OsqueueClient, watched: Watched
) -> None:
    ids = await asyncio.gather(*(client.submit_job("a", n, max_attempts=1) for n in range(20)))
    assert watched.names == ["submitJobs"]
    assert [job.id async for job in client.iter_jobs()] == ids
    jobs = await client.claim_jobs("w", limit=20)
    await asyncio.gather(*(client.heartbeat(job.id, "w", lease_token=job.lease_token) for job in jobs))
    await asyncio.gather(*(client.complete_job(job.id, "w", lease_token=job.lease_token) for job in jobs))
    assert watched.names[2:] == ["claimJobs", "heartbeatJobs", "completeJobs"]
    assert (await client.get_stats()).completed_total == 20


async def test_call_that_is_alone_goes_as_it_is(client: OsqueueClient, watched: Watched) -> None:
    for n in range(2):
        await client.submit_job("a", n)
    [one, two] = await client.claim_jobs("w", limit=2)
    # Of different kinds, and so each alone.
    await asyncio.gather(client.heartbeat(one.id, "w"), client.complete_job(two.id, "w"))
    assert sorted(watched.names) == ["claimJobs", "completeJob", "heartbeat", "submitJob", "submitJob"]


async def test_each_caller_has_its_own_answer_or_error(client: OsqueueClient, watched: Watched) -> None:
    jobs = await leased(client, 3)
    await client.complete_job(jobs[1].id, "w")
    results = await asyncio.gather(
        client.complete_job(jobs[0].id, "w"),
        client.complete_job(jobs[1].id, "w"),
        client.complete_job(jobs[2].id, "w", lease_token="another's"),
        return_exceptions=True,
    )
    assert results[0] is None
    assert isinstance(results[1], JobNotFoundError)
    assert isinstance(results[2], LeaseLostError)
    assert watched.names[-1] == "completeJobs"


async def test_calls_of_two_workers_are_not_joined(client: OsqueueClient, watched: Watched) -> None:
    await client.submit_jobs([("a", n) for n in range(4)])
    jobs = [(worker, job) for worker in "ab" for job in await client.claim_jobs(worker, limit=2)]
    await asyncio.gather(*(client.complete_job(job.id, worker) for worker, job in jobs))
    workers = [request.worker_id for request in watched.of("completeJobs")]
    assert sorted(workers) == ["a", "b"]


async def test_malformed_call_is_refused_alone(client: OsqueueClient, watched: Watched) -> None:
    results = await asyncio.gather(
        client.submit_job("a", 1),
        client.submit_job("a", 2, max_attempts=-1),
        client.submit_job("a", 3),
        return_exceptions=True,
    )
    assert isinstance(results[1], BrokerProtocolError)
    assert "max_attempts" in str(results[1])
    assert [type(result) for result in (results[0], results[2])] == [str, str]
    assert (await client.get_stats()).total == 2


async def test_cancelled_caller_takes_the_call_from_nobody(client: OsqueueClient, watched: Watched) -> None:
    calls = [asyncio.create_task(client.submit_job("a", n)) for n in range(4)]
    await asyncio.sleep(0)
    calls[0].cancel()  # before the request is made
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calls[1].cancel()  # while it is under way
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2 + [str] * 2


async def test_call_that_is_cancelled_before_its_request_is_made_is_not_sent(
    client: OsqueueClient, watched: Watched
) -> None:
    loop = asyncio.get_running_loop()
    calls = [asyncio.create_task(client.submit_job("a", n)) for n in range(4)]
    loop.call_soon(calls[1].cancel)  # in the turn in which they are joined, before that
    loop.call_soon(lambda: loop.call_soon(calls[2].cancel))  # and after it
    results = await asyncio.gather(*calls, return_exceptions=True)
    kinds = [str, asyncio.CancelledError, asyncio.CancelledError, str]
    assert [type(result) for result in results] == kinds
    assert [[bytes(job.payload) for job in request.jobs] for request in watched.of("submitJobs")] == [
        [b"0", b"3"]
    ]
    assert (await client.get_stats()).total == 2


async def test_nothing_is_sent_for_callers_who_have_all_gone(client: OsqueueClient, watched: Watched) -> None:
    loop = asyncio.get_running_loop()
    calls = [asyncio.create_task(client.submit_job("a", n)) for n in range(3)]

    def cancel() -> None:
        for call in calls:
            call.cancel()

    loop.call_soon(lambda: loop.call_soon(cancel))  # when they were joined, before the request is made
    await asyncio.wait(calls)
    await client.get_stats()
    assert watched.names == []


async def test_request_ends_with_its_last_caller(server: BrokerServer) -> None:
    held, ended = asyncio.Event(), asyncio.Event()

    class Holds(Watched):
        async def call(self, operation: Any, request: Any, /) -> Any:
            if operation.name != "submitJobs":
                return await super().call(operation, request)
            held.set()
            try:
                return await asyncio.get_running_loop().create_future()
            finally:
                ended.set()

    async with OsqueueClient(transport=Holds(transport_to("rest", f"http://{server.address}"))) as client:
        await client.connect()
        calls = [asyncio.create_task(client.submit_job("a", n)) for n in range(2)]
        await asyncio.wait_for(held.wait(), 5)
        for call in calls:
            call.cancel()
        await asyncio.wait_for(ended.wait(), 5)


async def test_calls_keep_their_own_timeouts(server: BrokerServer) -> None:
    class Slow(Watched):
        async def call(self, operation: Any, request: Any, /) -> Any:
            if operation.name == "submitJobs" and request.jobs[0].type == "slow":
                await asyncio.get_running_loop().create_future()
            return await super().call(operation, request)

    async with OsqueueClient(transport=Slow(transport_to("rest", f"http://{server.address}"))) as client:
        await client.connect()
        results = await asyncio.gather(
            *(client.submit_job("slow", n, timeout=0.1) for n in range(2)),
            *(client.submit_job("a", n, timeout=10) for n in range(2)),
            return_exceptions=True,
        )
    errors = [result for result in results[:2] if isinstance(result, TransportConnectionError)]
    assert len({id(error) for error in errors}) == 2
    assert {error.message.partition(":")[0] for error in errors} == {"submitJob"}
    assert {error.outcome for error in errors} == {"unknown"}
    assert [type(result) for result in results[2:]] == [str, str]


async def test_lost_answer_of_joined_calls_doubles_nothing(client: OsqueueClient, watched: Watched) -> None:
    watched.loses = {"submitJobs": [True]}
    ids = await asyncio.gather(*(client.submit_job("a", n) for n in range(5)))
    assert watched.names == ["submitJobs", "submitJobs"]
    assert (await client.get_stats()).total == len(set(ids)) == 5


async def test_calls_that_are_too_large_together_go_each_alone(transport_name: str) -> None:
    settings = BrokerSettings(max_request_bytes=10_000)
    async with BrokerServer(storage=MemoryBackend(), port=0, settings=settings) as server:
        watched = Watched(transport_to(transport_name, f"http://{server.address}"))
        async with OsqueueClient(transport=watched) as client:
            await client.connect()
            calls = (client.submit_job("a", "x" * size) for size in (6_000, 6_000, 20_000))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert (await client.get_stats()).total == 2
    assert [type(result) for result in results] == [str, str, RequestTooLargeError]
    assert watched.names == ["submitJobs", "submitJob", "submitJob", "submitJob"]


async def test_joined_requests_keep_the_limits_of_a_request(client: OsqueueClient, watched: Watched) -> None:
    small = [client.submit_job("a", n) for n in range(1001)]
    large = [client.submit_job("a", "x" * 500_000) for _ in range(2)]
    huge = client.submit_job("a", "x" * 760_000)
    await asyncio.gather(*small, *large, huge)
    assert [len(request.jobs) for request in watched.of("submitJobs")] == [1000, 2]
    assert len(watched.of("submitJob")) == 2


@pytest.mark.parametrize("is_old", [True, False])
async def test_calls_are_not_joined_where_that_is_not_known_or_not_wanted(
    server: BrokerServer, is_old: bool
) -> None:
    watched = Watched(transport_to("rest", f"http://{server.address}"), *(OLD if is_old else ()))
    async with OsqueueClient(transport=watched, join_calls=is_old) as client:
        await client.connect()
        await asyncio.gather(*(client.submit_job("a", n) for n in range(5)))
    assert watched.names == ["submitJob"] * 5


async def test_fault_of_a_transport_is_raised_by_each_call(server: BrokerServer) -> None:
    class Broken(Watched):
        async def call(self, operation: Any, request: Any, /) -> Any:
            if operation.name == "submitJobs":
                raise LookupError("a fault")
            return await super().call(operation, request)

    async with OsqueueClient(transport=Broken(transport_to("rest", f"http://{server.address}"))) as client:
        await client.connect()
        calls = (client.submit_job("a", n) for n in range(2))
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [LookupError, LookupError]
