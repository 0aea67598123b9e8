"""One claimed job: its handler runs while its lease is kept, and how it ended is reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from osqueue_client import Job, OsqueueClient, OsqueueError, PayloadValidationError

from .handlers import BoundHandler
from .hooks import INTERRUPTS, Hooks, is_being_cancelled
from .logs import log
from .reports import LEASE_IS_LOST, Failure, Report, Reporter

_HEARTBEAT_PATIENCE: Final = 5.0
"""Seconds that a heartbeat may take, however often they are sent."""


class Runs:
    """The jobs that run in one worker.

    `must_cancel` is set when they are to be cancelled and reported as failed. `fail` is called with a fault that
    is no job's, after which the jobs go on.
    """

    def __init__(
        self,
        client: OsqueueClient,
        worker_id: str,
        handlers: Mapping[str, BoundHandler],
        hooks: Hooks,
        *,
        heartbeat_interval: float,
        must_cancel: asyncio.Event,
        fail: Callable[[Exception], None],
        jitter: Callable[[], float],
    ) -> None:
        self._client = client
        self._worker_id = worker_id
        self._handlers = handlers
        self._hooks = hooks
        self._heartbeat_interval = heartbeat_interval
        self._must_cancel = must_cancel
        self._fail = fail
        self._reporter = Reporter(client, worker_id, self._is_latest, jitter)
        self._latest: dict[str, Job] = {}
        """The claim of each job that runs here, the last one where it was claimed twice."""

    def add(self, job: Job) -> None:
        """Note the claim of a job: an earlier one of the same job says no more from now on."""
        self._latest[job.id] = job

    async def run(self, job: Job) -> None:
        """Run a job that was added, to its end."""
        try:
            await self._run(job)
        except Exception as error:  # noqa: BLE001  # raised by wait(); the other jobs go on
            self._fail(error)
        finally:
            if self._is_latest(job):
                del self._latest[job.id]

    def _is_latest(self, job: Job) -> bool:
        """Whether this worker has not claimed the same job again since.

        Then the earlier lease is lost, but a broker that knows no lease tokens cannot say so: it would take what the
        earlier attempt sends for the later one's. That also may be the next broker after one that gave a token.
        """
        return self._latest.get(job.id) is job

    async def _run(self, job: Job) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                attempt = group.create_task(self._attempt(job))
                keeping = group.create_task(self._keep_lease(job))
                cancelling = group.create_task(self._must_cancel.wait())
                await asyncio.wait((attempt, keeping, cancelling), return_when=asyncio.FIRST_COMPLETED)
                is_lost = keeping.done() and not attempt.done()
                for task in (attempt, keeping, cancelling):
                    task.cancel()
            if is_lost:
                log(logging.WARNING, "lease_lost", "was cancelled: its lease is lost", job=job)
            elif attempt.cancelled():
                await self._report_cancellation(job)
            elif failure := attempt.result():
                await self._report_failure(job, failure)
            else:
                await self._report_success(job)
        except asyncio.CancelledError:
            log(logging.WARNING, "job_left", "was cancelled and not reported: its lease runs out", job=job)
            raise

    async def _attempt(self, job: Job) -> Failure | None:
        """Run a job's handler; return how it failed. Of what the user's code raises, only interrupts come out."""
        await self._hooks.claimed(job)
        handler = self._handlers[job.type or ""]
        try:
            payload = handler.payload_of(job)
        except PayloadValidationError as error:
            return Failure(error, may_retry=False)
        except Exception as error:  # noqa: BLE001  # a model has validators, which are the user's code
            return Failure(error, may_retry=True)
        try:
            await handler(payload)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            why = RuntimeError("the handler was cancelled by what it waited for")
            return Failure(why, may_retry=True)
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001  # sys.exit() of a handler ends its attempt, not the worker
            return Failure(error, may_retry=True)
        return None

    async def _keep_lease(self, job: Job) -> None:
        """Send heartbeats; return when the lease is lost."""
        has_failed = False
        while True:
            await asyncio.sleep(self._heartbeat_interval)
            if not self._is_latest(job):
                return
            try:
                await self._client.heartbeat(
                    job.id,
                    self._worker_id,
                    lease_token=job.lease_token,
                    timeout=max(self._heartbeat_interval, _HEARTBEAT_PATIENCE),
                )
                has_failed = False
            except LEASE_IS_LOST:
                return
            except OsqueueError as error:
                if not has_failed:
                    log(
                        logging.WARNING,
                        "heartbeat_failed",
                        "is run on, and tried again",
                        job=job,
                        error=error,
                    )
                has_failed = True
            except Exception as error:  # noqa: BLE001  # raised by wait(); the handler may still end well
                self._fail(error)

    async def _report_success(self, job: Job) -> None:
        if await self._reporter.completed(job) is Report.TAKEN:
            await self._hooks.completed(job)

    async def _report_cancellation(self, job: Job) -> None:
        if not self._handlers[job.type or ""].is_async:
            text = "runs on in its thread and is not reported: its lease runs out"
            log(logging.WARNING, "job_left", text, job=job)
            return
        error = asyncio.CancelledError("the worker was stopped before the handler had ended")
        await self._report_failure(job, Failure(error, may_retry=True))

    async def _report_failure(self, job: Job, failure: Failure) -> None:
        error = failure.error
        log(
            logging.WARNING,
            "job_failed",
            "is tried again if it has attempts left" if failure.may_retry else "is dead",
            job=job,
            error=error,
            # Of a payload that does not fit there is nothing more to see.
            has_traceback=failure.may_retry and error.__traceback__ is not None,
            retry=failure.may_retry,
        )
        if await self._reporter.failed(job, failure) is not Report.LEASE_LOST:
            await self._hooks.failed(job, error)
