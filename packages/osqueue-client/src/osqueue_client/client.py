"""The client: submits, claims, and looks after jobs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

from msgspec import Raw, UnsetType

from osqueue_storage import StorageBackend

from . import models, operations
from .calls import Calls
from .chance import Chance
from .discovery import Discovery
from .errors import TransportConfigError
from .job import Job
from .models import DeadJobList, JobList, QueueStats
from .registry import JobType, PayloadSchemas, Registry
from .transports import Transport, TransportFactory, TransportName, factory_of
from .transports.tls import CaFile

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
    certificate authorities to trust for https in place of the system's.

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
        return (await self._calls.call(operations.SUBMIT_JOB, request, timeout)).job_id

    # Workers

    async def claim_job(
        self, worker_id: str, types: Sequence[str] | None = None, *, timeout: float | None = None
    ) -> Job | None:
        """Lease the oldest claimable job of these types (any without), or return None when there is none."""
        wanted = (types,) if isinstance(types, str) else tuple(types or ())
        request = models.ClaimJob(worker_id=worker_id, types=wanted or None)
        claimed = await self._calls.call(operations.CLAIM_JOB, request, timeout)
        if not claimed.job_id:
            return None
        text = None if isinstance(claimed.payload, UnsetType) else bytes(claimed.payload)
        return Job(
            claimed.job_id, claimed.type or None, text, claimed.attempt, claimed.lease_token, self._schemas
        )

    async def heartbeat(
        self, job_id: str, worker_id: str, *, lease_token: str | None = None, timeout: float | None = None
    ) -> None:
        """Keep a lease. Raises `LeaseLostError` or `JobNotFoundError` when it is lost: stop the work then.

        With the `lease_token` of the claimed `Job` it is that very lease, here as in the two calls that end it;
        without, the one that the worker has now.
        """
        request = models.LeasedJob(job_id=job_id, worker_id=worker_id, lease_token=lease_token)
        await self._calls.call(operations.HEARTBEAT, request, timeout)

    async def complete_job(
        self, job_id: str, worker_id: str, *, lease_token: str | None = None, timeout: float | None = None
    ) -> None:
        """End a job as done. Raises `LeaseLostError` or `JobNotFoundError` when the lease was lost."""
        request = models.LeasedChange(job_id=job_id, worker_id=worker_id, lease_token=lease_token)
        await self._calls.call(operations.COMPLETE_JOB, request, timeout)

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

    async def list_jobs(self, *, timeout: float | None = None) -> JobList:
        """List the live jobs in the order of claims."""
        return await self._calls.call(operations.LIST_JOBS, models.Empty(), timeout)

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


def _job_error(error: BaseException) -> models.JobError:
    message = str(error)[:_LONGEST_MESSAGE].encode(errors="replace").decode()
    return models.JobError(type=type(error).__name__, message=message)
