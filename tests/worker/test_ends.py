"""A job is reported as what became of it, however its run ends, and the lease of a running one is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from broker.support import in_fake_time
from msgspec import Raw
from worker.support import until

from osqueue_client import OsqueueClient
from osqueue_client.errors import TransportConnectionError
from osqueue_client.models import (
    BATCH_LIMIT,
    ClaimedJob,
    ClaimedJobs,
    Empty,
    LeasedEntry,
    LeasedResults,
    QueueStats,
)
from osqueue_client.operations import AnyOperation
from osqueue_worker import Worker

FEATURES = ("requestIds", "batch", "wait")


class Script:
    """A transport to a broker that gives so many jobs, and notes what is asked of it."""

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        self.given = 0
        self.features: tuple[str, ...] = FEATURES
        self.calls: list[str] = []
        self.beats: dict[str, list[float]] = {}
        self.answer_later = asyncio.Event()
        self.answer_later.set()
        self.claimed = asyncio.Event()

    async def call(self, operation: AnyOperation, request: Any, /) -> Any:
        self.calls.append(operation.name)
        await asyncio.sleep(0)
        match operation.name:
            case "getStats":
                return QueueStats(total=0, unclaimed=0, in_progress=0, features=self.features)
            case "claimJobs":
                jobs = self._next(request.limit)
                if not jobs:
                    await asyncio.sleep(30)
                await self._hand_over()
                return ClaimedJobs(jobs=jobs)
            case "claimJob":
                [job] = self._next(1) or [ClaimedJob()]
                await self._hand_over()
                return job
            case "heartbeatJobs" | "completeJobs":
                for lease in request.jobs if operation.name == "heartbeatJobs" else ():
                    self.beats.setdefault(lease.job_id, []).append(asyncio.get_running_loop().time())
                return LeasedResults(results=(LeasedEntry(),) * len(request.jobs))
        return Empty()

    async def aclose(self) -> None:
        pass

    def _next(self, limit: int) -> tuple[ClaimedJob, ...]:
        first, self.given = self.given, min(self.given + limit, self.jobs)
        return tuple(
            ClaimedJob(job_id=f"j{number}", payload=Raw(b"%d" % number), type="a", attempt=1)
            for number in range(first, self.given)
        )

    async def _hand_over(self) -> None:
        self.claimed.set()
        await self.answer_later.wait()

    @property
    def reports(self) -> list[str]:
        return [name for name in self.calls if name in ("completeJob", "completeJobs", "failJob")]


def stopped_first(worker: Worker, start: Callable[[], None]) -> None:
    worker._runs.stop()
    start()


def stopped_at_once(worker: Worker, start: Callable[[], None]) -> None:
    start()
    worker._runs.stop()


@pytest.mark.parametrize("order", [stopped_first, stopped_at_once])
@pytest.mark.parametrize("is_async", [True, False])
async def test_job_whose_handler_has_not_begun_is_given_back_and_never_reported_as_done(
    order: Any, is_async: bool
) -> None:
    script = Script()
    ran: list[object] = []

    async def handler(payload: object) -> None:
        ran.append(payload)

    async with OsqueueClient(transport=script) as client:
        job = await client.claim_job("w", ["a"])
        assert job is not None
        worker = Worker(client=client, handlers={"a": handler if is_async else ran.append})
        order(worker, lambda: worker._runs.start(job))
        await asyncio.wait_for(worker._runs.ended(), 5)
    assert (ran, script.reports) == ([], ["failJob"])


def test_job_that_runs_when_the_program_ends_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    script_calls: list[list[str]] = []
    began = []

    async def handler(payload: object) -> None:
        began.append(payload)
        await asyncio.sleep(60)

    async def program() -> None:
        script = Script()
        script_calls.append(script.calls)
        worker = Worker(client=OsqueueClient(transport=script), handlers={"a": handler})
        worker.start()
        await until(lambda: began)
        # The program returns, and asyncio.run cancels all tasks.

    with caplog.at_level(logging.WARNING):
        asyncio.run(program())
    assert "failJob" not in script_calls[0]
    assert "completeJobs" not in script_calls[0]
    assert any("job_left" in message for message in caplog.messages)


async def test_claim_of_an_old_broker_that_has_followed_is_waited_for_by_stop() -> None:
    script = Script()
    ran: list[object] = []

    async def old_from_now_on(operation: AnyOperation, request: Any, /) -> Any:
        if operation.name == "claimJobs":
            script.features = ()
            raise TransportConnectionError("gone", outcome="not_applied")
        return await Script.call(script, operation, request)

    script.call = old_from_now_on  # type: ignore[method-assign]
    script.answer_later.clear()
    async with OsqueueClient(transport=script) as client:
        worker = Worker(client=client, handlers={"a": ran.append}, concurrency=1, poll_interval=0.05)
        worker.start()
        await asyncio.wait_for(script.claimed.wait(), 5)
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(1.0)  # longer than a claim that waits is given
        script.answer_later.set()
        await asyncio.wait_for(stopping, 10)
    assert ran == [0]


@in_fake_time
async def test_leases_are_kept_in_time_when_most_of_many_jobs_end_at_once() -> None:
    interval = 5.0
    count = 8 * BATCH_LIMIT
    last = f"j{count - 1}"
    script = Script(count)
    go = asyncio.Event()

    async def handler(number: int) -> None:
        await (go.wait() if number < count - 10 else asyncio.sleep(1000))

    async with OsqueueClient(transport=script) as client:
        worker = Worker(
            client=client, handlers={"a": handler}, concurrency=count, heartbeat_interval=interval
        )
        worker.start()
        while len(script.beats.get("j0", ())) < 2:  # now it is the first thousand's turn
            await asyncio.sleep(0.1)
        go.set()
        await asyncio.sleep(4 * interval)
        beats = script.beats[last]
        assert max(later - sooner for sooner, later in pairwise(beats)) <= 2 * interval
        leaving = asyncio.create_task(worker.stop())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
