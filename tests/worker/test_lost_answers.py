"""A producer and a worker over a network that loses requests and answers: no error reaches the program."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from worker.support import SINGLE, until

from osqueue_broker import BrokerServer
from osqueue_client import Job, OsqueueClient, TransportConnectionError
from osqueue_client.transports import Transport, open_transport
from osqueue_storage import MemoryBackend
from osqueue_worker import Worker

JOBS = 60


class Losing:
    """A transport that loses a third of all: half of them before the broker has it, half of them its answer.

    And the answer to the first of each kind: what is joined may be few requests.
    """

    def __init__(self, inner: Transport, chance: random.Random) -> None:
        self.inner = inner
        self.chance = chance
        self.lost: Counter[str] = Counter()
        self.asked: set[str] = set()

    async def call(self, operation: Any, request: Any, /) -> Any:
        fate = self.chance.random()
        name = SINGLE.get(operation.name, operation.name)
        if name not in self.asked:
            self.asked.add(name)
            fate = 1 / 4
        if fate < 1 / 6:
            self.lost[name] += 1
            raise TransportConnectionError("lost on its way", outcome="unknown")
        answer = await self.inner.call(operation, request)
        if fate < 1 / 3:
            self.lost[name] += 1
            raise TransportConnectionError("its answer was lost", outcome="unknown")
        return answer

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.mark.parametrize("seed", range(3))
async def test_lost_requests_and_answers_reach_no_program_and_double_nothing(seed: int) -> None:
    chance = random.Random(seed)
    runs: Counter[int] = Counter()
    completed: list[Job] = []
    failed: list[BaseException] = []

    async def handle(payload: int) -> None:
        runs[payload] += 1

    async with (
        BrokerServer(storage=MemoryBackend(), port=0) as server,
        OsqueueClient(f"http://{server.address}") as asking,
    ):
        await asking.connect()
        assert "requestIds" in asking.features
        losing = Losing(open_transport("rest", f"http://{server.address}"), chance)
        async with OsqueueClient(transport=losing) as client:
            worker = Worker(
                client=client,
                handlers={"a": handle},
                poll_interval=0.02,
                on_job_completed=completed.append,
                on_job_failed=lambda job, error: failed.append(error),
            )
            async with worker, asyncio.TaskGroup() as group:
                ids = [group.create_task(client.submit_job("a", n)) for n in range(JOBS)]
                await until(lambda: len(completed) == JOBS, 40)
        stats = await asking.get_stats()
    assert failed == []
    assert {job.id for job in completed} == {id.result() for id in ids}
    assert runs == dict.fromkeys(range(JOBS), 1)
    assert (stats.total, stats.completed_total, stats.dead) == (0, JOBS, 0)
    assert min(losing.lost[name] for name in ("submitJob", "claimJob", "completeJob")) > 0
