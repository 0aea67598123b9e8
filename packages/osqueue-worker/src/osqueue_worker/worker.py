"""The worker: claims jobs, runs their handlers, keeps their leases, and reports how they ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import socket
from types import TracebackType
from typing import Final, Self

from osqueue_client import ConfigError, OsqueueClient, Registry

from .chance import Chance
from .claims import Claims
from .errors import WorkerExecutionError
from .handlers import Handlers, bind
from .heartbeats import Heartbeats
from .hooks import FailureHook, Hooks, JobHook
from .logs import log
from .runs import Runs

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
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
        self._handlers = bind(handlers, _registry_of(client))
        chance = _chance or Chance()
        self.worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}-{chance.short_id()}"
        self._is_stopping = False
        self._is_cancelling = False
        """The jobs that run have been cancelled, to be reported as failed."""
        self._runs = Runs(
            client,
            self.worker_id,
            self._handlers,
            Hooks(on_job_claimed, on_job_completed, on_job_failed),
            fail=self._fail,
            freed=lambda: self._claims.wake(),
            jitter=chance.jitter,
        )
        self._claims = Claims(
            client,
            self.worker_id,
            tuple(self._handlers),
            self._runs,
            concurrency=concurrency,
            poll_interval=poll_interval,
            fail=self._fail,
            jitter=chance.jitter,
        )
        self._heartbeats = Heartbeats(
            client, self.worker_id, self._runs, interval=heartbeat_interval, fail=self._fail
        )
        self._fault: Exception | None = None
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
        self._stop_claiming()
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
        if not self._is_stopping:
            self._stop_claiming()
            self._log_stopping()
        elif not self._is_cancelling:
            self._is_cancelling = True
            running = self._runs.running
            log(logging.WARNING, "cancelling", _counted(running, "job"), running=running)
            self._runs.stop()
            loop.call_later(_CANCEL_PATIENCE, self._cancel)
        else:
            self._cancel()
            for number in _STOP_SIGNALS:  # a fourth ends the program as if nobody had asked for signals
                loop.remove_signal_handler(number)

    def _stop_claiming(self) -> None:
        self._is_stopping = True
        self._claims.stop()

    def _log_stopping(self) -> None:
        level, running = logging.WARNING, self._runs.running
        if running:
            text = f"waiting for {_counted(running, 'job')} (signal again to cancel them)"
        elif self._claims.is_awaited:
            text = "waiting for the answer to a claim (signal again to wait for 5 s at most)"
        else:
            level, text = logging.INFO, "no job runs"
        log(level, "stopping", text, running=running)

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

    # The work

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(self._heartbeats.run())
                await self._claims.run()
                await self._runs.ended()
                beating.cancel()
        finally:
            self._stop_claiming()
            await self._runs.leave()
        if self._fault is not None:
            raise WorkerExecutionError(f"the worker failed: {self._fault}") from self._fault

    def _fail(self, fault: Exception) -> None:
        """Stop because of a fault that is no job's: the first is raised when the jobs that run have ended."""
        text = f"stopping, waiting for {_counted(self._runs.running, 'job')}"
        log(logging.ERROR, "worker_failed", text, error=fault, has_traceback=True)
        self._fault = self._fault or fault
        self._stop_claiming()


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
