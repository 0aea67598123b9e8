"""What waits for the commit loop: it may be withdrawn, and each caller learns what became of its request."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from broker.support import KEY, FaultyStore, in_fake_time, leading, until

from osqueue_broker import BrokerSettings
from osqueue_broker.inbox import Inbox
from osqueue_broker.queue.mutation import Mutation
from osqueue_client import models, operations
from osqueue_client.errors import (
    BrokerLeadershipError,
    EngineStateError,
    OsqueueError,
    QueueFullError,
    StorageBackendError,
)

SUBMIT = Mutation(operations.SUBMIT_JOB, models.SubmitJob(), "id")
READ = Mutation(operations.GET_STATS, models.Empty())


def inbox(**settings: Any) -> Inbox:
    return Inbox(BrokerSettings(**settings))


# Withdrawn requests


@in_fake_time
async def test_a_request_that_is_withdrawn_before_it_is_taken_is_not_applied() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.gate.clear()
        first = leader.put(operations.SUBMIT_JOB)
        await until(lambda: store.at_gate == 1)
        withdrawn = leader.put(operations.SUBMIT_JOB)
        last = leader.put(operations.SUBMIT_JOB)
        withdrawn.cancel()
        store.gate.set()
        answers = await asyncio.gather(first, last)
        assert [job["id"] for job in store.now()["jobs"]] == [answer.job_id for answer in answers]


@in_fake_time
async def test_a_claim_that_is_withdrawn_takes_no_job() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.gate.clear()
        submitted = leader.put(operations.SUBMIT_JOB)
        await until(lambda: store.at_gate == 1)
        leader.put(operations.CLAIM_JOB, worker_id="gone").cancel()
        claimed = leader.put(operations.CLAIM_JOB, worker_id="w")
        store.gate.set()
        assert (await claimed).job_id == (await submitted).job_id


@in_fake_time
async def test_a_request_that_is_withdrawn_after_it_was_taken_is_committed_with_its_batch() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.gate.clear()
        taken = leader.put(operations.SUBMIT_JOB)
        await until(lambda: store.at_gate == 1)
        taken.cancel()
        store.gate.set()
        await until(lambda: len(store.now()["jobs"]) == 1)
        await leader.stop()


@in_fake_time
async def test_withdrawn_reads_and_changes_are_both_left_out() -> None:
    box = inbox()
    for mutation in (SUBMIT, READ):
        box.put(mutation, 0).cancel()
    kept = box.put(READ, 0)
    assert [waiting.answer for waiting in box.take_quiet()] == [kept]
    kept = box.put(SUBMIT, 0)
    box.put(READ, 0).cancel()
    assert [waiting.answer for waiting in box.take()] == [kept]


@pytest.mark.parametrize("mutation", [SUBMIT, READ], ids=["change", "read"])
@in_fake_time
async def test_withdrawn_requests_hold_no_places_in_a_full_inbox(mutation: Mutation) -> None:
    box = inbox(max_pending=5)
    asked = [box.put(mutation, 0) for _ in range(5)]
    for future in asked:
        future.cancel()
    sixth = box.put(mutation, 0)
    assert [waiting.answer for waiting in box.take()] == [sixth]


@in_fake_time
async def test_withdrawn_requests_hold_no_bytes_in_a_full_inbox() -> None:
    box = inbox(max_pending_bytes=100)
    box.put(SUBMIT, 60).cancel()
    kept = box.put(SUBMIT, 40)
    last = box.put(SUBMIT, 60)
    assert [waiting.answer for waiting in box.take()] == [kept, last]
    box.put(SUBMIT, 100)


@in_fake_time
async def test_a_full_inbox_refuses_and_has_room_again_for_what_is_taken_out() -> None:
    box = inbox(max_pending=3, max_pending_bytes=100)
    box.put(READ, 50)
    box.put(SUBMIT, 50)
    with pytest.raises(QueueFullError):
        box.put(SUBMIT, 1)
    box.put(SUBMIT, 0)
    with pytest.raises(QueueFullError):
        box.put(READ, 0)
    box.take_quiet()
    box.put(SUBMIT, 50)
    with pytest.raises(QueueFullError):
        box.put(SUBMIT, 0)


# The end of it


@in_fake_time
async def test_what_was_taken_may_have_happened_and_what_only_waited_or_comes_later_surely_has_not() -> None:
    box = inbox()
    end = EngineStateError("the end", outcome="unknown")
    taken = [box.put(SUBMIT, 0), box.put(READ, 0)]
    box.take()
    waiting = [box.put(SUBMIT, 0), box.put(READ, 0)]
    box.close(end)
    errors = [future.exception() for future in (*taken, *waiting)]
    for _ in range(2):
        with pytest.raises(EngineStateError) as late:
            box.put(SUBMIT, 0)
        errors.append(late.value)
    assert [outcome_of(error) for error in errors] == ["unknown"] * 2 + ["not_applied"] * 4
    assert {str(error) for error in errors} == {"the end"}
    assert len({id(error) for error in (end, *errors)}) == 7
    assert end.outcome == "unknown"
    assert len(box) == 0


@in_fake_time
async def test_what_an_error_knows_reaches_every_caller() -> None:
    box = inbox()
    taken = box.put(SUBMIT, 0)
    box.take()
    waiting = box.put(SUBMIT, 0)
    box.close(BrokerLeadershipError("led by b:1", leader="b:1"))
    with pytest.raises(BrokerLeadershipError) as late:
        box.put(READ, 0)
    for error in (taken.exception(), waiting.exception(), late.value):
        assert isinstance(error, BrokerLeadershipError)
        assert (error.leader, error.outcome) == ("b:1", "not_applied")


@in_fake_time
async def test_refusals_without_end_do_not_grow() -> None:
    box = inbox()
    box.close(BrokerLeadershipError("led by b:1", leader="b:1"))
    refusals = []
    for _ in range(100):
        with pytest.raises(BrokerLeadershipError) as refused:
            box.put(SUBMIT, 0)
        refusals.append(refused.value)
    assert len({id(error) for error in refusals}) == 100
    assert {len(traceback.extract_tb(error.__traceback__)) for error in refusals} == {2}
    assert {error.__context__ for error in refusals} == {None}


@in_fake_time
async def test_callers_of_one_batch_do_not_share_an_exception() -> None:
    box = inbox()
    asked = [box.put(SUBMIT, 0) for _ in range(3)]
    box.take()
    box.refuse_taken(BrokerLeadershipError("led by b:1", leader="b:1"))
    assert len({id(future.exception()) for future in asked}) == 3


@pytest.mark.parametrize(
    ("happens", "message"),
    [
        pytest.param(lambda store: store._objects.pop(KEY), "deleted", id="deleted"),
        pytest.param(lambda store: store.put_now(b"garbage"), "not a queue document", id="garbage"),
        pytest.param(lambda store: store.put_now(b"[]"), "not a queue document", id="a-list"),
    ],
)
@in_fake_time
async def test_a_document_that_is_lost_in_a_write_leaves_only_that_batch_unclear(
    happens: Callable[[FaultyStore], object], message: str
) -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.gate.clear()
        taken = [leader.put(operations.SUBMIT_JOB) for _ in range(2)]
        await until(lambda: store.at_gate == 1)
        waiting = [leader.put(operations.SUBMIT_JOB), leader.put(operations.GET_STATS)]
        happens(store)
        left = store.object()
        store.gate.set()
        await asyncio.wait((leader.ended,))
        with pytest.raises(EngineStateError, match=message):
            leader.ended.result()
        assert [outcome_of(future.exception()) for future in taken] == ["unknown"] * 2
        assert [outcome_of(future.exception()) for future in waiting] == ["not_applied"] * 2
        with pytest.raises(EngineStateError, match=message) as late:
            leader.put(operations.SUBMIT_JOB)
        assert late.value.outcome == "not_applied"
    assert store.object() is left
    assert len(store.attempts) == 1
    assert store.creates == 1


@in_fake_time
async def test_a_rewrite_that_names_us_but_has_unreadable_jobs_ends_the_term() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.put_now(store.now() | {"jobs": [{"id": 7}]})
        left = store.object()
        asked = leader.put(operations.SUBMIT_JOB)
        await asyncio.wait((leader.ended,))
        with pytest.raises(EngineStateError, match="cannot be read"):
            leader.ended.result()
        assert outcome_of(asked.exception()) == "not_applied"
    assert store.object() is left


@in_fake_time
async def test_a_loop_that_is_cancelled_says_what_may_have_happened() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.gate.clear()
        taken = leader.put(operations.SUBMIT_JOB)
        await until(lambda: store.at_gate == 1)
        waiting = leader.put(operations.SUBMIT_JOB)
        leader.ended.cancel()
        await asyncio.wait((leader.ended,))
        assert leader.ended.cancelled()
        assert outcome_of(taken.exception()) == "unknown"
        assert outcome_of(waiting.exception()) == "not_applied"


@in_fake_time
async def test_a_store_that_does_not_answer_costs_no_request_more_than_its_timeout_and_a_quarter() -> None:
    store = FaultyStore()
    async with leading(store, request_timeout=8.0) as leader:
        store.gate.clear()
        taken = leader.put(operations.SUBMIT_JOB)
        await until(lambda: store.at_gate == 1)
        await asyncio.sleep(1.0)
        waiting = leader.put(operations.SUBMIT_JOB)
        await asyncio.sleep(6.9)
        assert not taken.done()
        await asyncio.sleep(3.2)
        errors = taken.exception(), waiting.exception()
        assert all(isinstance(error, StorageBackendError) for error in errors)
        assert [outcome_of(error) for error in errors] == ["unknown", "not_applied"]
        store.gate.set()
        await leader.stop()
    assert len(store.now()["jobs"]) == 1


def outcome_of(error: BaseException | None) -> str | None:
    assert isinstance(error, OsqueueError)
    return error.outcome
