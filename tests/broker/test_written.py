"""What a term says it has written, and that no commit is larger than it need be."""

from __future__ import annotations

import asyncio
import json

from broker.support import FaultyStore, in_fake_time, leading
from msgspec import Raw

from osqueue_client import operations
from osqueue_client.models import Lease, NewJob

PAYLOAD = Raw(b'"' + b"x" * 400 + b'"')


@in_fake_time
async def test_requests_are_counted_that_changed_something_each_entry_of_a_batch() -> None:
    async with leading(FaultyStore()) as leader:
        await leader.ask(operations.SUBMIT_JOBS, jobs=tuple(NewJob(payload=Raw(b"1")) for _ in range(5)))
        claimed = await leader.ask(operations.CLAIM_JOBS, worker_id="w", limit=3)
        single = await leader.ask(operations.CLAIM_JOB, worker_id="w")
        assert leader.commits.written().requests == 5 + 3 + 1
        leases = tuple(Lease(job_id=job.job_id) for job in claimed.jobs)
        done = await leader.ask(
            operations.COMPLETE_JOBS, worker_id="w", jobs=(*leases, Lease(job_id="never"))
        )
        assert [result.error is None for result in done.results] == [True, True, True, False]
        await leader.ask(operations.HEARTBEAT, worker_id="w", job_id=single.job_id)
        await leader.ask(operations.GET_STATS)
        await leader.ask(operations.COMPLETE_JOB, worker_id="w", job_id=single.job_id)
        assert leader.commits.written().requests == 5 + 3 + 1 + 3 + 1


@in_fake_time
async def test_a_claim_that_was_answered_late_is_counted_and_the_sealing_of_segments_is_not() -> None:
    store = FaultyStore()
    async with leading(store, segment_threshold=4_000) as leader:
        waiting = leader.put(operations.CLAIM_JOB, worker_id="w", wait=30.0)
        await asyncio.sleep(1)
        for _ in range(40):
            await leader.ask(operations.SUBMIT_JOB, payload=PAYLOAD)
        await waiting
        await asyncio.sleep(10)
        assert store.now()["segments"]
        written = leader.commits.written()
        assert written.requests == 40 + 1
        made = [key async for key in store.list("segments/")]
        sizes = [len(found.body) for key in made if (found := await store.read(key)) is not None]
        assert (written.segment_writes, written.segment_bytes) == (len(made), sum(sizes))


@in_fake_time
async def test_bytes_and_latencies_are_those_of_the_commits() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        before = len(store.attempts)
        for number in range(3):
            await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"%d" % number))
        written = leader.commits.written()
        sizes = [len(body) for body, _ in store.attempts[before:]]
        assert (written.writes, written.bytes) == (3, sum(sizes))
        assert 0 <= written.latency_p50 <= written.latency_p99 < written.seconds + 1


@in_fake_time
async def test_the_document_does_not_outgrow_the_segments_that_are_made_of_it() -> None:
    store = FaultyStore()
    threshold = 16_000
    async with leading(store, segment_threshold=threshold) as leader:
        jobs = tuple(NewJob(payload=PAYLOAD) for _ in range(5))  # each a sixth of the threshold
        asked = [leader.put_sized(operations.SUBMIT_JOBS, 5 * 500, jobs=jobs) for _ in range(60)]
        await asyncio.gather(*asked)
        await asyncio.sleep(10)
        largest = max(len(body) for body, _ in store.attempts)
        # A quarter of it for what one commit adds after a document of twice the threshold.
        assert largest < 2.5 * threshold
        assert sum(segment["jobs"] for segment in store.now()["segments"]) > 200
        assert len(json.dumps(store.now())) < threshold


@in_fake_time
async def test_a_store_of_small_objects_takes_a_queue_of_any_depth() -> None:
    store = FaultyStore()
    store.max_object_bytes = limit = 80_000
    async with leading(store) as leader:
        for _ in range(100):
            jobs = tuple(NewJob(payload=PAYLOAD) for _ in range(10))
            await leader.ask(operations.SUBMIT_JOBS, jobs=jobs)
            await asyncio.sleep(1)
        stats = await leader.ask(operations.GET_STATS)
        assert stats.unclaimed == 1000
        assert len(store.now()["segments"]) < 30, "small ones were merged"
        objects = [await store.read(key) for key in [key async for key in store.list("")]]
        assert max(len(stored.body) for stored in objects if stored is not None) < limit
