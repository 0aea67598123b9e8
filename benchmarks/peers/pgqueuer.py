"""PgQueuer on PostgreSQL.

Settings are those of its guide "Performance Tuning" and of its benchmarks: asyncpg (there 1.7 times psycopg), a pool
for producers and a single connection for the worker, `pgq autovac` after the installation, the durable tables (its
default), uvloop, and the largest batch that it allows for 100 jobs at once (`max_concurrent_tasks` must be at least
twice `batch_size`).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import asyncpg  # type: ignore[import-untyped]  # it has no types
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from .asyncio_callers import submit_by_callers
from .postgres_server import postgres_server
from .system import BATCH, CONCURRENCY, JOB_TYPE, Mark, Service

_CONNECTIONS: Final = 20
"""Of the producers' pool, as in the guide."""


class PgQueuerProducer:
    """Submits through one pool."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def bulk(self, payloads: Sequence[str]) -> None:
        """Submit `BATCH` jobs a call."""
        for start in range(0, len(payloads), BATCH):
            part = [payload.encode() for payload in payloads[start : start + BATCH]]
            await self._queries.enqueue([JOB_TYPE] * len(part), [*part], [0] * len(part))

    async def callers(self, payloads: Sequence[str]) -> None:
        """Submit one job a call."""
        await submit_by_callers(self.one, payloads)

    async def one(self, payload: str) -> None:
        """Submit a job."""
        await self._queries.enqueue(JOB_TYPE, payload.encode())


class PgQueuerOnPostgres:
    """PgQueuer on a server of its own."""

    @contextlib.asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[Service]:
        """Run a server in which PgQueuer is installed."""
        async with postgres_server(folder) as service:
            connection = await asyncpg.connect(service.url)
            queries = Queries(AsyncpgDriver(connection))
            await queries.install()
            await queries.optimize_autovacuum()
            await connection.close()
            yield service

    @contextlib.asynccontextmanager
    async def producer(self, url: str) -> AsyncIterator[PgQueuerProducer]:
        """Open a pool."""
        async with asyncpg.create_pool(url, min_size=_CONNECTIONS, max_size=_CONNECTIONS) as pool:
            yield PgQueuerProducer(Queries(AsyncpgPoolDriver(pool)))

    def work(self, url: str, mark: Mark) -> None:
        """Run a worker on uvloop, as `pgq run` does."""
        uvloop.run(self._work(url, mark))

    async def _work(self, url: str, mark: Mark) -> None:
        connection = await asyncpg.connect(url)
        # The queue was filled a moment ago: of a table in use autovacuum, which looks once a minute, has statistics.
        await connection.execute("ANALYZE")
        worker = PgQueuer(AsyncpgDriver(connection))

        @worker.entrypoint(JOB_TYPE)
        async def noop(job: Job) -> None:
            mark((job.payload or b"").decode())

        await worker.run(batch_size=CONCURRENCY // 2, max_concurrent_tasks=CONCURRENCY)
