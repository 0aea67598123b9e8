"""What the commit loop does at which time: answers without a write, leases, and the spacing of writes."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise

import pytest
from broker.support import FaultyStore, Leader, fake_clock, in_fake_time, leading, until

from osqueue_broker.clock import SystemClock
from osqueue_client import operations
from osqueue_client.operations import AnyOperation

HOUR = 3600.0

# A broker refuses these settings, as a sign of life is due before the freshness ends: this loop is made without
# asking them, and must keep the law even so.
FRESH_FOR_A_SECOND = {"broker_heartbeat_interval": 3.0, "broker_heartbeat_timeout": 4.0}

WITHOUT_A_WRITE = [
    pytest.param(operations.GET_STATS, id="read"),
    pytest.param(operations.HEARTBEAT, id="heartbeat"),
    pytest.param(operations.CLAIM_JOB, id="empty-claim"),
]


# Answers without a write


@pytest.mark.parametrize("operation", WITHOUT_A_WRITE)
@in_fake_time
async def test_what_needs_no_write_is_answered_at_once_while_nobody_can_have_taken_over(
    operation: AnyOperation,
) -> None:
    store = FaultyStore()
    async with leading(store, **FRESH_FOR_A_SECOND) as leader:
        fields = await fields_of(operation, leader)
        writes = len(store.attempts)
        store.gate.clear()
        fake_clock().now = store.sent_at[-1] + 0.99
        await leader.ask(operation, **fields)
        assert len(store.attempts) == writes


@pytest.mark.parametrize("operation", WITHOUT_A_WRITE)
@in_fake_time
async def test_what_needs_no_write_waits_for_one_when_somebody_may_have_taken_over(
    operation: AnyOperation,
) -> None:
    store = FaultyStore()
    async with leading(store, **FRESH_FOR_A_SECOND) as leader:
        fields = await fields_of(operation, leader)
        store.gate.clear()
        fake_clock().now = store.sent_at[-1] + 1.0
        asked = leader.put(operation, **fields)
        await until(lambda: store.at_gate == 1)
        assert not asked.done()
        store.gate.set()
        await asked


@in_fake_time
async def test_the_age_of_a_write_counts_from_its_sending() -> None:
    store = FaultyStore()
    async with leading(store, **FRESH_FOR_A_SECOND) as leader:
        store.gate.clear()
        submitted = leader.put(operations.SUBMIT_JOB)
        await until(lambda: store.at_gate == 1)
        await asyncio.sleep(0.9)  # it is on its way
        store.gate.set()
        await submitted
        store.gate.clear()
        fake_clock().now = store.sent_at[-1] + 1.0
        asked = leader.put(operations.GET_STATS)
        await until(lambda: store.at_gate == 2)
        assert not asked.done()
        store.gate.set()
        await asked


@in_fake_time
async def test_the_age_of_a_takeover_counts_from_its_sending() -> None:
    store = FaultyStore()
    store._latency = 1.0
    async with leading(store, **FRESH_FOR_A_SECOND) as leader:
        assert fake_clock().now - store.sent_at[-1] >= 1.0
        asked = leader.put(operations.GET_STATS)
        await asked
        assert len(store.attempts) == 1


@in_fake_time
async def test_a_broker_that_cannot_write_answers_only_while_nobody_can_have_taken_over() -> None:
    store = FaultyStore()
    last_answer_at = 0.0
    async with leading(store, broker_heartbeat_interval=3.0, broker_heartbeat_timeout=10.0) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        landed_at = store.sent_at[-1]
        store.gate.clear()
        for _ in range(120):
            asked = leader.put(operations.GET_STATS)
            done, _ = await asyncio.wait((asked,), timeout=0.1)
            if done and not asked.exception():
                last_answer_at = fake_clock().now
        assert 0 < last_answer_at - landed_at < 10.0 - 3.0


@in_fake_time
async def test_in_the_spacing_nothing_is_answered_when_somebody_may_have_taken_over() -> None:
    store = FaultyStore()
    async with leading(store, group_commit_interval=5.0, **FRESH_FOR_A_SECOND) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        sent_at = store.sent_at[-1]
        fake_clock().now = sent_at + 1.0
        await leader.ask(operations.GET_STATS)
        assert fake_clock().now - sent_at >= 5.0
        assert store.sent_at[-1] - sent_at >= 5.0


# Leases


@in_fake_time
async def test_pauses_of_an_hour_expire_no_lease() -> None:
    store = FaultyStore()
    async with leading(store, heartbeat_timeout=30.0) as leader:
        fields = await fields_of(operations.HEARTBEAT, leader)
        for _ in range(5):
            writes = len(store.attempts)
            fake_clock().now += HOUR
            await until(lambda writes=writes: len(store.attempts) > writes)
        assert statuses(store) == ["in_progress"]
        await leader.ask(operations.COMPLETE_JOB, **fields)


@in_fake_time
async def test_an_hour_without_a_store_expires_no_lease() -> None:
    store = FaultyStore()
    async with leading(store, heartbeat_timeout=30.0) as leader:
        fields = await fields_of(operations.HEARTBEAT, leader)
        store.gate.clear()
        await until(lambda: store.at_gate)
        await asyncio.sleep(HOUR)
        store.gate.set()
        writes = len(store.attempts)
        await until(lambda: len(store.attempts) > writes)
        assert statuses(store) == ["in_progress"]
        await leader.ask(operations.COMPLETE_JOB, **fields)


@pytest.mark.parametrize("spacing", [0.0, 0.5, 3.0])
@in_fake_time
async def test_a_lease_ends_on_time_however_far_apart_writes_are(spacing: float) -> None:
    store = FaultyStore()
    settings = {
        "heartbeat_timeout": 6.0,
        "broker_heartbeat_interval": 0.1,
        "group_commit_interval": spacing,
    }
    async with leading(store, **settings) as leader:
        await fields_of(operations.HEARTBEAT, leader)
        claimed_at = store.sent_at[-1]
        await until(lambda: statuses(store) == ["unclaimed"], 100)
        assert 6.0 <= fake_clock().now - claimed_at <= 6.0 + spacing + 0.1


@in_fake_time
async def test_a_lease_that_ends_long_before_a_sign_of_life_is_due_ends_on_time() -> None:
    store = FaultyStore()
    async with leading(
        store, heartbeat_timeout=2.0, broker_heartbeat_interval=100.0, broker_heartbeat_timeout=300.0
    ) as leader:
        await fields_of(operations.HEARTBEAT, leader)
        claimed_at = fake_clock().now
        await until(lambda: statuses(store) == ["unclaimed"], 100)
        assert 2.0 <= fake_clock().now - claimed_at <= 2.1


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
@in_fake_time
async def test_a_lease_does_not_depend_on_the_time_of_day(jump: float) -> None:
    store = FaultyStore()
    async with leading(store, heartbeat_timeout=30.0) as leader:
        await fields_of(operations.HEARTBEAT, leader)
        claimed_at = fake_clock().now
        fake_clock().wall += int(1000 * jump)
        await asyncio.sleep(29)
        assert statuses(store) == ["in_progress"]
        await until(lambda: statuses(store) == ["unclaimed"], 100)
        assert fake_clock().now - claimed_at <= 31


# The spacing of writes


@pytest.mark.parametrize("by", ["group_commit_interval", "min_write_interval"])
@in_fake_time
async def test_no_two_writes_are_closer_than_the_spacing(by: str) -> None:
    store = FaultyStore()
    store._latency = 0.05
    settings = {"group_commit_interval": 1.0} if by == "group_commit_interval" else {}
    if by == "min_write_interval":
        store.min_write_interval = 1.0
    async with leading(store, **settings) as leader:
        for n in range(40):
            if n % 3:
                await leader.ask(operations.SUBMIT_JOB)
            else:
                leader.put(operations.SUBMIT_JOB)
            await asyncio.sleep(0.37 * (n % 5))
        await asyncio.sleep(10)  # nothing but signs of life
        await leader.ask(operations.SUBMIT_JOB)
        await leader.stop()
    gaps = [later - sooner for sooner, later in pairwise(store.sent_at)]
    assert len(gaps) > 20
    assert min(gaps) >= 1.0 - 1e-6
    assert store.now()["broker"] is None
    assert len(store.now()["jobs"]) == 41


@in_fake_time
async def test_reads_and_heartbeats_do_not_wait_for_the_spacing() -> None:
    store = FaultyStore()
    async with leading(store, group_commit_interval=3.0) as leader:
        fields = await fields_of(operations.HEARTBEAT, leader)
        waiting = leader.put(operations.SUBMIT_JOB)
        began_at = fake_clock().now
        for _ in range(3):
            await leader.ask(operations.HEARTBEAT, **fields)
            await leader.ask(operations.LIST_DEAD)
            stats = await leader.ask(operations.GET_STATS)
            assert stats.total == 1  # what waits has not happened yet
        assert fake_clock().now - began_at < 0.01
        assert not waiting.done()
        await waiting
        assert fake_clock().now - began_at > 2.9


@in_fake_time
async def test_a_heartbeat_in_the_spacing_keeps_the_lease() -> None:
    store = FaultyStore()
    async with leading(store, group_commit_interval=3.0, heartbeat_timeout=2.0) as leader:
        fields = await fields_of(operations.HEARTBEAT, leader)
        for _ in range(15):
            await asyncio.sleep(1.5)
            await leader.ask(operations.HEARTBEAT, **fields)
        assert statuses(store) == ["in_progress"]
        assert len(store.attempts) > 5


@in_fake_time
async def test_what_waits_for_the_spacing_is_in_one_commit() -> None:
    store = FaultyStore()
    async with leading(store, group_commit_interval=3.0) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        asked = []
        for _ in range(5):
            asked.append(leader.put(operations.SUBMIT_JOB))
            await asyncio.sleep(0.5)
        assert not any(future.done() for future in asked)
        await asyncio.gather(*asked)
        assert [len(json.loads(body)["jobs"]) for body, _ in store.attempts] == [1, 6]


@in_fake_time
async def test_a_broker_that_is_stopped_in_the_spacing_commits_what_waits_and_hands_over() -> None:
    store = FaultyStore()
    async with leading(store, group_commit_interval=3.0) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        waiting = leader.put(operations.SUBMIT_JOB)
        await asyncio.sleep(0.2)
        await leader.stop()
        await waiting
    assert store.now()["broker"] is None
    assert len(store.now()["jobs"]) == 2
    first, last = store.sent_at[-2:]
    assert 3.0 - 1e-6 <= last - first < 3.1
    assert len(store.attempts) == 2


async def fields_of(operation: AnyOperation, leader: Leader) -> dict[str, str]:
    """What the operation is to be asked with. For a heartbeat, a job is submitted and leased."""
    if operation is operations.CLAIM_JOB:
        return {"worker_id": "w"}
    if operation is not operations.HEARTBEAT:
        return {}
    job = await leader.ask(operations.SUBMIT_JOB)
    claimed = await leader.ask(operations.CLAIM_JOB, worker_id="w")
    assert claimed.job_id == job.job_id
    return {"job_id": job.job_id, "worker_id": "w"}


def statuses(store: FaultyStore) -> list[str]:
    return [job["status"] for job in store.now()["jobs"]]


def test_the_brokers_clock_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.clock_gettime", float)
    assert SystemClock().monotonic() == getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
