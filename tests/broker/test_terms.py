"""Terms: what a document says of them, and how a broker comes to begin one."""

from __future__ import annotations

import asyncio
import json

import pytest
from broker import support
from broker.support import KEY, FaultyStore, candidate, fake_clock, in_fake_time, leading, until

from osqueue_broker.leadership import Candidate, Term
from osqueue_broker.queue.terms import EMPTY, Header, Stamp
from osqueue_client import operations
from osqueue_client.errors import BrokerLeadershipError, EngineStateError, OsqueueError

US = "us:1"
ELSEWHERE = "198.51.100.7:8080"
TIMEOUT = 10.0
"""The default `broker_heartbeat_timeout`."""


# What a document remembers


def test_a_document_remembers_the_sixteen_newest_terms_that_were_replaced() -> None:
    header = EMPTY
    replaced: list[Stamp] = []
    for n in range(1, 21):
        header = header.takeover(commit_id=f"takeover {n}", wall_ms=n, broker=US)
        assert header.stamp is not None
        assert header.previous_terms == tuple(replaced[-16:])
        header = header.next_commit(commit_id=f"last of {n}", wall_ms=n, broker=US)
        assert header.stamp == Stamp(n, 2 * n, f"last of {n}")
        replaced.append(header.stamp)
    assert len(header.previous_terms) == 16
    assert header.previous_terms[-1] == Stamp(19, 38, "last of 19")


@pytest.mark.parametrize(
    ("commit", "is_held"),
    [
        pytest.param(Stamp(7, 70, "now"), True, id="made-by-the-commit"),
        pytest.param(Stamp(5, 1, "now"), True, id="its-id-is-enough"),
        pytest.param(Stamp(7, 69, "before"), False, id="this-term-says-nothing-of-its-earlier-commits"),
        pytest.param(Stamp(5, 49, "before"), True, id="replaced-term-was-further"),
        pytest.param(Stamp(5, 50, "last of 5"), True, id="replaced-term-was-as-far"),
        pytest.param(Stamp(5, 50, "another"), True, id="of-a-replaced-term-the-number-counts"),
        pytest.param(Stamp(5, 51, "after"), False, id="replaced-term-was-not-as-far"),
        pytest.param(Stamp(6, 50, "x"), False, id="no-such-term"),
        pytest.param(Stamp(4, 1, "x"), False, id="forgotten-term"),
        pytest.param(Stamp(8, 1, "x"), False, id="later-term"),
    ],
)
def test_whether_a_document_holds_a_commit(commit: Stamp, is_held: bool) -> None:
    header = Header(
        broker=US, broker_heartbeat=1, stamp=Stamp(7, 70, "now"), previous_terms=(Stamp(5, 50, "last of 5"),)
    )
    assert header.holds(commit) is is_held


def test_a_document_without_terms_holds_no_commit() -> None:
    assert not EMPTY.holds(Stamp(1, 1, "c"))


# The first document


@pytest.mark.parametrize("faults", [["answer"], ["request"], ["request", "request", "answer"]], ids="-".join)
@in_fake_time
async def test_a_first_write_without_a_clear_answer_is_resolved_with_the_same_bytes(
    faults: list[str],
) -> None:
    store = FaultyStore()
    store.create_faults = list(faults)
    term = await begun(candidate(store, fake_clock()))
    now = store.object()
    assert now is not None
    assert (term.body, term.version) == (now.body, now.version)
    assert set(store.created) == {now.body}
    assert len(store.created) == faults.count("request") + 1
    assert store.attempts == []


@in_fake_time
async def test_who_loses_the_race_for_the_first_write_watches_the_winner() -> None:
    store = FaultyStore()
    real = store.create

    async def create(key: str, body: bytes) -> str:
        store.put_now({"broker": ELSEWHERE, "jobs": []})
        return await real(key, body)

    store.create = create  # type: ignore[method-assign]  # for what another does first
    clock = fake_clock()
    began_at = clock.now
    term = await begun(candidate(store, clock))
    assert clock.now - began_at >= TIMEOUT
    assert store.now()["broker"] == US
    assert term.header.stamp == Stamp(1, 1, "00000000-0000-4000-8000-000000020000")


# What other brokers leave behind


@in_fake_time
async def test_jobs_without_attempts_left_go_to_the_dead_when_a_term_begins() -> None:
    store = FaultyStore()
    jobs = [
        {"id": "default", "status": "unclaimed", "attempts": 3, "payload": 1},
        {"id": "own limit", "status": "unclaimed", "attempts": 2, "maxAttempts": 2},
        {"id": "limit of 0 means one", "status": "unclaimed", "attempts": 1, "maxAttempts": 0},
        {"id": "one left", "status": "unclaimed", "attempts": 2},
        {"id": "many left", "status": "unclaimed", "attempts": 3, "maxAttempts": 9},
        {"id": "in its last attempt", "status": "in_progress", "attempts": 3, "workerId": "w"},
        {"id": "foreign status", "status": "paused", "attempts": 3},
    ]
    store.put_now({"broker": None, "jobs": jobs})
    await begun(candidate(store, fake_clock(), max_attempts=3))
    document = store.now()
    assert [job["id"] for job in document["jobs"]] == [
        "one left", "many left", "in its last attempt", "foreign status"
    ]  # fmt: skip
    assert [(dead["id"], dead["deadNumber"]) for dead in document["deadJobs"]] == [
        ("default", 1), ("own limit", 2), ("limit of 0 means one", 3)
    ]  # fmt: skip
    assert document["deadTotal"] == 3
    assert {dead["lastError"]["type"] for dead in document["deadJobs"]} == {"AttemptsExhausted"}
    assert document["deadJobs"][0]["payload"] == 1


# Watching


@in_fake_time
async def test_a_leader_that_steps_down_while_it_is_watched_is_followed_at_once() -> None:
    store = stored(ELSEWHERE)
    clock = fake_clock()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(begun(candidate(store, clock, broker_heartbeat_interval=3.0)))
        await asyncio.sleep(2.0)
        stepped_down_at = clock.now
        store.put_now(store.now() | {"broker": None})
    assert task.result().header.broker == US
    assert store.now()["broker"] == US
    assert clock.now - stepped_down_at <= 0.51  # a sixth of the interval


@in_fake_time
async def test_a_leader_whose_document_moves_is_alive() -> None:
    store = stored(ELSEWHERE)
    clock = fake_clock()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(refused(candidate(store, clock)))
        await asyncio.sleep(TIMEOUT - 2)
        store.put_now(store.now() | {"brokerHeartbeat": 1})
        theirs = store.object()
    refusal = task.result()
    assert isinstance(refusal, BrokerLeadershipError)
    assert refusal.leader == ELSEWHERE
    assert ELSEWHERE in task.result().message
    assert store.object() is theirs
    assert store.attempts == []


@in_fake_time
async def test_a_document_that_is_deleted_while_its_leader_is_watched_is_not_made_anew() -> None:
    store = stored(ELSEWHERE)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(refused(candidate(store, fake_clock())))
        await asyncio.sleep(1)
        await store.delete(KEY)
    assert isinstance(task.result(), EngineStateError)
    assert "deleted" in task.result().message
    assert store.creates == 0


@pytest.mark.parametrize(("has_bound", "waits"), [(True, 0.0), (False, TIMEOUT)])
@in_fake_time
async def test_who_has_bound_the_port_of_its_address_need_not_watch_itself(
    has_bound: bool, waits: float
) -> None:
    store, clock = stored(US), fake_clock()
    began_at = clock.now
    await begun(candidate(store, clock), has_bound=has_bound)
    assert waits <= clock.now - began_at < waits + 0.1


@in_fake_time
async def test_a_port_that_is_bound_says_nothing_of_others_address() -> None:
    store, clock = stored(ELSEWHERE), fake_clock()
    began_at = clock.now
    await begun(candidate(store, clock), has_bound=True)
    assert clock.now - began_at >= TIMEOUT


@in_fake_time
async def test_our_address_that_appears_while_we_take_over_is_somebody_alive() -> None:
    store, clock = stored(US), fake_clock()
    store.meanwhile = [lambda: store.put_now(store.now() | {"brokerHeartbeat": 1})]
    began_at = clock.now
    await begun(candidate(store, clock), has_bound=True)
    assert clock.now - began_at >= TIMEOUT
    assert len(store.attempts) == 2


# A new term after a foreign rewrite


@in_fake_time
async def test_who_loses_the_race_for_a_new_term_names_the_broker_that_is_there_now() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        store.put_now(store.now() | {"note": "x"})
        store.meanwhile = [lambda: None, lambda: store.put_now(store.now() | {"broker": ELSEWHERE})]
        asked = leader.put(operations.SUBMIT_JOB)
        await asyncio.wait((leader.ended,))
        with pytest.raises(BrokerLeadershipError, match=ELSEWHERE) as ended:
            leader.ended.result()
        assert ended.value.leader == ELSEWHERE
        with pytest.raises(BrokerLeadershipError) as unanswered:
            await asked
        assert unanswered.value.outcome == "not_applied"
        with pytest.raises(BrokerLeadershipError) as late:
            leader.put(operations.GET_STATS)
        assert late.value.leader == ELSEWHERE
    assert store.now()["broker"] == ELSEWHERE
    assert len(store.attempts) == 2


@in_fake_time
async def test_a_running_job_has_a_fresh_full_lease_in_a_new_term() -> None:
    store = FaultyStore()
    async with leading(store, heartbeat_timeout=30.0) as leader:
        job = await leader.ask(operations.SUBMIT_JOB)
        await leader.ask(operations.CLAIM_JOB, worker_id="w")
        await asyncio.sleep(25)
        store.put_now(store.now() | {"note": "x"})
        await until(lambda: store.now()["epoch"] == 2)
        await asyncio.sleep(26)
        await leader.ask(operations.COMPLETE_JOB, job_id=job.job_id, worker_id="w")


def stored(broker: str) -> FaultyStore:
    store = FaultyStore()
    store.put_now({"broker": broker, "jobs": []})
    return store


async def begun(runner: Candidate, *, has_bound: bool = False) -> Term:
    term = await support.begun(runner, has_bound=has_bound)
    assert json.loads(term.body)["broker"] == runner.address
    return term


async def refused(runner: Candidate) -> OsqueueError:
    with pytest.raises(OsqueueError) as caught:
        await support.begun(runner)
    return caught.value
