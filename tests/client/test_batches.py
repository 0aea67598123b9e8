"""Many jobs in one call: how they are split, what each entry gets, and what is done for a broker without batches."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from client.support import OLD, Watched, transport_to

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import (
    BatchError,
    BrokerProtocolError,
    JobNotFoundError,
    LeaseLostError,
    OsqueueClient,
    PayloadValidationError,
    QueueFullError,
    TransportConnectionError,
)
from osqueue_storage import MemoryBackend


@pytest.fixture
async def watched(server: BrokerServer, transport_name: str) -> Watched:
    return Watched(transport_to(transport_name, f"http://{server.address}"))


@pytest.fixture(params=["batches", "singles"])
async def either(
    server: BrokerServer, transport_name: str, request: pytest.FixtureRequest
) -> AsyncIterator[OsqueueClient]:
    """A client of a broker that takes batches, and of one that does not."""
    lacks = OLD if request.param == "singles" else ()
    transport = Watched(transport_to(transport_name, f"http://{server.address}"), *lacks)
    async with OsqueueClient(transport=transport, timeout=20) as client:
        yield client
    has_batches = any(name.endswith("Jobs") for name in transport.names if name != "listJobs")
    assert has_batches == (request.param == "batches")


async def test_jobs_are_added_and_claimed_and_completed_in_order(watched: Watched) -> None:
    async with OsqueueClient(transport=watched) as client:
        ids = await client.submit_jobs([("a", {"n": n}) for n in range(20)], max_attempts=2)
        first = await client.claim_jobs("w", ["a"], limit=15)
        rest = await client.claim_jobs("w", limit=15)
        assert [job.id for job in first + rest] == ids
        assert [job.payload for job in first + rest] == [{"n": n} for n in range(20)]
        assert await client.heartbeat_jobs(first, "w") == [None] * 15
        assert await client.complete_jobs([(job.id, job.lease_token) for job in first], "w") == [None] * 15
        assert await client.complete_jobs(rest, "w") == [None] * 5
        assert (await client.get_stats()).completed_total == 20
    names = ["submitJobs", "claimJobs", "claimJobs", "heartbeatJobs", "completeJobs", "completeJobs"]
    assert watched.names == names


async def test_same_results_come_of_both_kinds_of_broker(either: OsqueueClient) -> None:
    ids = await either.submit_jobs(("a", n) for n in range(40))
    assert len(set(ids)) == 40
    jobs = await either.claim_jobs("w", limit=30, wait=0)
    assert len({job.id for job in jobs}) == 30
    assert {job.id for job in jobs} < set(ids)
    assert await either.heartbeat_jobs(jobs, "w") == [None] * 30
    await either.complete_job(jobs[0].id, "w")
    results = await either.complete_jobs([*jobs, (ids[-1], "no such lease")], "w")
    assert isinstance(results[0], JobNotFoundError)
    assert results[1:30] == [None] * 29
    assert isinstance(results[30], LeaseLostError)
    assert results[30].outcome == "not_applied"
    assert len(await either.claim_jobs("w", limit=30)) == 10
    assert await either.claim_jobs("w", limit=30) == []


async def test_batches_are_split_by_number_and_by_bytes(server: BrokerServer) -> None:
    watched = Watched(transport_to("rest", f"http://{server.address}"))
    async with OsqueueClient(transport=watched) as client:
        jobs = [("a", n) for n in range(1500)] + [("a", "x" * 300_000)] * 3
        ids = await client.submit_jobs(jobs)
        assert [len(request.jobs) for request in watched.of("submitJobs")] == [1000, 502, 1]
        claimed = [job async for job in client.iter_jobs(page=600)]
        assert [job.id for job in claimed] == ids
        leased = [*await client.claim_jobs("w", limit=1000), *await client.claim_jobs("w", limit=501)]
        assert await client.heartbeat_jobs(leased, "w") == [None] * 1501
        assert [len(request.jobs) for request in watched.of("heartbeatJobs")] == [1000, 501]


async def test_each_request_has_an_id_of_its_own_and_a_repeat_gives_the_first_answers(
    watched: Watched,
) -> None:
    async with OsqueueClient(transport=watched, timeout=20) as client:
        watched.loses = {"submitJobs": [True, True], "claimJobs": [True], "completeJobs": [True]}
        ids = await client.submit_jobs([("a", n) for n in range(1001)])
        assert (await client.get_stats()).total == len(set(ids)) == 1001
        requests = [request.request_id for request in watched.of("submitJobs")]
        assert [id.number for id in requests] == [1, 1, 1, 2]
        jobs = await client.claim_jobs("w", limit=1000)
        assert [job.id for job in jobs] == ids[:1000]
        assert await client.complete_jobs(jobs, "w") == [None] * 1000
        stats = await client.get_stats()
        assert (stats.total, stats.in_progress, stats.completed_total) == (1, 0, 1000)


async def test_what_does_not_fit_is_told_for_each_job_and_nothing_is_lost(transport_name: str) -> None:
    store = MemoryBackend()
    store.max_object_bytes = 9_000
    async with BrokerServer(storage=store, port=0) as server:
        watched = Watched(transport_to(transport_name, f"http://{server.address}"))
        async with OsqueueClient(transport=watched) as client:
            with pytest.raises(BatchError, match="were not added; of the first: QueueFullError") as caught:
                await client.submit_jobs([("a", "x" * 200)] * 1500)
            results = caught.value.results
            added = [result for result in results if isinstance(result, str)]
            assert len(results) == 1500
            assert 0 < len(added) < 50
            assert results[: len(added)] == added
            refused = [result for result in results[len(added) :] if isinstance(result, QueueFullError)]
            assert len(refused) == 1500 - len(added)
            assert {error.outcome for error in refused} == {"not_applied"}
            assert [job.id async for job in client.iter_jobs()] == added
        assert len(watched.of("submitJobs")) == 1


async def test_what_comes_behind_a_request_without_an_answer_is_not_sent(server: BrokerServer) -> None:
    watched = Watched(transport_to("rest", f"http://{server.address}"), "requestIds")
    jobs = [("a", n) for n in range(2500)]
    async with OsqueueClient(transport=watched) as client:
        watched.loses = {"submitJobs": [True]}
        with pytest.raises(TransportConnectionError) as nothing_known:
            await client.submit_jobs(jobs)
        assert nothing_known.value.outcome == "unknown"
        assert len(watched.of("submitJobs")) == 1
        watched.loses = {"submitJobs": [False, True]}
        with pytest.raises(BatchError) as caught:
            await client.submit_jobs(jobs)
        assert len(watched.of("submitJobs")) == 3
    results = caught.value.results
    assert all(isinstance(result, str) for result in results[:1000])
    outcomes = [getattr(result, "outcome", None) for result in results[1000:]]
    assert outcomes == ["unknown"] * 1000 + ["not_applied"] * 500


async def test_requests_are_made_smaller_for_a_broker_that_takes_less(transport_name: str) -> None:
    settings = BrokerSettings(max_request_bytes=10_000)
    async with BrokerServer(storage=MemoryBackend(), port=0, settings=settings) as server:
        watched = Watched(transport_to(transport_name, f"http://{server.address}"))
        async with OsqueueClient(transport=watched, timeout=20) as client:
            ids = await client.submit_jobs([("a", "x" * 200)] * 300)
            jobs = await client.claim_jobs("w", limit=300)
            assert [job.id for job in jobs] == ids
            assert await client.heartbeat_jobs(jobs, "w") == [None] * 300
            assert await client.complete_jobs(jobs, "w") == [None] * 300
            assert (await client.get_stats()).completed_total == 300
    # Those that were refused, and not one a job.
    assert max(len(watched.of(name)) for name in ("submitJobs", "heartbeatJobs", "completeJobs")) < 40


async def test_nothing_is_sent_where_one_payload_does_not_fit(watched: Watched) -> None:
    async with OsqueueClient(transport=watched, registry={"a": int}) as client:
        with pytest.raises(PayloadValidationError):
            await client.submit_jobs([("a", 1), ("a", "one")])
        assert await client.submit_jobs([]) == []
        assert await client.complete_jobs([], "w") == []
    assert watched.asked == []


@pytest.mark.parametrize("limit", [0, 1001])
async def test_limit_that_cannot_be_is_refused_before_anything_is_sent(watched: Watched, limit: int) -> None:
    async with OsqueueClient(transport=watched) as client:
        with pytest.raises(BrokerProtocolError, match="limit"):
            await client.claim_jobs("w", limit=limit)
    assert watched.asked == []


@pytest.mark.parametrize("lacks", [(), OLD])
async def test_pages_have_all_jobs_of_a_type_and_a_status(
    server: BrokerServer, transport_name: str, lacks: tuple[str, ...]
) -> None:
    watched = Watched(transport_to(transport_name, f"http://{server.address}"), *lacks)
    async with OsqueueClient(transport=watched) as client:
        async with OsqueueClient(server.address) as producer:
            ids = await producer.submit_jobs([(("a", "b", None)[n % 3], n) for n in range(30)])
        running = await client.claim_jobs("w", ["a"], limit=4)
        assert [job.id async for job in client.iter_jobs(page=7)] == ids
        assert [job.id async for job in client.iter_jobs(type="b", page=3)] == ids[1::3]
        assert [job.id async for job in client.iter_jobs(type="")] == ids[2::3]
        found = [job.id async for job in client.iter_jobs(status="in_progress", page=1)]
        assert sorted(found) == sorted(job.id for job in running)
        page = await client.list_jobs(type="a", status="unclaimed", limit=1000)
        assert [job.id for job in page.jobs] == ids[12::3]
        assert (page.total, page.in_progress, page.truncated) == (30, 4, None)
        if lacks:
            with pytest.raises(BrokerProtocolError, match="no pages") as caught:
                await client.list_jobs(cursor="5")
            assert caught.value.field == "cursor"
        else:
            first = await client.list_jobs(limit=2)
            assert (first.truncated, len(first.jobs)) == (True, 2)
            second = await client.list_jobs(limit=2, cursor=first.next_cursor)
            assert [job.id for job in second.jobs] == ids[2:4]
