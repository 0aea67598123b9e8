"""taskiq on Redis streams.

Of taskiq-redis' brokers it is the one with acknowledgements, which its README names for "cases when data durability
is required": with the list broker, jobs that a worker holds are lost with the worker. There is no result backend, as
no result is wanted, and the worker does not check parameters against annotations (`--no-parse`), which PgQueuer, Huey
and osqueue without a registry do not, either. hiredis is what redis-py names for speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvloop
from taskiq import AsyncTaskiqDecoratedTask
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from .asyncio_callers import submit_by_callers
from .redis_server import redis_server
from .system import CALLERS, CONCURRENCY, JOB_TYPE, Mark, Service


def _broker(url: str) -> RedisStreamBroker:
    # A connection for each caller and for each acknowledgement, and one to read: else they would wait for each other.
    return RedisStreamBroker(url, max_connection_pool_size=max(CALLERS, CONCURRENCY) + 1)


class TaskiqProducer:
    """Submits through one broker."""

    def __init__(self, noop: AsyncTaskiqDecoratedTask[[str], Coroutine[Any, Any, None]]) -> None:
        self._noop = noop

    async def bulk(self, payloads: Sequence[str]) -> None:
        """Submit by callers: there is no call for many."""
        await self.callers(payloads)

    async def callers(self, payloads: Sequence[str]) -> None:
        """Submit one job a call."""
        await submit_by_callers(self.one, payloads)

    async def one(self, payload: str) -> None:
        """Submit a job."""
        await self._noop.kiq(payload)


class TaskiqOnRedis:
    """taskiq on a server of its own."""

    @contextlib.asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[Service]:
        """Run a server on which the workers' group is declared: it sees only what comes after that."""
        async with redis_server(folder) as service:
            broker = _broker(service.url)
            await broker.startup()
            await broker.shutdown()
            yield service

    @contextlib.asynccontextmanager
    async def producer(self, url: str) -> AsyncIterator[TaskiqProducer]:
        """Open a broker."""
        broker = _broker(url)

        @broker.task(task_name=JOB_TYPE)
        async def noop(payload: str) -> None:
            """Done by the worker."""

        await broker.startup()
        try:
            yield TaskiqProducer(noop)
        finally:
            await broker.shutdown()

    def work(self, url: str, mark: Mark) -> None:
        """Run a worker as a process of `taskiq worker --workers 1 --max-async-tasks 100` does: on uvloop."""
        uvloop.run(self._work(url, mark))

    async def _work(self, url: str, mark: Mark) -> None:
        broker = _broker(url)

        @broker.task(task_name=JOB_TYPE)
        async def noop(payload: str) -> None:
            mark(payload)

        await run_receiver_task(broker, max_async_tasks=CONCURRENCY, validate_params=False, run_startup=True)
