"""The hand-over: after it nobody leads, and a stop that cannot say so says who leads instead."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from broker.support import FaultyStore, in_fake_time, leading, until

from osqueue_broker import BrokerServer
from osqueue_client import operations
from osqueue_client.errors import BrokerLeadershipError

ELSEWHERE = "198.51.100.7:8080"


def rewritten(store: FaultyStore, **fields: Any) -> None:
    store.put_now(store.now() | fields)


async def test_a_server_hands_over_a_document_that_another_program_has_just_rewritten() -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0)
    await server.start()
    rewritten(store, note="x")
    assert store.now()["broker"] == server.address
    await asyncio.wait_for(server.stop(), 5)
    assert (store.now()["broker"], store.now()["note"]) == (None, "x")


async def test_a_server_that_was_deposed_before_it_could_hand_over_names_the_leader() -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0)
    await server.start()
    rewritten(store, broker=ELSEWHERE)
    theirs = store.object()
    with pytest.raises(BrokerLeadershipError, match=ELSEWHERE) as deposed:
        await asyncio.wait_for(server.stop(), 5)
    assert deposed.value.leader == ELSEWHERE
    assert store.object() is theirs


@in_fake_time
async def test_rewrites_just_before_each_try_of_the_hand_over_do_not_keep_it_from_landing() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        rewrite_a, rewrite_b = (lambda n=n: rewritten(store, **{f"note{n}": n}) for n in (1, 2))
        store.meanwhile = [rewrite_a, lambda: None, rewrite_b]  # between them our new term begins
        await leader.stop()
    document = store.now()
    assert (document["broker"], document["note1"], document["note2"]) == (None, 1, 2)
    assert document["epoch"] == 3


@in_fake_time
async def test_what_waits_when_the_document_is_rewritten_at_the_hand_over_is_refused_as_not_applied() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        rewritten(store, note="x")
        asked = leader.put(operations.SUBMIT_JOB)
        await leader.stop()
        with pytest.raises(BrokerLeadershipError) as refused:
            await asked
        assert refused.value.outcome == "not_applied"
    assert (store.now()["broker"], store.now()["jobs"]) == (None, [])


@in_fake_time
async def test_what_comes_while_the_hand_over_is_written_is_refused_and_not_in_it() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.gate.clear()
        before = leader.put(operations.SUBMIT_JOB)
        leader.commits.stop()
        await until(lambda: store.at_gate == 1)
        late = leader.put(operations.SUBMIT_JOB)
        store.gate.set()
        await leader.stop()
        job = await before
        with pytest.raises(BrokerLeadershipError, match="has stopped") as refused:
            await late
        assert refused.value.outcome == "not_applied"
    assert [found["id"] for found in store.now()["jobs"]] == [job.job_id]
    assert store.now()["broker"] is None


@in_fake_time
async def test_a_hand_over_that_landed_is_one_though_its_answer_was_lost() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        asked = leader.put(operations.SUBMIT_JOB)
        store.faults = ["answer"]
        await leader.stop()
        await asked
    assert store.now()["broker"] is None
    assert len(store.attempts) == 1


@in_fake_time
async def test_a_hand_over_whose_request_was_lost_is_sent_again() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.faults = ["request", "request"]
        await leader.stop()
    assert store.now()["broker"] is None
    assert len(store.attempts) == 3
    assert len(set(store.attempts)) == 1


@pytest.mark.parametrize("broker", [ELSEWHERE, None])
@in_fake_time
async def test_a_hand_over_that_somebody_took_up_before_its_answer_came_has_landed(
    broker: str | None,
) -> None:
    store = FaultyStore()
    real = store._put

    def put_and_take_over(key: str, body: bytes) -> str:
        version = real(key, body)
        old = json.loads(body)
        term = {name: old[name] for name in ("epoch", "seq", "commitId")}
        stamp = {"epoch": old["epoch"] + 1, "seq": old["seq"] + 1, "commitId": "theirs"}
        real(key, json.dumps({**old, **stamp, "previousTerms": [term], "broker": broker}).encode())
        return version

    async with leading(store) as leader:
        asked = leader.put(operations.SUBMIT_JOB)
        store._put = put_and_take_over  # type: ignore[method-assign]  # for what another does at once
        store.faults = ["answer"]
        await leader.stop()
        job = await asked
    assert [found["id"] for found in store.now()["jobs"]] == [job.job_id]
    assert (store.now()["broker"], store.now()["commitId"]) == (broker, "theirs")


@in_fake_time
async def test_a_broker_that_takes_over_while_we_begin_a_term_to_hand_over_is_named() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        rewritten(store, note="x")
        store.meanwhile = [lambda: None, lambda: rewritten(store, broker=ELSEWHERE)]
        with pytest.raises(BrokerLeadershipError) as deposed:
            await leader.stop()
        assert deposed.value.leader == ELSEWHERE
    assert store.now()["broker"] == ELSEWHERE
