"""Many jobs in one call to a broker without batches: one that fails is no matter of the others, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from client.support import until

from osqueue_client import (
    BatchError,
    EngineStateError,
    OsqueueClient,
    QueueFullError,
    TransportConnectionError,
)
from osqueue_client.models import Empty, JobSubmitted, QueueStats
from osqueue_client.operations import GET_STATS, SUBMIT_JOB, Operation

LEASES = [(f"j{n}", None) for n in range(1000)]
JOBS = [("a", n) for n in range(1100)]


class Old:
    """A broker without features. `answer(n)` may hold its n-th answer, or raise in place of it."""

    def __init__(self, answer: Callable[[int], Awaitable[None]]) -> None:
        self._answer = answer
        self.asked: list[Any] = []
        self.answered = 0

    @property
    def under_way(self) -> int:
        return len(self.asked) - self.answered

    async def call(self, operation: Operation[Any, Any], request: Any, /) -> Any:
        await asyncio.sleep(0)
        if operation is GET_STATS:
            return QueueStats(total=0, unclaimed=0, in_progress=0)
        self.asked.append(request)
        n = len(self.asked)
        try:
            await self._answer(n)
        finally:
            self.answered += 1
        return JobSubmitted(job_id=str(n)) if operation is SUBMIT_JOB else Empty()

    async def aclose(self) -> None:
        pass


def lost() -> TransportConnectionError:
    return TransportConnectionError("the connection was lost", outcome="unknown")


@pytest.mark.parametrize("name", ["heartbeat_jobs", "complete_jobs"])
@pytest.mark.parametrize("error", [EngineStateError("it is not yours"), QueueFullError("full")])
async def test_refused_lease_takes_nothing_from_the_others(name: str, error: Exception) -> None:
    async def answer(n: int) -> None:
        if n <= 70:
            raise error

    broker = Old(answer)
    async with OsqueueClient(transport=broker) as client:
        results = await getattr(client, name)(LEASES, "w")
    assert [request.job_id for request in broker.asked] == [id for id, _ in LEASES]
    assert [type(result) for result in results[:70]] == [type(error)] * 70
    assert results[70:] == [None] * 930


async def test_slow_answers_hold_up_nothing_and_there_is_a_limit_to_those_under_way() -> None:
    held = asyncio.Event()
    most = 0

    async def answer(n: int) -> None:
        nonlocal most
        most = max(most, broker.under_way)
        await asyncio.sleep(0)
        if n <= 2:
            await held.wait()

    broker = Old(answer)
    async with OsqueueClient(transport=broker) as client, asyncio.TaskGroup() as group:
        call = group.create_task(client.heartbeat_jobs(LEASES, "w"))
        await until(lambda: broker.answered == 998)
        held.set()
        assert await call == [None] * 1000
    assert most == 64


async def test_broker_that_is_away_is_not_asked_for_each_lease() -> None:
    async def answer(n: int) -> None:
        if n > answering:
            raise lost()

    answering, broker = 0, Old(answer)
    async with OsqueueClient(transport=broker) as client:
        with pytest.raises(TransportConnectionError):
            await client.complete_jobs(LEASES, "w")
    assert len(broker.asked) < 200
    answering, broker = 500, Old(answer)
    async with OsqueueClient(transport=broker) as client:
        results = await client.complete_jobs(LEASES, "w")
    assert results[:500] == [None] * 500
    sent = len(broker.asked)
    assert 564 <= sent < 700
    assert {getattr(error, "outcome", None) for error in results[500:sent]} == {"unknown"}
    assert {getattr(error, "outcome", None) for error in results[sent:]} == {"not_applied"}


async def test_ids_of_the_jobs_that_were_added_are_not_lost_with_those_behind_them() -> None:
    async def answer(n: int) -> None:
        if n > 1000:
            raise lost()

    broker = Old(answer)
    async with OsqueueClient(transport=broker) as client:
        with pytest.raises(BatchError) as caught:
            await client.submit_jobs(JOBS)
    results = caught.value.results
    assert results[:1000] == [str(n) for n in range(1, 1001)]
    outcomes = [getattr(result, "outcome", None) for result in results[1000:]]
    assert outcomes == ["unknown"] * 16 + ["not_applied"] * 84


async def test_error_that_is_raised_does_not_hide_that_others_may_have_been_added() -> None:
    async def answer(n: int) -> None:
        raise QueueFullError("full") if n == 1 else lost()

    async with OsqueueClient(transport=Old(answer)) as client:
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_jobs(JOBS[:5])
    assert caught.value.outcome == "unknown"


async def test_what_follows_a_job_that_was_refused_is_not_sent() -> None:
    async def answer(n: int) -> None:
        if n > 20:
            raise QueueFullError("full")

    broker = Old(answer)
    async with OsqueueClient(transport=broker) as client:
        with pytest.raises(BatchError):
            await client.submit_jobs(JOBS)
    assert len(broker.asked) < 60
