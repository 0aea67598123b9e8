"""The client: submits, claims, and looks after jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from msgspec import Raw, UnsetType

from osqueue_storage import StorageBackend

from . import models, operations
from .discovery import Discovery
from .errors import BrokerLeadershipError, ConfigError, DiscoveryError, TransportConnectionError
from .job import Job
from .models import DeadJobList, JobList, Model, QueueStats
from .operations import Operation
from .registry import JobType, PayloadSchemas, Registry
from .transports import Transport, TransportName, open_transport

P = TypeVar("P")
Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)


class OsqueueClient:
    """A client of one queue.

        async with OsqueueClient("http://127.0.0.1:8080", registry={"email:send": SendEmail}) as client:
            job_id = await client.submit_job("email:send", SendEmail(to="a@example.com"))

    Give a broker's URL, a list of them, or `storage=` to find the leader through the store. `transport` is
    `"connect"`, `"rest"`, `"ws"`, or an object with a transport's two methods. `timeout` (seconds) bounds each
    call, and may be set for a single one.

    Every call raises `TransportConnectionError` when no answer came (its `outcome` tells whether the request
    may have had an effect), `BrokerLeadershipError` when no leader could be found at the broker's word, and
    the broker's own errors.
    """

    def __init__(
        self,
        broker_url: str | Sequence[str] | None = None,
        *,
        registry: Registry | None = None,
        transport: TransportName | Transport = "connect",
        storage: StorageBackend | None = None,
        timeout: float = 30.0,
    ) -> None:
        if timeout <= 0:
            raise ConfigError(f"timeout must be more than 0 s, not {timeout!r}")
        self._schemas = PayloadSchemas(registry)
        self._timeout = timeout
        self._name: TransportName | None = transport if isinstance(transport, str) else None
        self._transport: Transport | None = None if isinstance(transport, str) else transport
        self._discovery = Discovery(broker_url, storage) if self._transport is None else None
        self._features: frozenset[str] | None = None
        self._connecting = asyncio.Lock()

    @property
    def features(self) -> frozenset[str]:
        """What the broker adds to the old protocol, as learnt by `connect()`; empty before."""
        return self._features or frozenset()

    async def connect(self) -> None:
        """Find the broker and ask it once. Not needed: the first call does it, too."""
        stats = await self.get_stats()
        self._features = frozenset(stats.features)

    async def reconnect(self) -> None:
        """Drop the connection, find the broker again, and ask it once."""
        if self._discovery is not None:
            await self._drop(self._transport)
        await self.connect()

    async def aclose(self) -> None:
        """Give back the connection. Safe to call twice."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # Producers

    @overload
    async def submit_job(
        self, type: JobType[P], payload: P, *, max_attempts: int | None = None, timeout: float | None = None
    ) -> str: ...
    @overload
    async def submit_job(
        self,
        type: str | None,
        payload: object,
        *,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> str: ...
    async def submit_job(
        self,
        type: str | JobType[Any] | None,
        payload: object,
        *,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> str:
        """Add a job; return its id once it is durable in the store.

        `payload` is an instance of the type's model, or plain data that it validates. `max_attempts` counts
        the first attempt, too; without it the broker's default holds (3). Raises `PayloadValidationError`
        before anything is sent.
        """
        request = models.SubmitJob(
            payload=Raw(self._schemas.to_json(type, payload)),
            type=type.name if isinstance(type, JobType) else type,
            max_attempts=max_attempts,
        )
        return (await self._call(operations.SUBMIT_JOB, request, timeout)).job_id

    # Workers

    async def claim_job(
        self, worker_id: str, types: Sequence[str] | None = None, *, timeout: float | None = None
    ) -> Job | None:
        """Lease the oldest claimable job of these types (any without), or return None when there is none."""
        request = models.ClaimJob(worker_id=worker_id, types=tuple(types) if types else None)
        claimed = await self._call(operations.CLAIM_JOB, request, timeout)
        if not claimed.job_id:
            return None
        text = None if isinstance(claimed.payload, UnsetType) else bytes(claimed.payload)
        return Job(claimed.job_id, claimed.type or None, text, claimed.attempt, self._schemas)

    async def heartbeat(self, job_id: str, worker_id: str, *, timeout: float | None = None) -> None:
        """Keep a lease. Raises `LeaseLostError` or `JobNotFoundError` when it is lost: stop the work then."""
        request = models.LeasedJob(job_id=job_id, worker_id=worker_id)
        await self._call(operations.HEARTBEAT, request, timeout)

    async def complete_job(self, job_id: str, worker_id: str, *, timeout: float | None = None) -> None:
        """End a job as done. Raises `LeaseLostError` or `JobNotFoundError` when the lease was lost."""
        request = models.LeasedJob(job_id=job_id, worker_id=worker_id)
        await self._call(operations.COMPLETE_JOB, request, timeout)

    async def fail_job(
        self,
        job_id: str,
        worker_id: str,
        error: models.JobError | BaseException,
        *,
        retry: bool = True,
        timeout: float | None = None,
    ) -> None:
        """End an attempt as failed: with `retry` the job may be claimed again while attempts are left."""
        if isinstance(error, BaseException):
            error = models.JobError(type=type(error).__name__, message=str(error))
        request = models.FailJob(job_id=job_id, worker_id=worker_id, error=error, retry=retry)
        await self._call(operations.FAIL_JOB, request, timeout)

    # Looking after the queue

    async def get_stats(self, *, timeout: float | None = None) -> QueueStats:
        """Count the queue's jobs."""
        return await self._call(operations.GET_STATS, models.Empty(), timeout)

    async def list_jobs(self, *, timeout: float | None = None) -> JobList:
        """List the live jobs in the order of claims."""
        return await self._call(operations.LIST_JOBS, models.Empty(), timeout)

    async def list_dead(
        self, *, limit: int | None = None, cursor: str | None = None, timeout: float | None = None
    ) -> DeadJobList:
        """List dead jobs, oldest first: at most `limit` (1 to 1000, 100 by default) after `cursor`."""
        return await self._call(operations.LIST_DEAD, models.ListDead(limit=limit, cursor=cursor), timeout)

    async def requeue_dead(self, job_id: str, *, timeout: float | None = None) -> None:
        """Put a dead job back at the end of the queue, its attempts at 0."""
        await self._call(operations.REQUEUE_DEAD, models.DeadJobRef(job_id=job_id), timeout)

    async def delete_dead(self, job_id: str, *, timeout: float | None = None) -> None:
        """Delete a dead job for good."""
        await self._call(operations.DELETE_DEAD, models.DeadJobRef(job_id=job_id), timeout)

    # How a call goes

    async def _call(self, operation: Operation[Req, Res], request: Req, timeout: float | None) -> Res:
        seconds = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(seconds):
                return await self._ask(operation, request)
        except TimeoutError as error:
            raise TransportConnectionError(
                f"{operation.name}: no answer within {seconds:g} s", outcome="unknown"
            ) from error

    async def _ask(self, operation: Operation[Req, Res], request: Req) -> Res:
        """Ask the broker; where the request surely had no effect, look for the leader again, once."""
        transport = await self._open()
        try:
            return await transport.call(operation, request)
        except (BrokerLeadershipError, TransportConnectionError) as error:
            if error.outcome != "not_applied" or self._discovery is None:
                raise
            await self._drop(transport)
            leader = error.leader if isinstance(error, BrokerLeadershipError) else None
            transport = await self._open(leader, after=error)
            return await transport.call(operation, request)

    async def _open(self, leader: str | None = None, *, after: Exception | None = None) -> Transport:
        async with self._connecting:
            if self._transport is None:
                if self._discovery is None or self._name is None:
                    raise ConfigError("the client is closed, and its transport with it")
                urls = (leader,) if leader else await self._discovery.candidates()
                self._transport = await self._first_that_answers(self._name, urls, after)
            return self._transport

    async def _first_that_answers(
        self, name: TransportName, urls: Sequence[str], after: Exception | None
    ) -> Transport:
        if len(urls) == 1:
            return open_transport(name, urls[0])
        for url in urls:
            transport = open_transport(name, url)
            try:
                await transport.call(operations.GET_STATS, models.Empty())
            except (BrokerLeadershipError, TransportConnectionError):
                await transport.aclose()
                continue
            return transport
        raise DiscoveryError(f"none of the {len(urls)} brokers leads the queue or can be reached") from after

    async def _drop(self, transport: Transport | None) -> None:
        if transport is not None and transport is self._transport:
            self._transport = None
            await transport.aclose()
