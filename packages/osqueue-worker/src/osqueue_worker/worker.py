"""The worker: claims jobs, runs their handlers, keeps their leases, and reports how they ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import socket
from collections.abc import Sequence
from enum import Enum, auto
from types import TracebackType
from typing import Final, Self

from osqueue_client import ConfigError, Job, OsqueueClient, OsqueueError, Registry

from .chance import Chance
from .delays import LONGEST_DELAY, jittered
from .errors import WorkerExecutionError, is_for_good, is_refusal
from .handlers import Handlers, bind
from .hooks import FailureHook, Hooks, JobHook
from .logs import ClaimLog, log
from .runs import Runs

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_CLAIM_PATIENCE: Final = 10.0
"""Seconds for which `stop()` waits for an answer to a claim: a broker waits as long for its store."""
_CANCEL_PATIENCE: Final = 5.0
"""Seconds from the second signal to the end of `run()`, whatever the handlers and the broker do."""


class Worker:
    """Runs jobs of the types that it has handlers for, up to `concurrency` at once.

        worker = Worker(client=client, handlers={"email:send": send_email}, concurrency=10)
        await worker.run()                       # until SIGINT or SIGTERM

    A handler takes the payload: an instance of the model that the client's registry (or the `JobType`) has.
    One that is not async runs in a thread. Its exception ends the attempt as failed, to be tried again; a
    payload that does not fit its model ends the job as dead. A job whose lease is lost has its handler
    cancelled. `heartbeat_interval` and `poll_interval` are seconds.

    `stop()` claims no more and waits for the jobs that run. A failure of the worker itself stops it in the same
    way and is raised by `wait()` and `stop()`; a broker that cannot be reached, or that refuses, is none, but is
    asked again. The client belongs to the caller and stays open.
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
        _chance: Chance | None = None,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1, not {concurrency}")
        if heartbeat_interval <= 0 or poll_interval <= 0:
            raise ConfigError("heartbeat_interval and poll_interval must be more than 0 s")
        self._client = client
        self._handlers = bind(handlers, _registry_of(client))
        self._concurrency = concurrency
        self._chance = _chance or Chance()
        self.worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}-{self._chance.short_id()}"
        self._poll_interval = poll_interval
        self._must_stop = asyncio.Event()
        self._must_cancel = asyncio.Event()
        """The jobs that run are to be cancelled, and reported as failed."""
        self._runs = Runs(
            client,
            self.worker_id,
            self._handlers,
            Hooks(on_job_claimed, on_job_completed, on_job_failed),
            heartbeat_interval=heartbeat_interval,
            must_cancel=self._must_cancel,
            fail=self._fail,
            jitter=self._chance.jitter,
        )
        self._running = 0
        self._asking = 0
        self._fault: Exception | None = None
        self._slot_freed = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, in a task of the running event loop that this worker owns."""
        if self._main is not None:
            raise ConfigError("the worker was started already")
        self._main = asyncio.get_running_loop().create_task(self._work(), name="osqueue-worker")

    async def wait(self) -> None:
        """Return when the worker has stopped. Raises `WorkerExecutionError` if it failed.

        To cancel `wait()` ends the waiting only.
        """
        if self._main is None:
            return
        await asyncio.wait((self._main,))
        if not self._main.cancelled():
            self._main.result()

    async def stop(self) -> None:
        """Claim no more, wait for the jobs that run, and end. Safe twice and before start.

        To cancel `stop()` cancels the jobs that still run; nothing is reported of them, their leases run out.
        """
        self._must_stop.set()
        await self._end()

    async def run(self) -> None:
        """Start, work until SIGINT or SIGTERM, and stop. To cancel it is to cancel `stop()`.

        A second signal cancels the jobs that still run and reports them as failed, to be tried again; `run()`
        returns within 5 s, and at a third signal at once. A job whose handler is not async is not reported, as
        its thread runs on.
        """
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            self.start()
            await self._end()
        finally:
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._must_stop.is_set():
            self._must_stop.set()
            self._log_stopping()
        elif not self._must_cancel.is_set():
            self._must_cancel.set()
            log(logging.WARNING, "cancelling", _counted(self._running, "job"), running=self._running)
            loop.call_later(_CANCEL_PATIENCE, self._cancel)
        else:
            self._cancel()
            for number in _STOP_SIGNALS:  # a fourth ends the program as if nobody had asked for signals
                loop.remove_signal_handler(number)

    def _log_stopping(self) -> None:
        if self._running:
            text = f"waiting for {_counted(self._running, 'job')} (signal again to cancel them)"
        elif self._asking:
            text = "waiting for the answer to a claim (signal again to wait for 5 s at most)"
        else:
            text = "no job runs"
        is_quick = not self._running and not self._asking
        log(logging.INFO if is_quick else logging.WARNING, "stopping", text, running=self._running)

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def _end(self) -> None:
        """Wait until the worker has stopped; who is cancelled here leaves no task behind."""
        try:
            await self.wait()
        except asyncio.CancelledError:
            self._cancel()
            if self._main is not None:
                await asyncio.wait((self._main,))
            raise

    # The loop

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as jobs:
                await self._claim_until_stopped(jobs)
        finally:
            self._must_stop.set()
        if self._fault is not None:
            raise WorkerExecutionError(f"the worker failed: {self._fault}") from self._fault

    def _fail(self, fault: Exception) -> None:
        """Stop because of a fault that is no job's: the first is raised when the jobs that run have ended."""
        log(
            logging.ERROR,
            "worker_failed",
            f"stopping, waiting for {_counted(self._running, 'job')}",
            error=fault,
            has_traceback=True,
        )
        self._fault = self._fault or fault
        self._must_stop.set()

    async def _claim_until_stopped(self, jobs: asyncio.TaskGroup) -> None:
        """Ask for one job while there is none; once there is one, for as many at once as there are free slots."""
        width, failures = 1, 0
        claim_log = ClaimLog(asyncio.get_running_loop().time)
        while not self._must_stop.is_set():
            free = self._concurrency - self._running
            if not free:
                self._slot_freed.clear()
                await self._slot_freed.wait()
                continue
            async with asyncio.TaskGroup() as group:
                claims = [group.create_task(self._claim(jobs, claim_log)) for _ in range(min(width, free))]
                ending = group.create_task(self._end_when_stopped(claims))
                await asyncio.wait(claims)
                ending.cancel()
            answers = {_Claimed.UNKNOWN if claim.cancelled() else claim.result() for claim in claims}
            width = self._concurrency if _Claimed.JOB in answers else 1
            if _Claimed.UNKNOWN in answers:
                failures += 1
            else:
                failures = 0
                claim_log.worked()
            if _Claimed.JOB not in answers:
                longest = max(LONGEST_DELAY, self._poll_interval)
                await self._pause(min(self._poll_interval * 2 ** min(failures, 8), longest))

    async def _end_when_stopped(self, claims: Sequence[asyncio.Task[_Claimed]]) -> None:
        """Wait no longer for claims that are under way than a broker needs: the client goes on looking for one."""
        await self._must_stop.wait()
        await asyncio.sleep(_CLAIM_PATIENCE)
        for claim in claims:
            claim.cancel()

    async def _claim(self, jobs: asyncio.TaskGroup, claim_log: ClaimLog) -> _Claimed:
        """Ask for a job and begin it, also while stopping: it is leased to this worker now.

        Whatever a broker or a proxy answers, it is asked again: the next broker, or the same one after a repair,
        may answer otherwise, and a fleet of workers must not need a restart then. The worker fails only for what
        no broker can mend: a `ConfigError` (the client was closed), and an error that is not osqueue's.
        """
        self._asking += 1
        try:
            job = await self._client.claim_job(self.worker_id, tuple(self._handlers))
        except OsqueueError as error:
            if is_for_good(error):
                self._fail(error)
            elif is_refusal(error):
                claim_log.failed(logging.ERROR, "claim_refused", error)
            else:
                claim_log.failed(logging.WARNING, "claim_failed", error)
            return _Claimed.UNKNOWN
        except Exception as error:  # noqa: BLE001  # raised by wait()
            self._fail(error)
            return _Claimed.UNKNOWN
        finally:
            self._asking -= 1
        if job is None:
            return _Claimed.NOTHING
        if job.type not in self._handlers:
            # Not reported: given back, it would be the next job again. Its lease runs out.
            log(logging.ERROR, "unknown_type_claimed", "has no handler here: its lease runs out", job=job)
            return _Claimed.UNKNOWN
        self._running += 1
        self._runs.add(job)
        # At once: other claims of the same round may wait for their answers longer than the lease holds.
        jobs.create_task(self._run_in_slot(job))
        return _Claimed.JOB

    async def _run_in_slot(self, job: Job) -> None:
        try:
            await self._runs.run(job)
        finally:
            self._running -= 1
            self._slot_freed.set()

    async def _pause(self, delay: float) -> None:
        """Wait about that long, or until the worker is told to stop."""
        try:
            async with asyncio.timeout(jittered(delay, self._chance.jitter())):
                await self._must_stop.wait()
        except TimeoutError:
            return


class _Claimed(Enum):
    """What came of a claim; `UNKNOWN`: no answer that means anything."""

    JOB = auto()
    NOTHING = auto()
    UNKNOWN = auto()


def _registry_of(client: OsqueueClient) -> Registry | None:
    """Return the job types that the client knows. Raises `ConfigError` if it is no client for a worker."""
    if not inspect.iscoroutinefunction(getattr(client, "claim_job", None)):
        raise ConfigError(
            f'client must be an OsqueueClient, as in Worker(client=OsqueueClient("http://…"), …), not a '
            f"{type(client).__name__}"
        )
    return client.registry


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
