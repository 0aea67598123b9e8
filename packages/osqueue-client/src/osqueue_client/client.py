"""The client: submits, claims, and looks after jobs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

from msgspec import Raw, UnsetType

from osqueue_storage import StorageBackend

from . import models, operations
from .discovery import Discovery
from .errors import (
    BrokerLeadershipError,
    BrokerProtocolError,
    ConfigError,
    DiscoveryError,
    OsqueueError,
    TransportConfigError,
    TransportConnectionError,
)
from .job import Job
from .link import Link
from .models import DeadJobList, JobList, Model, QueueStats
from .operations import Operation
from .registry import JobType, PayloadSchemas, Registry
from .transports import Transport, TransportFactory, TransportName, factory_of
from .transports.connection_errors import shown
from .transports.tls import CaFile
from .wire_json import checked_request

P = TypeVar("P")
Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

_LONGEST_MESSAGE: Final = 10_000
"""Of an exception, in characters: a report that is too large for the broker would never be taken."""

_CAPITAL: Final = re.compile("[A-Z]")


@dataclass(slots=True)
class _Attempt:
    """How far a call has come: what its time limit means hangs on it."""

    link: Link | None = None
    is_sent: bool = False


class OsqueueClient:
    """A client of one queue, on one event loop.

        async with OsqueueClient("http://127.0.0.1:8080", registry={"email:send": SendEmail}) as client:
            job_id = await client.submit_job("email:send", SendEmail(to="a@example.com"))

    Give a broker's URL, a list of them, or `storage=` to find the leader through the store. `transport` is
    `"connect"`, `"rest"`, `"ws"`, a function that makes a transport to a URL, or an object with a transport's two
    methods. `timeout` (seconds) bounds each call, and may be set for a single one. `ca_file` (PEM) names the
    certificate authorities to trust for https in place of the system's.

    Every call raises `TransportConnectionError` when no answer came (its `outcome` tells whether the request
    may have had an effect), `BrokerLeadershipError` when no leader could be found at the broker's word, and
    the broker's own errors.
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
    ) -> None:
        self._schemas = PayloadSchemas(registry)
        self._timeout = _checked_timeout(timeout)
        # Either a transport of the user's, which is never dropped, or a discovery and what makes transports.
        self._link: Link | None = None
        self._discovery: Discovery | None = None
        if isinstance(transport, str) or callable(transport):
            self._make_transport = factory_of(transport, ca_file)
            self._discovery = Discovery(broker_url, storage)
        else:
            self._link = Link(transport, "the broker")
        if ca_file is not None and not (self._discovery and self._discovery.uses_tls):
            raise TransportConfigError("ca_file= is for https: give the broker's URL as https://…")
        self._next_leader: str | None = None
        self._has_learnt = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._limits: set[asyncio.Timeout] = set()
        # Owned here, ended by aclose(): to close an old connection takes none of a caller's time.
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def registry(self) -> Registry | None:
        """The job types that this client knows, as they were when it was made; None if it takes any."""
        return self._schemas.registry

    @property
    def features(self) -> frozenset[str]:
        """What the broker adds to the old protocol; empty before `connect()`.

        After that it is learnt again with each new connection, before anything else is asked there.
        """
        return (self._link.features if self._link else None) or frozenset()

    async def connect(self) -> None:
        """Find the broker and ask it once. Not needed: the first call does it, too."""
        await self.get_stats()
        self._has_learnt = True

    async def reconnect(self) -> None:
        """Drop the connection (calls under way keep it to their end), find the broker again, and ask it once."""
        self._require_loop()
        self._drop(self._link)
        await self.connect()

    async def aclose(self) -> None:
        """Give back the connection; no call after it. Safe to call twice.

        Calls under way end at once in a `TransportConnectionError`.
        """
        self._require_loop()
        self._is_closed = True
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        link, self._link = self._link, None
        if link is not None:
            self._retire(link)
        await asyncio.gather(*self._retiring)

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
        request = _checked(operation, request)
        seconds = self._timeout if timeout is None else _checked_timeout(timeout)
        self._require_loop()
        attempt = _Attempt()
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                self._limits.add(limit)
                return await self._ask(operation, request, seconds, attempt)
        except TimeoutError as error:
            if not limit.expired():
                raise
            # A leader that is silent for good is not asked for ever: the next call looks again.
            self._drop(attempt.link)
            raise TransportConnectionError(
                f"{operation.name}: {self._why_ended(attempt, seconds)}",
                outcome="unknown" if attempt.is_sent else "not_applied",
            ) from error
        finally:
            self._limits.discard(limit)

    def _why_ended(self, attempt: _Attempt, seconds: float) -> str:
        if self._is_closed:
            return "the client was closed during the call"
        if attempt.link is None:
            return f"no broker was found within {seconds:g} s"
        return f"no answer from {attempt.link.address} within {seconds:g} s"

    async def _ask(
        self, operation: Operation[Req, Res], request: Req, seconds: float, attempt: _Attempt
    ) -> Res:
        """Ask the broker; where the request surely had no effect, look for the leader again, once."""
        try:
            return await self._ask_once(operation, request, seconds, attempt)
        except (BrokerLeadershipError, TransportConnectionError) as error:
            if error.outcome != "not_applied" or self._discovery is None:
                raise
            return await self._ask_once(operation, request, seconds, attempt, after=error)

    async def _ask_once(
        self,
        operation: Operation[Req, Res],
        request: Req,
        seconds: float,
        attempt: _Attempt,
        *,
        after: Exception | None = None,
    ) -> Res:
        attempt.link, attempt.is_sent = None, False
        link = attempt.link = await self._open(seconds, after)
        try:
            if self._has_learnt and link.features is None:
                await link.call(operations.GET_STATS, models.Empty())
            attempt.is_sent = True
            return await link.call(operation, request)
        except (BrokerLeadershipError, TransportConnectionError) as error:
            self._drop(link, error.leader if isinstance(error, BrokerLeadershipError) else None)
            if not attempt.is_sent:
                error.outcome = "not_applied"
            raise

    async def _open(self, seconds: float, after: Exception | None) -> Link:
        async with self._opening:
            self._require_open()
            if self._link is not None:
                return self._link
            # A transport of the user's is never dropped: without a link there is a discovery.
            assert self._discovery is not None
            leader, self._next_leader = self._next_leader, None
            urls = (self._discovery.url_of(leader),) if leader else await self._discovery.candidates()
            link = await self._first_that_answers(urls, seconds, after)
            if self._is_closed:  # while it was opened
                self._retire(link)
            self._require_open()
            self._link = link
            return link

    def _require_open(self) -> None:
        if self._is_closed:
            raise ConfigError("the client is closed", outcome="not_applied")

    def _require_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigError(
                "the client was used on another event loop: make one in each asyncio.run(), or a SyncOsqueueClient",
                outcome="not_applied",
            )

    async def _first_that_answers(self, urls: Sequence[str], seconds: float, after: Exception | None) -> Link:
        if len(urls) == 1:
            return self._link_to(urls[0])
        failures = []
        for url in urls:
            link = self._link_to(url)
            has_answered = False
            try:
                # A part of the call's time for each, so that a silent one leaves some for those after it.
                async with asyncio.timeout(seconds / (len(urls) + 1)):
                    await link.call(operations.GET_STATS, models.Empty())
                has_answered = True
                return link
            except TimeoutError:
                failures.append(f"{link.address} (no answer in time)")
            except OsqueueError as error:  # another may lead
                failures.append(f"{link.address} ({error.message})")
            finally:
                if not has_answered:
                    self._retire(link)
        raise DiscoveryError(
            f"none of the {len(urls)} brokers leads the queue or can be reached: {', '.join(failures)}"
        ) from after

    def _link_to(self, url: str) -> Link:
        return Link(self._make_transport(url), shown(url))

    def _drop(self, link: Link | None, leader: str | None = None) -> None:
        """Use a link no more: the next call finds another, at the `leader` where that is known."""
        if self._discovery is not None and link is not None and link is self._link:
            self._link, self._next_leader = None, leader
            self._retire(link)

    def _retire(self, link: Link) -> None:
        task = asyncio.get_running_loop().create_task(link.retire(), name="osqueue-retire")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def _checked_timeout(timeout: float) -> float:
    if not timeout > 0:  # so that NaN is refused, too
        raise ConfigError(f"timeout must be more than 0 s, not {timeout!r}", outcome="not_applied")
    return timeout


def _checked(operation: Operation[Req, Model], request: Req) -> Req:
    try:
        return checked_request(operation, request)
    except BrokerProtocolError as error:
        argument = _CAPITAL.sub(lambda found: f"_{found[0].lower()}", error.field or "")
        if argument != (error.field or ""):
            error.args = (f"{error.message} (argument {argument!r})",)
        raise


def _job_error(error: BaseException) -> models.JobError:
    message = str(error)[:_LONGEST_MESSAGE].encode(errors="replace").decode()
    return models.JobError(type=type(error).__name__, message=message)
