"""The worker: claims jobs, runs their handlers, keeps their leases, and reports how they ended."""

from __future__ import annotations

import asyncio
import logging
import os
import random  # noqa: TID251  # only for the jitter of polling
import signal
import socket
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from osqueue_client import (
    BrokerProtocolError,
    ConfigError,
    Job,
    JobNotFoundError,
    LeaseLostError,
    OsqueueClient,
    OsqueueError,
    PayloadValidationError,
    TransportRequestError,
)

from .errors import WorkerExecutionError
from .handlers import BoundHandler, Handlers, bind

logger = logging.getLogger("osqueue.worker")

JobHook = Callable[[Job], Awaitable[None] | None]
FailureHook = Callable[[Job, BaseException], Awaitable[None] | None]

_LEASE_IS_LOST: Final = (LeaseLostError, JobNotFoundError)
_LONGEST_DELAY: Final = 5.0
_HEARTBEAT_PATIENCE: Final = 5.0
"""Seconds that a heartbeat may take, however often they are sent."""


class Worker:
    """Runs jobs of the types that it has handlers for, up to `concurrency` at once.

        worker = Worker(client=client, handlers={"email:send": send_email}, concurrency=10)
        await worker.run()                       # until SIGINT or SIGTERM

    A handler takes the payload: an instance of the model that the client's registry (or the `JobType`) has.
    One that is not async runs in a thread. Its exception ends the attempt as failed, to be tried again; a
    payload that does not fit its model ends the job as dead. A job whose lease is lost has its handler
    cancelled. `heartbeat_interval` and `poll_interval` are seconds.

    `stop()` claims no more and waits for the jobs that run. A failure of the worker itself stops it and is
    raised by `wait()` and `stop()`. The client belongs to the caller and stays open.
    """

    def __init__(
        self,
        *,
        client: OsqueueClient,
        handlers: Handlers,
        concurrency: int = 10,
        worker_id: str | None = None,
        heartbeat_interval: float = 5.0,
        poll_interval: float = 1.0,
        on_job_claimed: JobHook | None = None,
        on_job_completed: JobHook | None = None,
        on_job_failed: FailureHook | None = None,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1, not {concurrency}")
        if heartbeat_interval <= 0 or poll_interval <= 0:
            raise ConfigError("heartbeat_interval and poll_interval must be more than 0 s")
        self._client = client
        self._handlers = bind(handlers)
        self._concurrency = concurrency
        self.worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}-{_short_id()}"
        self._heartbeat_interval = heartbeat_interval
        self._poll_interval = poll_interval
        self._on_claimed = on_job_claimed
        self._on_completed = on_job_completed
        self._on_failed = on_job_failed
        self._must_stop = asyncio.Event()
        self._running = 0
        self._slot_freed = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, in a task of the running event loop that this worker owns."""
        if self._main is not None:
            raise ConfigError("the worker was started already")
        self._main = asyncio.get_running_loop().create_task(self._work(), name="osqueue-worker")

    async def wait(self) -> None:
        """Return when the worker has stopped. Raises `WorkerExecutionError` if it failed."""
        if self._main is not None:
            await asyncio.shield(self._main)

    async def stop(self) -> None:
        """Claim no more, wait for the jobs that run, and end. Safe twice and before start."""
        self._must_stop.set()
        await self.wait()

    async def run(self) -> None:
        """Start, work until SIGINT or SIGTERM, and stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._must_stop.set)
        try:
            self.start()
            await self.wait()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    # The loop

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as jobs:
                await self._claim_until_stopped(jobs)
        except* Exception as group:
            raise WorkerExecutionError(f"the worker failed: {group.exceptions[0]}") from group
        finally:
            self._must_stop.set()

    async def _claim_until_stopped(self, jobs: asyncio.TaskGroup) -> None:
        """Ask for one job while there is none; once there is one, for as many at once as there are free slots."""
        width, failures = 1, 0
        while not self._must_stop.is_set():
            free = self._concurrency - self._running
            if not free:
                self._slot_freed.clear()
                await self._slot_freed.wait()
                continue
            answers = await asyncio.gather(*(self._claim() for _ in range(min(width, free))))
            claimed = [answer for answer in answers if isinstance(answer, Job)]
            for job in claimed:
                self._running += 1
                jobs.create_task(self._run_in_slot(job))
            width = self._concurrency if claimed else 1
            failures = failures + 1 if any(isinstance(answer, OsqueueError) for answer in answers) else 0
            if not claimed:
                longest = max(_LONGEST_DELAY, self._poll_interval)
                await self._pause(min(self._poll_interval * 2 ** min(failures, 8), longest))

    async def _claim(self) -> Job | OsqueueError | None:
        """Return a job, None when there is none, or why the broker could not be asked just now."""
        try:
            return await self._client.claim_job(self.worker_id, tuple(self._handlers))
        except (BrokerProtocolError, ConfigError):
            raise  # asking again would not help
        except OsqueueError as error:
            logger.warning("claim_failed", extra={"error": repr(error)})
            return error

    async def _pause(self, delay: float) -> None:
        """Wait about that long, or until the worker is told to stop."""
        try:
            async with asyncio.timeout(delay * _jitter()):
                await self._must_stop.wait()
        except TimeoutError:
            return

    # One job

    async def _run_in_slot(self, job: Job) -> None:
        try:
            await self._run_job(job)
        finally:
            self._running -= 1
            self._slot_freed.set()

    async def _run_job(self, job: Job) -> None:
        await _call(self._on_claimed, job)
        handler = self._handlers[job.type or ""]
        try:
            payload = handler.payload_of(job)
        except PayloadValidationError as error:
            await self._report_failure(job, error, retry=False)
            return
        try:
            is_done = await self._handle(job, handler, payload)
        except Exception as error:  # noqa: BLE001  # whatever a handler raises is the job's failure
            await self._report_failure(job, error, retry=True)
            return
        if is_done and await self._report(job, lambda: self._client.complete_job(job.id, self.worker_id)):
            await _call(self._on_completed, job)

    async def _handle(self, job: Job, handler: BoundHandler, payload: object) -> bool:
        """Run the handler while its lease is kept; return False when the lease was lost and it was cancelled."""
        async with asyncio.TaskGroup() as group:
            handling = group.create_task(_Outcome.of(handler(payload)))
            keeping = group.create_task(self._keep_lease(job))
            await asyncio.wait((handling, keeping), return_when=asyncio.FIRST_COMPLETED)
            lost = not handling.done()
            handling.cancel()
            keeping.cancel()
        if lost:
            logger.warning("lease_lost", extra={"job_id": job.id})
            return False
        handling.result().raise_if_failed()
        return True

    async def _keep_lease(self, job: Job) -> None:
        """Send heartbeats until the broker says that the lease is lost."""
        while True:
            await asyncio.sleep(self._heartbeat_interval)
            try:
                await self._client.heartbeat(
                    job.id, self.worker_id, timeout=max(self._heartbeat_interval, _HEARTBEAT_PATIENCE)
                )
            except _LEASE_IS_LOST:
                return
            except OsqueueError as error:
                logger.warning("heartbeat_failed", extra={"job_id": job.id, "error": repr(error)})

    async def _report_failure(self, job: Job, error: Exception, *, retry: bool) -> None:
        logger.warning("job_failed", extra={"job_id": job.id, "error": type(error).__name__, "retry": retry})
        await self._report(job, lambda: self._client.fail_job(job.id, self.worker_id, error, retry=retry))
        await _call(self._on_failed, job, error)

    async def _report(self, job: Job, send: Callable[[], Awaitable[None]]) -> bool:
        """Tell the broker how a job ended, again while no answer comes; return whether it took the report.

        Repeating is safe: it takes one report, and to a second one it says that the job or its lease is gone.
        """
        delay = 0.1
        was_unclear = False
        while True:
            try:
                await send()
                return True
            except _LEASE_IS_LOST:
                return was_unclear
            except TransportRequestError as error:
                # An old broker does not know failJob: there the lease runs out by itself.
                logger.warning("report_refused", extra={"job_id": job.id, "error": repr(error)})
                return False
            except BrokerProtocolError as error:
                logger.warning("report_refused", extra={"job_id": job.id, "error": repr(error)})
                return False
            except OsqueueError as error:
                was_unclear = True
                logger.warning("report_failed", extra={"job_id": job.id, "error": repr(error)})
                if delay > 30:
                    return False  # the lease has run out long since
            await asyncio.sleep(delay * _jitter())
            delay *= 2


class _Outcome:
    """How a handler ended: its exception must not end the task group that keeps its lease."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    @classmethod
    async def of(cls, handling: Awaitable[None]) -> _Outcome:
        try:
            await handling
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return cls(RuntimeError("the handler was cancelled by what it waited for"))
        except Exception as error:  # noqa: BLE001  # carried to raise_if_failed
            return cls(error)
        return cls(None)

    def raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error


async def _call(hook: Callable[..., Awaitable[None] | None] | None, *args: object) -> None:
    """Call a hook. What it raises is logged: it must not change how the job ends."""
    if hook is None:
        return
    try:
        result = hook(*args)
        if result is not None:
            await result
    except Exception:
        logger.exception("hook_failed")


def _jitter() -> float:
    return random.uniform(0.75, 1.25)  # so that workers do not poll in step


def _short_id() -> str:
    return uuid.uuid4().hex[:8]  # noqa: TID251  # the worker's one source of ids
