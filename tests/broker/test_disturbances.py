"""What a leader does when the store loses requests, is on a budget, or others rewrite the document: in fake time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from itertools import pairwise

import pytest
from broker.support import (
    KEY,
    FaultyStore,
    ThrottleClock,
    begun,
    candidate,
    fake_clock,
    in_fake_time,
    leading,
    until,
)
from msgspec import Raw

from osqueue_broker import BrokerSettings
from osqueue_broker.broker import Broker
from osqueue_broker.document_writer import DocumentWriter
from osqueue_broker.service import QueueService
from osqueue_broker.trial import try_store
from osqueue_client import operations
from osqueue_client.errors import BrokerLeadershipError, EngineStateError, StorageBackendError
from osqueue_client.models import NewJob, SubmitJobs
from osqueue_storage import MemoryBackend, ThrottledStorageBackend


@in_fake_time
async def test_a_write_that_had_to_be_sent_again_is_spaced_from_the_next_too() -> None:
    store = FaultyStore()
    async with leading(store, group_commit_interval=1.0) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        store.faults = ["request", "request", "request"]
        await leader.ask(operations.SUBMIT_JOB)
        await leader.ask(operations.SUBMIT_JOB)
        assert min(later - sooner for sooner, later in pairwise(store.sent_at)) >= 1 - 1e-6


@in_fake_time
async def test_a_new_term_upon_a_rewrite_is_spaced_from_the_refused_write() -> None:
    store = FaultyStore()
    async with leading(store, group_commit_interval=1.0):
        store.put_now(store.now() | {"note": "x"})
        await until(lambda: store.now()["epoch"] == 2, 100)
        assert min(later - sooner for sooner, later in pairwise(store.sent_at)) >= 1 - 1e-6


@in_fake_time
async def test_a_lease_is_fresh_in_a_new_term_however_long_the_takeover_took() -> None:
    store = FaultyStore()
    async with leading(store, heartbeat_timeout=2.0) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        await leader.ask(operations.CLAIM_JOB, worker_id="w")
        store.put_now(store.now() | {"note": "x"})
        store._latency = 2.8
        refused = leader.put(operations.SUBMIT_JOB)
        await until(lambda: store.now()["epoch"] == 2, 100)
        store._latency = 0.0
        landed_at = fake_clock().now
        await until(lambda: store.now()["jobs"][0]["status"] == "unclaimed", 100)
        # The answer of the write that has just landed is on its way for 1.4 s; then the lease of 2 s begins.
        assert 3.39 <= fake_clock().now - landed_at < 8.0
        assert refused.exception() is not None


@in_fake_time
async def test_two_rewrites_that_still_name_us_do_not_end_the_leadership() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.put_now(store.now() | {"note": "x"})
        store.meanwhile = [lambda: None, lambda: store.put_now(store.now() | {"note": "y"})]
        await until(lambda: store.now().get("note") == "y" and store.now()["epoch"] == 2, 100)
        await leader.ask(operations.SUBMIT_JOB)
        assert not leader.ended.done()


@in_fake_time
async def test_a_pause_ends_no_lease_however_short_leases_are() -> None:
    store = FaultyStore()
    async with leading(store, heartbeat_timeout=2.0) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        await leader.ask(operations.CLAIM_JOB, worker_id="w")
        fake_clock().now += 3600
        written = len(store.attempts)
        await until(lambda: len(store.attempts) > written, 100)
        assert store.now()["jobs"][0]["status"] == "in_progress"


@in_fake_time
async def test_a_document_that_is_deleted_during_the_takeover_is_not_made_anew() -> None:
    store = FaultyStore()
    store.put_now({"broker": None, "jobs": [{"id": "a", "status": "unclaimed"}]})
    store.meanwhile = [lambda: store._objects.pop(KEY)]
    with pytest.raises(EngineStateError, match="deleted"):
        await begun(candidate(store, fake_clock()), has_bound=True)
    assert store.object() is None


@pytest.mark.parametrize("writes_per_day", [None, 3])
@pytest.mark.parametrize("probe", [True, False])
@in_fake_time
async def test_a_broker_starts_and_keeps_leading_on_two_writes_a_minute(
    probe: bool, writes_per_day: int | None
) -> None:
    store = ThrottledStorageBackend(
        MemoryBackend(), writes_per_minute=2, writes_per_day=writes_per_day, clock=ThrottleClock()
    )
    settings = BrokerSettings(
        broker_heartbeat_interval=20, broker_heartbeat_timeout=100, storage_timeout=1, request_timeout=40,
        probe_storage=probe,
    )  # fmt: skip
    settings.check_against(store)
    service = QueueService(store, "us:1", fake_clock())
    broker = Broker(service, store, "us:1", settings=settings, clock=fake_clock(), has_bound=True)
    async with broker.running() as life:
        await broker.leads.wait()
        written = store.throttle_stats().total_writes
        await asyncio.sleep(300)
        assert 8 <= store.throttle_stats().total_writes - written <= 10
        assert not life.done()
        # Two of the probe, one at start, one for garbage: no write was taken for lost while it waited for its turn.
        assert store.throttle_stats().total_reads == (4 if probe else 2)


@in_fake_time
async def test_a_read_that_a_budget_holds_back_is_not_taken_for_one_without_an_answer() -> None:
    store = ThrottledStorageBackend(MemoryBackend(), reads_per_minute=20, clock=ThrottleClock())
    settings = BrokerSettings(storage_timeout=1)
    reader = DocumentWriter(store, KEY, settings=settings, clock=fake_clock())
    for _ in range(3):
        await reader.read()
    assert reader.last_failure == ""
    assert store.throttle_stats().total_reads == 3


@pytest.mark.parametrize("seconds", [20.0, 20.7, 21.4, 22.1, 22.8])
@in_fake_time
async def test_a_leader_on_a_budget_of_writes_hands_over_whenever_it_is_stopped(seconds: float) -> None:
    # At 20 writes a minute the last one waits for its turn for up to 3 s, and the hand-over for another 3.
    inner = MemoryBackend()
    store = ThrottledStorageBackend(inner, writes_per_minute=20, clock=ThrottleClock())
    service = QueueService(store, "us:1", fake_clock())
    broker = Broker(service, store, "us:1", settings=BrokerSettings(), clock=fake_clock(), has_bound=True)
    async with broker.running():
        await broker.leads.wait()
        await asyncio.sleep(seconds)
    found = await inner.read(KEY)
    assert found is not None
    assert json.loads(found.body)["broker"] is None


@pytest.mark.parametrize("stopped_after", [60.0, 61.4, 62.8, 64.2])
@pytest.mark.parametrize(("writes_per_minute", "writes_per_day"), [(60, None), (20, None), (20, 3)])
@in_fake_time
async def test_a_queue_that_grows_deep_on_a_budget_of_writes_is_served_and_handed_over(
    writes_per_minute: int,
    writes_per_day: int | None,
    stopped_after: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spacing = 60 / writes_per_minute
    inner = FaultyStore()
    store = ThrottledStorageBackend(
        inner, writes_per_minute=writes_per_minute, writes_per_day=writes_per_day, clock=ThrottleClock()
    )
    settings = BrokerSettings(segment_threshold=64 * 1024, probe_storage=False, storage_timeout=0.5)
    service = QueueService(store, "us:1", fake_clock())
    broker = Broker(service, store, "us:1", settings=settings, clock=fake_clock(), has_bound=True)
    jobs = tuple(NewJob(payload=Raw(b'"' + b"x" * 200 + b'"')) for _ in range(100))

    submitted = 0

    async def submit() -> None:
        nonlocal submitted
        with contextlib.suppress(BrokerLeadershipError):
            while True:
                await service.call(operations.SUBMIT_JOBS, SubmitJobs(jobs=jobs))
                submitted += len(jobs)

    async with asyncio.TaskGroup() as group, broker.running():
        await broker.leads.wait()
        for _ in range(8):
            group.create_task(submit())
        await asyncio.sleep(stopped_after)
        assert len(inner.now()["segments"]) > 1
    in_segments = sum(each["jobs"] for each in inner.now()["segments"])
    assert in_segments + len(inner.now()["jobs"]) == submitted
    gaps = [later - sooner for sooner, later in pairwise(inner.document_sent_at)]
    assert max(gaps) < 2 * spacing + 0.1, "no more than one segment is written between two commits"
    assert inner.now()["broker"] is None, "it was handed over"
    assert "storage_write_unclear" not in caplog.messages


class Failing(MemoryBackend):
    """Fails every create in the same way."""

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self._failure = failure

    async def create(self, key: str, body: bytes) -> str:
        raise self._failure


@pytest.mark.parametrize(
    ("failure", "is_advised"),
    [
        (StorageBackendError("permission denied", outcome="not_applied"), True),
        (StorageBackendError("no clear answer", outcome="unknown"), False),
        (ConnectionError("reset"), False),
    ],
)
@in_fake_time
async def test_only_who_was_refused_is_told_of_the_start_without_a_probe(
    failure: Exception, is_advised: bool
) -> None:
    with pytest.raises(StorageBackendError) as failed:
        await try_store(Failing(failure), BrokerSettings())
    assert ("--no-storage-probe" in failed.value.message) is is_advised
