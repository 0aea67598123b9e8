"""The client: submits, claims, and looks after jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

from msgspec import Raw

from osqueue_storage import StorageBackend

from . import batches, models, operations
from .calls import Calls
from .chance import Chance
from .discovery import Discovery
from .entries import Leases, NewJobs, leases, new_jobs
from .errors import BatchError, OsqueueError, TransportConfigError
from .job import Job
from .joining import Joining
from .listing import list_page, require_page
from .models import LIST_LIMIT, DeadJobList, JobInfo, JobList, JobStatus, QueueStats
from .registry import JobType, PayloadSchemas, Registry
from .transports import Transport, TransportFactory, TransportName, factory_of
from .transports.tls import CaFile
from .waiting import wait_for_jobs

P = TypeVar("P")

_LONGEST_MESSAGE: Final = 10_000
"""Of an exception, in characters: a report that is too large for the broker would never be taken."""


class OsqueueClient:
    """A client of one queue, on one event loop.

        async with OsqueueClient("http://127.0.0.1:8080", registry={"email:send": SendEmail}) as client:
            job_id = await client.submit_job("email:send", SendEmail(to="a@example.com"))

    Give a broker's URL, a list of them, or `storage=` to find the leader through the store. `transport` is
    `"connect"`, `"rest"`, `"ws"`, a function that makes a transport to a URL, or an object with a transport's two
    methods. `timeout` (seconds) bounds each call, and may be set for a single one. `ca_file` (PEM) names the
    certificate authorities to trust for https in place of the system's. With `join_calls`, single submits,
    completions and heartbeats that begin in the same turn of the event loop go as one request, where the broker takes
    that.

    A call that meets no leader, or no answer, looks for the leader again and repeats its request until its time is
    up. A change whose answer was lost is repeated where the broker knows request ids, which does it only once;
    elsewhere it is not. What is raised then is the last failure, a `TransportConnectionError` for one; its `outcome`
    tells whether any of the attempts may have had an effect. The broker's refusals are raised at once.
    """

    def __init__(
        self,
        broker_url: str | Sequence[str] | None = None,
        *,
        registry: Registry | None = None,
        transport: TransportName | TransportFactory | Transport = "connect",
        storage: StorageBackend | None = None,
        timeout: float = 30.0,
        ca_file: CaFile | None = None,
        join_calls: bool = True,
        _chance: Chance | None = None,
    ) -> None:
        self._schemas = PayloadSchemas(registry)
        if isinstance(transport, str) or callable(transport):
            make_transport = factory_of(transport, ca_file)
            discovery = Discovery(broker_url, storage)
            uses_tls = discovery.uses_tls
            self._calls = Calls((discovery, make_transport), timeout, _chance or Chance())
        else:
            uses_tls = False
            self._calls = Calls(transport, timeout, _chance or Chance())
        if ca_file is not None and not uses_tls:
            raise TransportConfigError("ca_file= is for https: give the broker's URL as https://…")
        self._joining: Calls | Joining = Joining(self._calls) if join_calls else self._calls

    @property
    def registry(self) -> Registry | None:
        """The job types that this client knows, as they were when it was made; None if it takes any."""
        return self._schemas.registry

    @property
    def features(self) -> frozenset[str]:
        """What the broker adds to the old protocol; empty before `connect()`.

        After that it is learnt again with each new connection, before anything else is asked there.
        """
        return self._calls.features

    async def connect(self) -> None:
        """Find the broker and ask it once. Not needed: the first call does it, too."""
        await self._calls.connect()

    async def reconnect(self) -> None:
        """Drop the connection (calls under way keep it to their end), find the broker again, and ask it once."""
        await self._calls.reconnect()

    async def aclose(self) -> None:
        """Give back the connection; no call after it. Safe to call twice.

        Calls under way end at once in a `TransportConnectionError`.
        """
        await self._calls.aclose()

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
        return (await self._joining.call(operations.SUBMIT_JOB, request, timeout)).job_id

    async def submit_jobs(
        self, jobs: NewJobs, *, max_attempts: int | None = None, timeout: float | None = None
    ) -> list[str]:
        """Add many jobs, pairs of a type and a payload; return their ids in order, once all are durable in the store.

            ids = await client.submit_jobs([("email:send", {"to": "a@example.com"}), ("email:send", {"to": "b@…"})])

        `(type, payload, max_attempts)` sets the attempts of one job, in place of those of the call. They go in requests
        of at most 1,000 jobs and 750 KB (of fewer where the broker takes less), one after another, so that they are
        claimed in this order; `timeout` bounds each. Raises `PayloadValidationError`, or `BrokerProtocolError` for what
        is no such pair, before anything is sent; the message begins with the entry's place, as in `jobs[17]: `. What
        there is no room for is not added, nor is anything behind it: a `BatchError` then has for each job its id or its
        error. Where none was answered, the error is raised. To a broker without the feature `batch` each job is sent
        alone, 16 at a time.
        """
        results = await batches.submit(self._calls, new_jobs(jobs, self._schemas, max_attempts), timeout)
        errors = [result for result in results if isinstance(result, OsqueueError)]
        if errors:
            count = f"{len(errors):,} of {len(results):,} jobs were not added"
            raise BatchError(f"{count}; of the first: {errors[0].tag}: {errors[0].message}", results=results)
        return [result for result in results if isinstance(result, str)]

    # Workers

    async def claim_job(
        self,
        worker_id: str,
        types: Sequence[str] | None = None,
        *,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> Job | None:
        """Lease the oldest claimable job of these types (any without), or return None when there is none.

        With `wait` (seconds, as many as you like) it waits for a job to come, and is answered by the commit that makes
        one claimable; `timeout` begins when the wait is over, so that without any broker the call raises only after
        `wait + timeout`. A broker without the feature `wait` answers at once. A call that is cancelled gives up its
        place: the broker sees its connection end, or is told.
        """
        request = models.ClaimJob(worker_id=worker_id, types=_wanted(types))
        claimed = await wait_for_jobs(
            self._calls,
            operations.CLAIM_JOB,
            request,
            wait,
            timeout,
            has_jobs=lambda given: bool(given.job_id),
        )
        return Job.claimed(claimed, self._schemas) if claimed.job_id else None

    async def claim_jobs(
        self,
        worker_id: str,
        types: Sequence[str] | None = None,
        *,
        limit: int,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> list[Job]:
        """Lease the oldest claimable jobs, up to `limit` (1 to 1,000) and about 1 MiB of them.

        With `wait` it waits for the first that come, as `claim_job` does: fewer than `limit` are no reason to wait,
        and without any broker it raises only after `wait + timeout`.
        Of a broker without the feature `batch` jobs are claimed one by one, without waiting.
        """
        claimed = await batches.claim(self._calls, worker_id, _wanted(types), limit, wait, timeout)
        return [Job.claimed(job, self._schemas) for job in claimed]

    async def heartbeat(
        self, job_id: str, worker_id: str, *, lease_token: str | None = None, timeout: float | None = None
    ) -> None:
        """Keep a lease. Raises `LeaseLostError` or `JobNotFoundError` when it is lost: stop the work then.

        With the `lease_token` of the claimed `Job` it is that very lease, here as in the two calls that end it;
        without, the one that the worker has now.
        """
        request = models.LeasedJob(job_id=job_id, worker_id=worker_id, lease_token=lease_token)
        await self._joining.call(operations.HEARTBEAT, request, timeout)

    async def heartbeat_jobs(
        self, jobs: Leases, worker_id: str, *, timeout: float | None = None
    ) -> list[OsqueueError | None]:
        """Keep many leases of one worker; return for each None, or the error that `heartbeat` would raise.

        Nothing is raised for a single lease: look at what is returned.

            errors = await client.heartbeat_jobs(jobs, "w1")
            lost = [job for job, error in zip(jobs, errors) if error is not None]

        They go in requests of at most 1,000, each bounded by `timeout`; to a broker without the feature `batch` each is
        sent alone, 64 at a time. Where none was answered, the error is raised. Behind a request of many that found no
        broker, and behind 64 of one, nothing is sent: those leases have an error with `outcome` `not_applied`. Raises
        `BrokerProtocolError` for what is neither a `Job` nor a pair of its id and its lease token, before anything is
        sent.
        """
        return await batches.heartbeat(self._calls, worker_id, leases(jobs), timeout)

    async def complete_job(
        self, job_id: str, worker_id: str, *, lease_token: str | None = None, timeout: float | None = None
    ) -> None:
        """End a job as done. Raises `LeaseLostError` or `JobNotFoundError` when the lease was lost."""
        request = models.LeasedChange(job_id=job_id, worker_id=worker_id, lease_token=lease_token)
        await self._joining.call(operations.COMPLETE_JOB, request, timeout)

    async def complete_jobs(
        self, jobs: Leases, worker_id: str, *, timeout: float | None = None
    ) -> list[OsqueueError | None]:
        """End many jobs of one worker as done; return for each None, or the error that `complete_job` would raise.

        Nothing is raised for a single job: look at what is returned. Sent as `heartbeat_jobs` sends them.
        """
        return await batches.complete(self._calls, worker_id, leases(jobs), timeout)

    async def fail_job(
        self,
        job_id: str,
        worker_id: str,
        error: models.JobError | BaseException,
        *,
        retry: bool = True,
        lease_token: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """End an attempt as failed: with `retry` the job may be claimed again while attempts are left.

        Of an exception's message the first 10,000 characters are kept.
        """
        if isinstance(error, BaseException):
            error = _job_error(error)
        request = models.FailJob(
            job_id=job_id, worker_id=worker_id, error=error, retry=retry, lease_token=lease_token
        )
        await self._calls.call(operations.FAIL_JOB, request, timeout)

    # Looking after the queue

    async def get_stats(self, *, timeout: float | None = None) -> QueueStats:
        """Count the queue's jobs."""
        return await self._calls.call(operations.GET_STATS, models.Empty(), timeout)

    async def list_jobs(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        type: str | None = None,
        status: JobStatus | None = None,
        timeout: float | None = None,
    ) -> JobList:
        """List a page of live jobs in the order of claims: those of a type (`""`: untyped), of a status, or all.

        At most `limit` (1 to 1,000, which is the default) after `cursor`, the `next_cursor` of the page before. A
        broker without the feature `pages` answers all of them, whatever the `limit`; they are filtered here, and a
        `cursor` raises `BrokerProtocolError`.
        """
        request = models.ListJobs(limit=limit, cursor=cursor, type=type, status=status)
        return await list_page(self._calls, request, timeout)

    async def iter_jobs(
        self,
        *,
        type: str | None = None,
        status: JobStatus | None = None,
        page: int = LIST_LIMIT,
        timeout: float | None = None,
    ) -> AsyncIterator[JobInfo]:
        """Yield all live jobs as `list_jobs` lists them, `page` (1 to 1,000) in a request, each bounded by `timeout`.

        What comes or goes meanwhile may be among them or not.
        """
        require_page(page)
        cursor: str | None = None
        while True:
            found = await self.list_jobs(limit=page, cursor=cursor, type=type, status=status, timeout=timeout)
            for job in found.jobs:
                yield job
            cursor = found.next_cursor
            if cursor is None:
                return

    async def list_dead(
        self, *, limit: int | None = None, cursor: str | None = None, timeout: float | None = None
    ) -> DeadJobList:
        """List dead jobs, oldest first: at most `limit` (1 to 1000, 100 by default) after `cursor`."""
        return await self._calls.call(
            operations.LIST_DEAD, models.ListDead(limit=limit, cursor=cursor), timeout
        )

    async def requeue_dead(self, job_id: str, *, timeout: float | None = None) -> None:
        """Put a dead job back at the end of the queue, its attempts at 0."""
        await self._calls.call(operations.REQUEUE_DEAD, models.DeadJobRef(job_id=job_id), timeout)

    async def delete_dead(self, job_id: str, *, timeout: float | None = None) -> None:
        """Delete a dead job for good."""
        await self._calls.call(operations.DELETE_DEAD, models.DeadJobRef(job_id=job_id), timeout)


def _wanted(types: Sequence[str] | None) -> tuple[str, ...] | None:
    return (types,) if isinstance(types, str) else tuple(types or ()) or None


def _job_error(error: BaseException) -> models.JobError:
    message = str(error)[:_LONGEST_MESSAGE].encode(errors="replace").decode()
    return models.JobError(type=type(error).__name__, message=message)
