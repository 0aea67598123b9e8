"""osqueue: its broker on a folder, its client and its worker as they come."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import uvloop

from osqueue_client import OsqueueClient
from osqueue_worker import Worker

from .asyncio_callers import submit_by_callers
from .processes import running_module
from .system import BATCH, CONCURRENCY, JOB_TYPE, Mark, Service


class OsqueueProducer:
    """Submits through one client."""

    def __init__(self, client: OsqueueClient) -> None:
        self._client = client

    async def bulk(self, payloads: Sequence[str]) -> None:
        """Submit `BATCH` jobs a call, the most that one request takes."""
        for start in range(0, len(payloads), BATCH):
            await self._client.submit_jobs(
                [(JOB_TYPE, payload) for payload in payloads[start : start + BATCH]]
            )

    async def callers(self, payloads: Sequence[str]) -> None:
        """Submit one job a call."""
        await submit_by_callers(self.one, payloads)

    async def one(self, payload: str) -> None:
        """Submit a job."""
        await self._client.submit_job(JOB_TYPE, payload)


class Osqueue:
    """osqueue with the broker's store at a URL, without one in the folder that it is given."""

    def __init__(self, storage: str | None = None) -> None:
        self._storage = storage

    @contextlib.asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[Service]:
        """Run a broker."""
        storage = self._storage or f"file:{folder}"
        command = ("osqueue_broker", "--storage", storage, "--port", "0", "--log-level", "error")
        async with running_module(*command) as child:
            line = await child.line()
            yield Service("http://" + line.removeprefix("Broker listening on "), child.pid)

    @contextlib.asynccontextmanager
    async def producer(self, url: str) -> AsyncIterator[OsqueueProducer]:
        """Open a client."""
        async with OsqueueClient(url) as client:
            await client.connect()
            yield OsqueueProducer(client)

    def work(self, url: str, mark: Mark) -> None:
        """Run a worker on uvloop, as the peers' own commands do."""
        uvloop.run(self._work(url, mark))

    async def _work(self, url: str, mark: Mark) -> None:
        async def noop(payload: str) -> None:
            mark(payload)

        async with OsqueueClient(url) as client:
            await Worker(client=client, handlers={JOB_TYPE: noop}, concurrency=CONCURRENCY).run()
