"""Huey on Redis.

A worker of threads, its default; it waits in Redis for jobs (`blocking`, the default). It stores no results, as none
are wanted, and has no periodic jobs. A job is off the queue when a worker takes it: with the worker it is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huey import RedisHuey  # type: ignore[import-untyped]  # it has no types

from .redis_server import redis_server
from .system import CALLERS, CONCURRENCY, JOB_TYPE, Mark, Service


def _queue(url: str) -> RedisHuey:
    # redis-py stops at 100 connections, which are all taken by workers that wait: the scheduler needs one, too.
    return RedisHuey(JOB_TYPE, url=f"{url}?max_connections={max(CALLERS, CONCURRENCY) + 2}", results=False)


def _task(queue: RedisHuey, mark: Mark) -> Callable[[str], object]:
    """Return the job type of both sides: Huey knows it by its name and by the module of the function."""

    def noop(payload: str) -> None:
        mark(payload)

    task: Callable[[str], object] = queue.task(name=JOB_TYPE)(noop)
    return task


class HueyProducer:
    """Submits from threads: it has no asyncio."""

    def __init__(self, noop: Callable[[str], object], threads: ThreadPoolExecutor) -> None:
        self._noop = noop
        self._threads = threads

    async def bulk(self, payloads: Sequence[str]) -> None:
        """Submit by callers: there is no call for many."""
        await self.callers(payloads)

    async def callers(self, payloads: Sequence[str]) -> None:
        """Submit one job a call."""
        loop = asyncio.get_running_loop()
        shares = (payloads[number::CALLERS] for number in range(CALLERS))
        await asyncio.gather(*(loop.run_in_executor(self._threads, self._submit, share) for share in shares))

    async def one(self, payload: str) -> None:
        """Submit a job."""
        self._noop(payload)

    def _submit(self, payloads: Sequence[str]) -> None:
        for payload in payloads:
            self._noop(payload)


class HueyOnRedis:
    """Huey on a server of its own."""

    @contextlib.asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[Service]:
        """Run a server."""
        async with redis_server(folder) as service:
            yield service

    @contextlib.asynccontextmanager
    async def producer(self, url: str) -> AsyncIterator[HueyProducer]:
        """Open a queue."""
        noop = _task(_queue(url), lambda _: None)
        with ThreadPoolExecutor(CALLERS) as threads:
            yield HueyProducer(noop, threads)

    def work(self, url: str, mark: Mark) -> None:
        """Run a worker as `huey_consumer --workers 100 --no-periodic` does."""
        queue = _queue(url)
        _task(queue, mark)
        queue.create_consumer(workers=CONCURRENCY, periodic=False).run()
