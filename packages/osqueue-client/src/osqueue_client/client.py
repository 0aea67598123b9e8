"""The client: submits, claims, and looks after jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

from msgspec import Raw, UnsetType

from osqueue_storage import StorageBackend

from . import models, operations
from .discovery import Discovery
from .errors import BrokerLeadershipError, ConfigError, DiscoveryError, OsqueueError, TransportConnectionError
from .job import Job
from .link import Link
from .models import DeadJobList, JobList, Model, QueueStats
from .operations import Operation
from .registry import JobType, PayloadSchemas, Registry
from .transports import Transport, TransportName, checked_name, open_transport
from .wire_json import checked_request

P = TypeVar("P")
Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

_LONGEST_MESSAGE: Final = 10_000
"""Of an exception, in characters: a report that is too large for the broker would never be taken."""


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
        self._name = checked_name(transport) if isinstance(transport, str) else None
        self._link = None if isinstance(transport, str) else Link(transport)
        self._discovery = Discovery(broker_url, storage) if isinstance(transport, str) else None
        self._features: frozenset[str] | None = None
        self._opening = asyncio.Lock()
        self._is_closed = False

    @property
    def features(self) -> frozenset[str]:
        """What the broker adds to the old protocol, as learnt by `connect()`; empty before."""
        return self._features or frozenset()

    async def connect(self) -> None:
        """Find the broker and ask it once. Not needed: the first call does it, too."""
        stats = await self.get_stats()
        self._features = frozenset(stats.features)

    async def reconnect(self) -> None:
        """Drop the connection (calls under way keep it to their end), find the broker again, and ask it once."""
        if self._discovery is not None:
            await self._drop(self._link)
        await self.connect()

    async def aclose(self) -> None:
        """Give back the connection; no call after it. Safe to call twice."""
        self._is_closed = True
        link, self._link = self._link, None
        if link is not None:
            await link.transport.aclose()

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
        wanted = (types,) if isinstance(types, str) else tuple(types or ())
        request = models.ClaimJob(worker_id=worker_id, types=wanted or None)
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
        """End an attempt as failed: with `retry` the job may be claimed again while attempts are left.

        Of an exception's message the first 10,000 characters are kept.
        """
        if isinstance(error, BaseException):
            error = _job_error(error)
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
        request = checked_request(operation, request)
        seconds = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._ask(operation, request, seconds)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TransportConnectionError(
                f"{operation.name}: no answer within {seconds:g} s", outcome="unknown"
            ) from error

    async def _ask(self, operation: Operation[Req, Res], request: Req, seconds: float) -> Res:
        """Ask the broker; where the request surely had no effect, look for the leader again, once."""
        link = await self._open(seconds)
        try:
            return await link.call(operation, request)
        except (BrokerLeadershipError, TransportConnectionError) as error:
            if error.outcome != "not_applied" or self._discovery is None:
                raise
            leader = error.leader if isinstance(error, BrokerLeadershipError) else None
            await self._drop(link)
            link = await self._open(seconds, leader, after=error)
            return await link.call(operation, request)

    async def _open(
        self, seconds: float, leader: str | None = None, *, after: Exception | None = None
    ) -> Link:
        async with self._opening:
            self._require_open()
            if self._link is not None:
                return self._link
            # A transport of the user's is never dropped: without a link there is a name and a discovery.
            assert self._discovery is not None
            assert self._name is not None
            urls = (self._discovery.url_of(leader),) if leader else await self._discovery.candidates()
            link = await self._first_that_answers(self._name, urls, seconds, after)
            if self._is_closed:  # while it was opened
                await link.retire()
            self._require_open()
            self._link = link
            return link

    def _require_open(self) -> None:
        if self._is_closed:
            raise ConfigError("the client is closed")

    async def _first_that_answers(
        self, name: TransportName, urls: Sequence[str], seconds: float, after: Exception | None
    ) -> Link:
        if len(urls) == 1:
            return Link(open_transport(name, urls[0]))
        for url in urls:
            link = Link(open_transport(name, url))
            has_answered = False
            try:
                # A part of the call's time for each, so that a silent one leaves some for those after it.
                async with asyncio.timeout(seconds / (len(urls) + 1)):
                    await link.call(operations.GET_STATS, models.Empty())
                has_answered = True
            except (TimeoutError, OsqueueError):
                continue  # another may lead: what is wrong here is no matter
            finally:
                if not has_answered:
                    await link.retire()
            return link
        raise DiscoveryError(f"none of the {len(urls)} brokers leads the queue or can be reached") from after

    async def _drop(self, link: Link | None) -> None:
        if link is not None and link is self._link:
            self._link = None
            await link.retire()


def _job_error(error: BaseException) -> models.JobError:
    message = str(error)[:_LONGEST_MESSAGE].encode(errors="replace").decode()
    return models.JobError(type=type(error).__name__, message=message)
