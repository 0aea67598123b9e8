"""The client for programs that are not async: the async one, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from osqueue_storage import StorageBackend

from .client import OsqueueClient
from .entries import Leases, NewJobs, as_list
from .errors import ConfigError, OsqueueError
from .job import Job
from .listing import require_page
from .models import LIST_LIMIT, DeadJobList, JobError, JobInfo, JobList, JobStatus, QueueStats
from .registry import JobType, Registry
from .transports import TransportFactory, TransportName
from .transports.tls import CaFile

P = TypeVar("P")
R = TypeVar("R")


class _LoopThread:
    """An event loop that runs in a daemon thread, and the client that lives on it."""

    def __init__(self, make_client: Callable[[], OsqueueClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._calls: set[asyncio.Task[Any]] = set()
        self._starting = threading.Lock()
        self._is_ending = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="osqueue-client", daemon=True)
        self._thread.start()
        try:
            self.client = self.run(self._made(make_client))
        except BaseException:
            self._end_thread()
            raise

    @staticmethod
    async def _made(make_client: Callable[[], OsqueueClient]) -> OsqueueClient:
        return make_client()

    def run(self, call: Coroutine[Any, Any, R]) -> R:
        """Run a call on the loop and wait for it; what interrupts the wait cancels the call."""
        with self._starting:
            if self._is_ending:
                call.close()
                raise ConfigError("the client is closed", outcome="not_applied")
            future = asyncio.run_coroutine_threadsafe(self._kept(call), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _kept(self, call: Coroutine[Any, Any, R]) -> R:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            return await call
        finally:
            self._calls.discard(task)

    def end(self) -> None:
        """End what runs, and give back the client and the thread."""
        with self._starting:
            self._is_ending = True
        asyncio.run_coroutine_threadsafe(self._end_calls(), self._loop).result()
        self._end_thread()

    async def _end_calls(self) -> None:
        await self.client.aclose()
        # It has ended them; on a loop that has stopped before they know, their callers would wait for ever.
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncOsqueueClient:
    """`OsqueueClient` with blocking methods; each takes and raises what its async twin does.

        with SyncOsqueueClient("http://127.0.0.1:8080") as client:
            client.submit_job("email:send", {"to": "a@example.com"})

    May be used from many threads, and in one that runs an event loop (which it blocks). After a fork, the
    child opens connections of its own; the transport is REST by default, since that of Connect cannot where the
    parent has used it. `transport` may be a function that makes one, but no transport, which needs its loop.
    """

    def __init__(
        self,
        broker_url: str | Sequence[str] | None = None,
        *,
        registry: Registry | None = None,
        transport: TransportName | TransportFactory = "rest",
        storage: StorageBackend | None = None,
        timeout: float = 30.0,
        ca_file: CaFile | None = None,
        join_calls: bool = True,
    ) -> None:
        def make_client() -> OsqueueClient:
            return OsqueueClient(
                broker_url,
                registry=registry,
                transport=transport,
                storage=storage,
                timeout=timeout,
                ca_file=ca_file,
                join_calls=join_calls,
            )

        self._make_client = make_client
        self._opening = threading.Lock()
        self._is_closed = False
        self._thread: _LoopThread | None = _LoopThread(make_client)
        self._inherited: _LoopThread | None = None
        _clients.add(self)

    @property
    def registry(self) -> Registry | None:
        """See `OsqueueClient.registry`."""
        return self._open().client.registry

    @property
    def features(self) -> frozenset[str]:
        """See `OsqueueClient.features`."""
        return self._open().client.features

    def connect(self) -> None:
        """See `OsqueueClient.connect`."""
        self._run(lambda client: client.connect())

    def reconnect(self) -> None:
        """See `OsqueueClient.reconnect`."""
        self._run(lambda client: client.reconnect())

    def close(self) -> None:
        """Give back the connection and end the thread; calls under way in other threads end in an error.

        Safe to call twice.
        """
        with self._opening:
            self._is_closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def submit_job(
        self, type: JobType[P], payload: P, *, max_attempts: int | None = None, timeout: float | None = None
    ) -> str: ...
    @overload
    def submit_job(
        self,
        type: str | None,
        payload: object,
        *,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> str: ...
    def submit_job(
        self,
        type: str | JobType[Any] | None,
        payload: object,
        *,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> str:
        """See `OsqueueClient.submit_job`."""
        return self._run(
            lambda client: client.submit_job(type, payload, max_attempts=max_attempts, timeout=timeout)
        )

    def submit_jobs(
        self, jobs: NewJobs, *, max_attempts: int | None = None, timeout: float | None = None
    ) -> list[str]:
        """See `OsqueueClient.submit_jobs`."""
        given = as_list(jobs)  # here: what makes them may call this client
        return self._run(lambda client: client.submit_jobs(given, max_attempts=max_attempts, timeout=timeout))

    def claim_job(
        self,
        worker_id: str,
        types: Sequence[str] | None = None,
        *,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> Job | None:
        """See `OsqueueClient.claim_job`."""
        return self._run(lambda client: client.claim_job(worker_id, types, wait=wait, timeout=timeout))

    def claim_jobs(
        self,
        worker_id: str,
        types: Sequence[str] | None = None,
        *,
        limit: int,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> list[Job]:
        """See `OsqueueClient.claim_jobs`."""
        return self._run(
            lambda client: client.claim_jobs(worker_id, types, limit=limit, wait=wait, timeout=timeout)
        )

    def heartbeat(
        self, job_id: str, worker_id: str, *, lease_token: str | None = None, timeout: float | None = None
    ) -> None:
        """See `OsqueueClient.heartbeat`."""
        self._run(
            lambda client: client.heartbeat(job_id, worker_id, lease_token=lease_token, timeout=timeout)
        )

    def heartbeat_jobs(
        self, jobs: Leases, worker_id: str, *, timeout: float | None = None
    ) -> list[OsqueueError | None]:
        """See `OsqueueClient.heartbeat_jobs`."""
        given = as_list(jobs)
        return self._run(lambda client: client.heartbeat_jobs(given, worker_id, timeout=timeout))

    def complete_jobs(
        self, jobs: Leases, worker_id: str, *, timeout: float | None = None
    ) -> list[OsqueueError | None]:
        """See `OsqueueClient.complete_jobs`."""
        given = as_list(jobs)
        return self._run(lambda client: client.complete_jobs(given, worker_id, timeout=timeout))

    def complete_job(
        self, job_id: str, worker_id: str, *, lease_token: str | None = None, timeout: float | None = None
    ) -> None:
        """See `OsqueueClient.complete_job`."""
        self._run(
            lambda client: client.complete_job(job_id, worker_id, lease_token=lease_token, timeout=timeout)
        )

    def fail_job(
        self,
        job_id: str,
        worker_id: str,
        error: JobError | BaseException,
        *,
        retry: bool = True,
        lease_token: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """See `OsqueueClient.fail_job`."""
        self._run(
            lambda client: client.fail_job(
                job_id, worker_id, error, retry=retry, lease_token=lease_token, timeout=timeout
            )
        )

    def get_stats(self, *, timeout: float | None = None) -> QueueStats:
        """See `OsqueueClient.get_stats`."""
        return self._run(lambda client: client.get_stats(timeout=timeout))

    def list_jobs(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        type: str | None = None,
        status: JobStatus | None = None,
        timeout: float | None = None,
    ) -> JobList:
        """See `OsqueueClient.list_jobs`."""
        return self._run(
            lambda client: client.list_jobs(
                limit=limit, cursor=cursor, type=type, status=status, timeout=timeout
            )
        )

    def iter_jobs(
        self,
        *,
        type: str | None = None,
        status: JobStatus | None = None,
        page: int = LIST_LIMIT,
        timeout: float | None = None,
    ) -> Iterator[JobInfo]:
        """See `OsqueueClient.iter_jobs`."""
        require_page(page)
        cursor: str | None = None
        while True:
            found = self.list_jobs(limit=page, cursor=cursor, type=type, status=status, timeout=timeout)
            yield from found.jobs
            cursor = found.next_cursor
            if cursor is None:
                return

    def list_dead(
        self, *, limit: int | None = None, cursor: str | None = None, timeout: float | None = None
    ) -> DeadJobList:
        """See `OsqueueClient.list_dead`."""
        return self._run(lambda client: client.list_dead(limit=limit, cursor=cursor, timeout=timeout))

    def requeue_dead(self, job_id: str, *, timeout: float | None = None) -> None:
        """See `OsqueueClient.requeue_dead`."""
        self._run(lambda client: client.requeue_dead(job_id, timeout=timeout))

    def delete_dead(self, job_id: str, *, timeout: float | None = None) -> None:
        """See `OsqueueClient.delete_dead`."""
        self._run(lambda client: client.delete_dead(job_id, timeout=timeout))

    def _run(self, call: Callable[[OsqueueClient], Coroutine[Any, Any, R]]) -> R:
        thread = self._open()
        return thread.run(call(thread.client))

    def _open(self) -> _LoopThread:
        with self._opening:
            if self._is_closed:
                raise ConfigError("the client is closed", outcome="not_applied")
            if self._thread is None:
                self._thread = _LoopThread(self._make_client)
            return self._thread

    def _renew_after_fork(self) -> None:
        # A fork copies neither the thread nor its connections, and perhaps a lock that nobody will open.
        # What it copied is kept as it is: its end would be told to the parent's event loop.
        self._inherited = self._thread
        self._opening, self._thread = threading.Lock(), None


# In the child before any of its threads can call: two that found the fork out by themselves would renew it twice.
_clients: weakref.WeakSet[SyncOsqueueClient] = weakref.WeakSet()


def _renew_all_after_fork() -> None:
    for client in _clients:
        client._renew_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all_after_fork)
