"""Which requests are sent again, when, with which id, and what is raised where they are not."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import pytest
from client.virtual_time import SILENCE, Broker, in_virtual_time, now

from osqueue_client import (
    BrokerLeadershipError,
    DiscoveryError,
    EngineStateError,
    JobError,
    LeaseLostError,
    OsqueueClient,
    OsqueueError,
    QueueFullError,
    QueueStats,
    RequestExpiredError,
    StorageBackendError,
    Transport,
    TransportConnectionError,
    TransportRequestError,
)
from osqueue_client.chance import Chance
from osqueue_client.models import ClaimedJob, JobSubmitted, Model
from osqueue_client.operations import GET_STATS, Operation
from osqueue_client.session import LONGEST_SPAN, Sessions
from osqueue_storage import MemoryBackend, StoredObject


def lost() -> OsqueueError:
    return TransportConnectionError("the answer was lost", outcome="unknown")


def refused() -> OsqueueError:
    return TransportConnectionError("refused", outcome="not_applied")


def elsewhere(leader: str | None = None) -> OsqueueError:
    return BrokerLeadershipError("not me", leader=leader, outcome="not_applied")


SLEPT = [0.0]
"""Seconds for which the machine has slept."""


def client_of(*brokers: Broker, timeout: float = 30.0, jitter: float = 1.0) -> OsqueueClient:
    """A client that meets these brokers, one at each connection, and the last one ever after."""
    left = list(brokers)

    def connect(url: str) -> Transport:
        broker = left.pop(0) if len(left) > 1 else left[0]
        broker.is_closed = False
        return broker

    names = iter(f"session-{n}" for n in range(1, 100))
    chance = Chance(session_id=lambda: next(names), jitter=lambda: jitter, slept=lambda: SLEPT[0])
    return OsqueueClient("http://a", transport=connect, timeout=timeout, _chance=chance)


def client_at(brokers: dict[str, Broker], *, jitter: float = 1.0) -> OsqueueClient:
    def connect(url: str) -> Transport:
        broker = brokers[url.removeprefix("http://")]
        broker.is_closed = False
        return broker

    return OsqueueClient(
        "http://a",
        transport=connect,
        _chance=Chance(jitter=lambda: jitter),
    )


UNCLEAR = [
    lost(),
    StorageBackendError("the store is slow", outcome="unknown"),
    EngineStateError("a fault", outcome="unknown"),
    BrokerLeadershipError("deposed in between", outcome="unknown"),
    TransportRequestError("nginx", status=502, outcome="unknown"),
    TransportRequestError("nginx", status=503, outcome="unknown"),
    TransportRequestError("nginx", status=504, outcome="unknown"),
    TransportRequestError("nginx", remote_tag="unavailable", outcome="unknown"),
]


@pytest.mark.parametrize("error", UNCLEAR, ids=repr)
@in_virtual_time
async def test_change_without_an_answer_is_repeated_under_the_same_id_until_it_has_one(
    error: OsqueueError,
) -> None:
    broker = Broker(error, error, error)
    async with client_of(broker) as client:
        assert await client.submit_job("a", 1) == "job-4"
        assert await client.submit_job("a", 2) == "job-5"
    *repeats, next_one = broker.ids
    assert {(id.session, id.number, id.lowest) for id in repeats} == {("session-1", 1, 1)}
    ages = [int((at - broker.asked_at[0]) * 1000) for at in broker.asked_at[:4]]
    assert [id.age_ms for id in repeats] == ages
    assert ages[0] == 0
    assert ages[1] < ages[2] < ages[3]
    assert (next_one.number, next_one.lowest, next_one.age_ms) == (2, 2, 0)


@in_virtual_time
async def test_every_change_has_an_id_and_nothing_else_has() -> None:
    broker = Broker()
    async with client_of(broker) as client:
        await client.submit_job("a", 1)
        await client.claim_job("w")
        await client.complete_job("j", "w", lease_token="t")
        await client.fail_job("j", "w", JobError(type="E", message="m"), lease_token="t")
        await client.requeue_dead("j")
        await client.delete_dead("j")
        assert [id.number for id in broker.ids] == [1, 2, 3, 4, 5, 6]
        await client.heartbeat("j", "w", lease_token="t")
    assert not hasattr(broker.asked[-1], "request_id")
    assert [getattr(broker.asked[n], "lease_token", None) for n in (2, 3, 6)] == ["t", "t", "t"]


@in_virtual_time
async def test_token_of_a_claim_is_the_jobs() -> None:
    broker = Broker(ClaimedJob(job_id="j", attempt=2, lease_token="t"), ClaimedJob(job_id="j"))
    async with client_of(broker) as client:
        job, old = await client.claim_job("w"), await client.claim_job("w")
    assert job is not None
    assert old is not None
    assert (job.lease_token, old.lease_token) == ("t", None)
    assert "'t'" not in repr(job)


@in_virtual_time
async def test_lowest_number_is_that_of_the_oldest_call_that_still_waits() -> None:
    loop = asyncio.get_running_loop()
    first, second, third = (loop.create_future() for _ in range(3))
    broker = Broker(first, second, third)
    async with client_of(broker) as client:
        calls: list[asyncio.Task[str]] = []
        for n in range(3):
            calls.append(asyncio.create_task(client.submit_job("a", n, timeout=5 if n == 2 else None)))
            while len(broker.asked) <= n:
                await asyncio.sleep(0)

        async def lowest() -> int:
            await client.submit_job("a", 9)
            return broker.ids[-1].lowest

        assert await lowest() == 1
        second.set_result(JobSubmitted(job_id="2"))
        await calls[1]
        assert await lowest() == 1  # the first still waits
        calls[0].cancel()
        await asyncio.wait((calls[0],))
        assert await lowest() == 3
        await asyncio.wait((calls[2],))
        assert isinstance(calls[2].exception(), TransportConnectionError)  # its time was up
        assert await lowest() == 7
    assert [id.number for id in broker.ids] == [1, 2, 3, 4, 5, 6, 7]


@in_virtual_time
async def test_change_of_unknown_outcome_is_not_repeated_where_the_broker_knows_no_ids() -> None:
    broker = Broker(lost(), features=("fail", "leaseTokens"))
    async with client_of(broker) as client:
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "unknown"
    assert [getattr(request, "request_id", None) for request in broker.asked] == [None]


@in_virtual_time
async def test_change_of_unknown_outcome_is_not_sent_to_a_next_broker_that_knows_no_ids() -> None:
    first, second = Broker(lost()), Broker(features=())
    async with client_of(first, second) as client:
        with pytest.raises(TransportConnectionError, match="the answer was lost") as caught:
            await client.submit_job("a", 1)
        assert caught.value.outcome == "unknown"
        assert (second.told_stats, second.asked) == (1, [])
        await client.submit_job("a", 2)  # a new one may
    assert [getattr(request, "request_id", None) for request in second.asked] == [None]


@in_virtual_time
async def test_change_that_a_broker_without_ids_may_have_done_is_sent_to_no_other() -> None:
    first, second = Broker(lost(), features=()), Broker()
    async with client_of(first, second) as client:
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "unknown"
    assert second.asked == []


@in_virtual_time
async def test_what_surely_had_no_effect_is_sent_to_any_broker() -> None:
    first, second = Broker(elsewhere()), Broker(refused(), features=())
    async with client_of(first, second) as client:
        assert await client.submit_job("a", 1) == "job-2"
    assert [getattr(request, "request_id", None) for request in second.asked] == [None, None]


@pytest.mark.parametrize(
    "error", [error for error in UNCLEAR if not isinstance(error, EngineStateError)], ids=repr
)
@in_virtual_time
async def test_reads_and_heartbeats_are_repeated_by_any_broker(error: OsqueueError) -> None:
    broker = Broker(error, error, features=(), stats=(error,))
    async with client_of(broker) as client:
        await client.get_stats()
        await client.heartbeat("j", "w")
    assert (broker.told_stats, len(broker.asked)) == (2, 3)


@in_virtual_time
async def test_heartbeat_may_be_repeated_for_any_time() -> None:
    broker = Broker(*[lost()] * 100)
    async with client_of(broker) as client:
        await client.heartbeat("j", "w", timeout=300)
    assert now() > 90


@pytest.mark.parametrize(
    "error",
    [
        RequestExpiredError("too late"),
        QueueFullError("full"),
        LeaseLostError("lost"),
        EngineStateError("full of holes", outcome="not_applied"),
        TransportRequestError("no", status=500, outcome="unknown"),
    ],
    ids=repr,
)
@in_virtual_time
async def test_refusal_is_raised_at_once(error: OsqueueError) -> None:
    broker = Broker(error)
    async with client_of(broker) as client:
        with pytest.raises(type(error)) as caught:
            await client.submit_job("a", 1)
    assert caught.value.message == error.message
    assert (len(broker.asked), now()) == (1, 0)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (QueueFullError("full"), "unknown"),  # said before the broker has looked what it did
        (LeaseLostError("lost"), "not_applied"),
        (RequestExpiredError("too late"), "unknown"),
    ],
    ids=repr,
)
@in_virtual_time
async def test_refusal_of_a_repeat_tells_the_outcome_of_all(error: OsqueueError, outcome: str) -> None:
    async with client_of(Broker(lost(), error)) as client:
        with pytest.raises(type(error)) as caught:
            await client.complete_job("j", "w")
    assert caught.value.outcome == outcome


@pytest.mark.parametrize("last", [lost(), elsewhere()], ids=repr)
@in_virtual_time
async def test_what_may_have_happened_is_not_repeated_beyond_60_s_of_age(last: OsqueueError) -> None:
    broker = Broker(lost(), *[last] * 1000)
    async with client_of(broker, timeout=300) as client:
        with pytest.raises(type(last), match=last.message) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "unknown"
    assert 59 < broker.asked_at[-1] < 60
    assert broker.ids[-1].age_ms < 60_000
    assert 60 <= now() <= 61


@in_virtual_time
async def test_what_surely_had_no_effect_does_not_grow_old() -> None:
    broker = Broker(*[elsewhere()] * 100)
    async with client_of(broker, timeout=300) as client:
        await client.submit_job("a", 1)
    assert now() > 90
    assert {id.age_ms for id in broker.ids} == {0}


@in_virtual_time
async def test_age_counts_from_the_first_sending_that_may_have_had_an_effect() -> None:
    broker = Broker(elsewhere(), lost(), elsewhere())
    async with client_of(broker) as client:
        await client.submit_job("a", 1)
    _, doubtful, third, fourth = broker.asked_at
    ages = [id.age_ms for id in broker.ids]
    assert ages == [0, 0, int((third - doubtful) * 1000), int((fourth - doubtful) * 1000)]


@in_virtual_time
async def test_leader_that_is_named_is_asked_at_once_but_not_in_circles() -> None:
    a, b = Broker(*[elsewhere("b")] * 3), Broker(*[elsewhere("a")] * 2)
    async with client_at({"a": a, "b": b}) as client:
        await client.submit_job("a", 1)
    # a names b: at once; b names a, which was asked just now: a pause; and so on.
    assert a.asked_at == [0, pytest.approx(0.05), pytest.approx(0.15)]
    assert b.asked_at == [0, pytest.approx(0.05), pytest.approx(0.15)]


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@in_virtual_time
async def test_pauses_double_up_to_a_second_and_are_cut_by_half_at_most(jitter: float) -> None:
    broker = Broker(*[refused()] * 9)
    async with client_of(broker, jitter=jitter) as client:
        await client.submit_job("a", 1)
    pauses = [later - sooner for sooner, later in zip(broker.asked_at, broker.asked_at[1:], strict=False)]
    share = 0.5 + jitter / 2
    assert pauses == [pytest.approx(share * pause) for pause in (0.05, 0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1)]


@in_virtual_time
async def test_session_that_was_idle_for_60_s_is_followed_by_a_new_one() -> None:
    loop = asyncio.get_running_loop()
    slow: asyncio.Future[Model] = loop.create_future()
    broker = Broker()
    async with client_of(broker) as client:
        await client.submit_job("a", 1)
        await asyncio.sleep(59)
        await client.submit_job("a", 2)
        await asyncio.sleep(60)
        broker.script.append(slow)
        waiting = asyncio.create_task(client.submit_job("a", 3, timeout=500))
        await asyncio.sleep(5)
        assert [(id.session, id.number) for id in broker.ids] == [
            ("session-1", 1), ("session-1", 2), ("session-2", 1),
        ]  # fmt: skip
        waiting.cancel()


@in_virtual_time
async def test_session_with_a_request_under_way_stays() -> None:
    broker = Broker(*[elsewhere()] * 1000)
    async with client_of(broker) as client:
        waiting = asyncio.create_task(client.submit_job("a", 1, timeout=500))
        await asyncio.sleep(100)
        broker.script.clear()
        await client.submit_job("a", 2)
        await waiting
    assert {id.session for id in broker.ids} == {"session-1"}


def test_session_lasts_as_long_as_a_request_waits() -> None:
    names = iter(["first", "second"])
    sessions = Sessions(lambda: next(names))
    waiting = sessions.take(0.0)
    assert sessions.take(100.0).request_id(100.0, 100.0).session == "first"
    assert waiting.request_id(100.0, 100.0).session == "first"


def test_session_is_followed_by_a_new_one_when_a_request_without_an_answer_holds_it_back() -> None:
    # A broker remembers the answers of all that came after it, and 10,000 at most.
    names = iter(["first", "second", "third"])
    sessions = Sessions(lambda: next(names))
    stuck = sessions.take(0.0)
    for number in range(2, LONGEST_SPAN + 1):
        place = sessions.take(0.0)
        assert (place.session.id, place.number) == ("first", number)
        place.give_back()
    new = sessions.take(0.0)
    assert (new.session.id, new.number) == ("second", 1)
    repeat = stuck.request_id(1.0, 0.0)
    assert (repeat.session, repeat.number, repeat.lowest, repeat.age_ms) == ("first", 1, 1, 1000)


def test_child_of_a_fork_has_a_session_of_its_own() -> None:
    names = iter(["parent", "child"])
    sessions = Sessions(lambda: next(names))
    assert sessions.take(0.0).number == 1
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        place = sessions.take(1.0)
        os.write(write, f"{place.request_id(1.0, 1.0).session} {place.number}".encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 100) == b"child 1"
    assert sessions.take(1.0).request_id(1.0, 1.0).session == "parent"


@in_virtual_time
async def test_store_that_never_answers_holds_up_one_search_and_not_all_that_follow() -> None:
    class Hangs(MemoryBackend):
        hangs = True

        async def read(self, key: str) -> StoredObject | None:
            if self.hangs:
                await asyncio.Event().wait()
            return await super().read(key)

    store = Hangs()
    await store.create("queue.json", b'{"broker":"a:1"}')
    broker = Broker()
    client = OsqueueClient(storage=store, transport=lambda url: broker)
    async with client, asyncio.TaskGroup() as callers:  # at each moment some call waits
        callers.create_task(client.submit_job("a", 1, timeout=25))
        await asyncio.sleep(5)
        store.hangs = False
        await client.submit_job("a", 2, timeout=25)


@in_virtual_time
async def test_error_at_the_deadline_says_what_was_tried_what_failed_last_and_the_outcome() -> None:
    async with client_of(Broker(lost(), *[refused()] * 100), timeout=10) as client:
        with pytest.raises(
            TransportConnectionError, match=r"^refused \(tried \d+ times in 9\.\d s\)$"
        ) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "unknown"
    assert 9 <= now() <= 10


@in_virtual_time
async def test_deadline_in_a_last_silence_tells_also_what_was_before() -> None:
    async with client_of(Broker(elsewhere(), SILENCE), timeout=10) as client:
        with pytest.raises(
            TransportConnectionError,
            match=r"^submitJob: no answer from http://a within 9\.\d* s; before that: not me \(tried 2 times in 10",
        ) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "unknown"
    assert now() == pytest.approx(10)


@in_virtual_time
async def test_deadline_in_a_search_tells_what_failed_before_it() -> None:
    async with client_of(Broker(elsewhere()), Broker(stats=(SILENCE,)), timeout=10) as client:
        with pytest.raises(BrokerLeadershipError, match=r"^not me \(tried 2 times in 10\.0 s\)$") as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "not_applied"


@in_virtual_time
async def test_what_is_lost_before_the_change_is_sent_had_no_effect() -> None:
    async with client_of(Broker(stats=(lost(),) * 1000), timeout=5) as client:
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "not_applied"


@in_virtual_time
async def test_nothing_listens_is_tried_until_the_deadline_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = TransportConnectionError(
        "getStats: cannot connect to http://a: Connection refused", outcome="not_applied"
    )
    broker = Broker(stats=(error,) * 1000)
    async with client_of(broker, timeout=10) as client:
        async with asyncio.TaskGroup() as group:
            for n in range(5):
                group.create_task(refusal(client, n))
        assert now() > 9
        [record] = caplog.records
        assert (record.name, record.levelno) == ("osqueue.client", logging.WARNING)
        assert record.getMessage().startswith(
            "submitJob: cannot connect to http://a: Connection refused; it is tried again for up to "
        )
        broker.stats.clear()
        await client.submit_job("a", 1)
        broker.script[:] = [refused()] * 10
        await client.submit_job("a", 1)  # another failure is news again
    assert len(caplog.records) == 2


async def refusal(client: OsqueueClient, n: int) -> None:
    with pytest.raises(TransportConnectionError, match="submitJob: cannot connect") as caught:
        await client.submit_job("a", n)
    assert caught.value.outcome == "not_applied"


@in_virtual_time
async def test_short_failure_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async with client_of(Broker(*[refused()] * 3)) as client:
        await client.submit_job("a", 1)
    assert caplog.records == []


@in_virtual_time
async def test_silent_broker_is_left_after_13_s_and_what_it_was_asked_repeated() -> None:
    paused, leader = Broker(SILENCE), Broker()
    async with client_of(paused, leader) as client:
        await client.submit_job("a", 1)
    assert 13 <= now() < 13.1
    assert (leader.ids[0].number, leader.ids[0].age_ms) == (1, int(leader.asked_at[0] * 1000))


@in_virtual_time
async def test_broker_without_ids_is_waited_for_to_the_end() -> None:
    broker = Broker(SILENCE, features=())
    async with client_of(broker, timeout=50) as client:
        with pytest.raises(TransportConnectionError, match="within 50 s") as caught:
            await client.submit_job("a", 1)
    assert (caught.value.outcome, len(broker.asked)) == ("unknown", 1)
    assert now() == pytest.approx(50)


@in_virtual_time
async def test_long_answer_to_a_read_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    slow: asyncio.Future[Model] = loop.create_future()
    broker = Broker(slow)
    loop.call_later(100, slow.set_result, ClaimedJob())
    async with client_of(broker) as client:
        await client.list_jobs(timeout=300)
    assert now() == pytest.approx(100)


@in_virtual_time
async def test_features_are_asked_for_once_by_all_who_wait() -> None:
    broker = Broker()
    async with client_of(broker) as client, asyncio.TaskGroup() as group:
        first = group.create_task(client.submit_job("a", 0))
        for n in range(1, 10):
            group.create_task(client.submit_job("a", n))
        await asyncio.sleep(0)
        first.cancel()  # takes the answer from nobody
    assert (broker.told_stats, len(broker.asked)) == (1, 9)


@in_virtual_time
async def test_failed_search_is_that_of_all_who_wait_and_each_has_an_error_of_its_own() -> None:
    broker = Broker(stats=(DiscoveryError("none leads"),) * 1000)
    async with client_of(broker, timeout=0.02) as client:
        results = await asyncio.gather(*(client.submit_job("a", n) for n in range(5)), return_exceptions=True)
    assert broker.told_stats == 1
    assert len({id(result) for result in results}) == 5
    assert {type(result) for result in results} == {DiscoveryError}


@in_virtual_time
async def test_closing_ends_a_pause() -> None:
    async with asyncio.TaskGroup() as group:
        client = client_of(Broker(*[lost()] * 100))
        call = group.create_task(closed_under(client))
        await asyncio.sleep(2.1)
        await client.aclose()
    assert call.result().outcome == "unknown"
    assert now() == pytest.approx(2.1)


async def closed_under(client: OsqueueClient) -> OsqueueError:
    with pytest.raises(TransportConnectionError, match="closed") as caught:
        await client.submit_job("a", 1)
    return caught.value


@in_virtual_time
async def test_transport_of_the_users_own_is_asked_again_too() -> None:
    broker = Broker(lost(), elsewhere("b"))
    async with OsqueueClient(transport=broker) as client:
        await client.submit_job("a", 1)
    assert [id.number for id in broker.ids] == [1, 1, 1]


@in_virtual_time
async def test_transport_of_the_users_own_has_to_say_again_what_it_knows_after_a_failure() -> None:
    class Replaced(Broker):
        async def call(self, operation: Operation[Any, Any], request: Any, /) -> Any:
            try:
                return await super().call(operation, request)
            finally:
                if operation is not GET_STATS:
                    self.features = ()  # an old broker is there now, and would do it twice

    broker = Replaced(lost())
    async with OsqueueClient(transport=broker) as client:
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "unknown"
    assert len(broker.asked) == 1


@in_virtual_time
async def test_time_in_which_the_machine_slept_makes_a_request_older() -> None:
    answers: asyncio.Future[Model] = asyncio.get_running_loop().create_future()
    broker = Broker(answers)
    SLEPT[0] = 0.0
    try:
        async with client_of(broker, timeout=200) as client:
            waiting = asyncio.create_task(client.submit_job("a", 1))
            await asyncio.sleep(1)
            SLEPT[0] = 40.0
            answers.set_exception(lost())
            await waiting
            assert [id.age_ms // 1000 for id in broker.ids] == [0, 41]
            SLEPT[0] = 101.0
            await client.submit_job("a", 2)
            assert [id.session for id in broker.ids] == ["session-1", "session-1", "session-2"]
            broker.script.append(sleeping := asyncio.get_running_loop().create_future())
            waiting = asyncio.create_task(client.submit_job("a", 3))
            await asyncio.sleep(1)
            SLEPT[0] = 161.0
            sleeping.set_exception(lost())
            with pytest.raises(TransportConnectionError) as caught:
                await waiting
            assert caught.value.outcome == "unknown"
    finally:
        SLEPT[0] = 0.0


@in_virtual_time
async def test_call_that_fails_in_the_moment_of_closing_ends_at_once_and_as_the_others_do() -> None:
    answer: asyncio.Future[Model] = asyncio.get_running_loop().create_future()
    async with client_of(Broker(answer)) as client:
        waiting = asyncio.create_task(client.submit_job("a", 1))
        await asyncio.sleep(1)
        answer.set_exception(lost())
        await client.aclose()
        with pytest.raises(TransportConnectionError, match="closed during the call"):
            await waiting
    assert now() == 1


@in_virtual_time
async def test_broker_without_ids_that_refuses_a_lease_in_its_own_way_is_asked_once() -> None:
    broker = Broker(EngineStateError("job j is not leased to w", outcome="unknown"), features=())
    async with client_of(broker) as client:
        with pytest.raises(EngineStateError):
            await client.heartbeat("j", "w")
    assert len(broker.asked) == 1


@in_virtual_time
async def test_silent_one_of_several_brokers_keeps_nobody_from_the_one_that_leads() -> None:
    brokers = {"a": Broker(stats=(SILENCE,)), "b": Broker()}
    async with OsqueueClient(
        ["http://a", "http://b"], transport=lambda url: brokers[url.removeprefix("http://")]
    ) as client:
        await client.submit_job("a", 1)
    assert now() == 0


@in_virtual_time
async def test_leader_outside_of_the_list_is_found_at_the_word_of_one_in_it() -> None:
    brokers = {"a": Broker(stats=(elsewhere("c"),) * 9), "b": Broker(stats=(refused(),) * 9), "c": Broker()}
    async with OsqueueClient(
        ["http://a", "http://b"], transport=lambda url: brokers[url.removeprefix("http://")]
    ) as client:
        await client.submit_job("a", 1)
    assert len(brokers["c"].asked) == 1


@in_virtual_time
async def test_connection_that_was_given_up_while_its_features_were_asked_for_is_not_used() -> None:
    loop = asyncio.get_running_loop()
    learnt: asyncio.Future[Model] = loop.create_future()
    first, second = Broker(elsewhere(), stats=(learnt,)), Broker()
    async with client_of(first, second) as client, asyncio.TaskGroup() as group:
        group.create_task(client.submit_job("a", 1))
        while not first.told_stats:
            await asyncio.sleep(0)
        await client.heartbeat("j", "w")  # finds out that another leads
        learnt.set_result(QueueStats(total=0, unclaimed=0, in_progress=0, features=("requestIds",)))
    assert first.is_closed
    assert [type(request).__name__ for request in second.asked] == ["LeasedJob", "SubmitJob"]
