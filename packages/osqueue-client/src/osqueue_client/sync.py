"""The client for programs that are not async: the async one, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from osqueue_storage import StorageBackend

from .client import OsqueueClient
from .errors import ConfigError, TransportConfigError, TransportConnectionError
from .job import Job
from .models import DeadJobList, JobError, JobList, QueueStats
from .registry import JobType, Registry
from .transports import TransportName

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
                raise ConfigError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(self._kept(call), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise TransportConnectionError(
                "the client was closed during the call", outcome="unknown"
            ) from None
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
        # First those who wait: on a loop that has stopped they would wait for ever.
        calls = tuple(self._calls)
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self.client.aclose()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncOsqueueClient:
    """`OsqueueClient` with blocking methods; each takes and raises what its async twin does.

        with SyncOsqueueClient("http://127.0.0.1:8080") as client:
            client.submit_job("email:send", {"to": "a@example.com"})

    May be used from many threads, and in one that runs an event loop (which it blocks). After a fork, the
    child opens connections of its own; the transport is REST by default, since that of Connect cannot.
    """

    def __init__(
        self,
        broker_url: str | Sequence[str] | None = None,
        *,
        registry: Registry | None = None,
        transport: TransportName = "rest",
        storage: StorageBackend | None = None,
        timeout: float = 30.0,
    ) -> None:
        def make_client() -> OsqueueClient:
            return OsqueueClient(
                broker_url, registry=registry, transport=transport, storage=storage, timeout=timeout
            )

        self._make_client = make_client
        self._transport = transport
        self._opening = threading.Lock()
        self._is_closed = False
        self._pid = os.getpid()
        self._thread: _LoopThread | None = _LoopThread(make_client)
        self._inherited: _LoopThread | None = None

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
        self._renew_after_fork()
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

    def claim_job(
        self, worker_id: str, types: Sequence[str] | None = None, *, timeout: float | None = None
    ) -> Job | None:
        """See `OsqueueClient.claim_job`."""
        return self._run(lambda client: client.claim_job(worker_id, types, timeout=timeout))

    def heartbeat(self, job_id: str, worker_id: str, *, timeout: float | None = None) -> None:
        """See `OsqueueClient.heartbeat`."""
        self._run(lambda client: client.heartbeat(job_id, worker_id, timeout=timeout))

    def complete_job(self, job_id: str, worker_id: str, *, timeout: float | None = None) -> None:
        """See `OsqueueClient.complete_job`."""
        self._run(lambda client: client.complete_job(job_id, worker_id, timeout=timeout))

    def fail_job(
        self,
        job_id: str,
        worker_id: str,
        error: JobError | BaseException,
        *,
        retry: bool = True,
        timeout: float | None = None,
    ) -> None:
        """See `OsqueueClient.fail_job`."""
        self._run(lambda client: client.fail_job(job_id, worker_id, error, retry=retry, timeout=timeout))

    def get_stats(self, *, timeout: float | None = None) -> QueueStats:
        """See `OsqueueClient.get_stats`."""
        return self._run(lambda client: client.get_stats(timeout=timeout))

    def list_jobs(self, *, timeout: float | None = None) -> JobList:
        """See `OsqueueClient.list_jobs`."""
        return self._run(lambda client: client.list_jobs(timeout=timeout))

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
        self._renew_after_fork()
        with self._opening:
            if self._is_closed:
                raise ConfigError("the client is closed")
            if self._thread is None:
                if self._inherited is not None and self._transport == "connect":
                    # The threads of its HTTP library do not live on in the child, and cannot be started again there.
                    raise TransportConfigError(
                        "the connect transport cannot be used after a fork: choose transport='rest' or 'ws', "
                        "or make the client in the child before it is used in the parent"
                    )
                self._thread = _LoopThread(self._make_client)
            return self._thread

    def _renew_after_fork(self) -> None:
        if self._pid != os.getpid():
            # A fork copies neither the thread nor its connections, and perhaps a lock that nobody will open.
            # What it copied is kept as it is: its end would be told to the parent's event loop.
            self._inherited = self._thread
            self._pid, self._opening, self._thread = os.getpid(), threading.Lock(), None
