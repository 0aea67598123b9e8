"""The jobs that run: each in one task, in which its handler runs and how that ended is reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import assert_never

from osqueue_client import Job, OsqueueClient, PayloadValidationError

from .handlers import BoundHandler
from .hooks import INTERRUPTS, Hooks, is_being_cancelled
from .logs import log
from .reports import Failure, Report, Reporter


class Cut(Enum):
    """Why a run is cut short."""

    LOST = auto()
    """Its lease is lost: nothing is reported."""
    STOPPED = auto()
    """The worker was told to cancel what runs: it is reported as failed."""
    LEFT = auto()
    """The worker ends at once: nothing is reported, the lease runs out."""


class End(Enum):
    """How a run has ended that has not failed."""

    DONE = auto()
    LOST = auto()
    STOPPED = auto()
    """While its handler ran."""
    NOT_BEGUN = auto()
    """Before its handler began."""


class Run:
    """One claimed job, from its claim to its report."""

    __slots__ = ("cut", "is_in_attempt", "job", "task")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cut: Cut | None = None
        self.is_in_attempt = True
        """Whether its handler has not ended: so long its lease is kept."""
        self.task: asyncio.Task[None] | None = None
        """From when it has begun: a task that is cancelled before does nothing at all."""

    def cut_short(self, why: Cut) -> None:
        """Cancel its handler; a report that is under way only where the worker ends."""
        if not self.is_in_attempt and why is not Cut.LEFT:
            return
        self.cut = why
        if self.task is not None:
            self.task.cancel()


class Runs:
    """The runs of one worker. `fail` is called with a fault that is no job's, after which the jobs go on.

    `freed` is called when there may be room for another job: when a handler has ended well, and its report is on its
    way, and after each report.
    """

    def __init__(
        self,
        client: OsqueueClient,
        worker_id: str,
        handlers: Mapping[str, BoundHandler],
        hooks: Hooks,
        *,
        fail: Callable[[Exception], None],
        freed: Callable[[], None],
        jitter: Callable[[], float],
    ) -> None:
        self._handlers = handlers
        self._hooks = hooks
        self._fail = fail
        self._freed = freed
        self._reporter = Reporter(client, worker_id, self._is_latest, jitter)
        # Owned here: `ended` waits for them. A dict for its order: in a simulation they are cut in the same one.
        self._runs: dict[Run, None] = {}
        self._latest: dict[str, Run] = {}
        """The run of each job, the last one where it was claimed twice."""
        self._is_stopped = False
        self._none_left = asyncio.Event()
        self._none_left.set()
        self.running = 0
        """Jobs that take up a slot."""

    @property
    def reporting(self) -> int:
        """Jobs whose handlers have ended well, and that are still being reported."""
        return len(self._runs) - self.running

    def start(self, job: Job) -> None:
        """Run a job in a task of its own. An earlier run of the same job says no more from now on."""
        earlier = self._latest.get(job.id)
        if earlier is not None:
            earlier.cut_short(Cut.LOST)
        run = self._latest[job.id] = Run(job)
        if self._is_stopped:
            run.cut = Cut.STOPPED
        self._runs[run] = None
        self._none_left.clear()
        self.running += 1
        asyncio.get_running_loop().create_task(self._run(run))

    def in_attempt(self) -> list[Run]:
        """Return the runs whose leases are to be kept."""
        return [run for run in self._runs if run.is_in_attempt]

    def stop(self) -> None:
        """Cancel the handlers that run, and report their jobs as failed."""
        self._is_stopped = True
        for run in self.in_attempt():
            run.cut_short(Cut.STOPPED)

    async def ended(self) -> None:
        """Return when no job runs or is reported any more."""
        await self._none_left.wait()

    async def leave(self) -> None:
        """Cancel all, report nothing, and return when they have ended, however often this is cancelled."""
        while self._runs:
            for run in list(self._runs):
                run.cut_short(Cut.LEFT)
            try:
                await self._none_left.wait()
            except asyncio.CancelledError:
                continue  # those that cling to life are cancelled once more

    def _is_latest(self, job: Job) -> bool:
        """Whether this worker has not claimed the same job again since.

        Then the earlier lease is lost, but a broker that knows no lease tokens cannot say so: it would take what the
        earlier attempt sends for the later one's. That also may be the next broker after one that gave a token.
        """
        latest = self._latest.get(job.id)
        return latest is not None and latest.job is job

    async def _run(self, run: Run) -> None:
        is_freed = False
        run.task = asyncio.current_task()
        try:
            end = await self._ended_attempt(run)
            if end is End.DONE:
                self.running -= 1
                is_freed = True
                self._freed()
            await self._report(run.job, end)
        except asyncio.CancelledError:
            log(
                logging.WARNING,
                "job_left",
                "was cancelled and not reported: its lease runs out",
                job=run.job,
            )
            raise
        except Exception as error:  # noqa: BLE001  # raised by wait(); the other jobs go on
            self._fail(error)
        finally:
            del self._runs[run]
            if self._latest.get(run.job.id) is run:
                del self._latest[run.job.id]
            if not self._runs:
                self._none_left.set()
            if not is_freed:
                self.running -= 1
            self._freed()

    async def _ended_attempt(self, run: Run) -> Failure | End:
        """Run a job's handler; return how it ended. Raises `CancelledError` where the worker, or the program, ends."""
        end: Failure | End = End.NOT_BEGUN
        try:
            if run.cut is None:
                end = End.STOPPED  # unless it ends otherwise
                end = await self._attempt(run) or End.DONE
        except asyncio.CancelledError:
            if run.cut is None:
                raise
        finally:
            run.is_in_attempt = False
        if run.cut is Cut.LEFT:
            raise asyncio.CancelledError
        if run.cut is not None:
            _take_back_cancellation()
        return End.LOST if run.cut is Cut.LOST else end

    async def _attempt(self, run: Run) -> Failure | None:
        """Run a job's handler; return how it failed. Of what the user's code raises, only interrupts come out."""
        job = run.job
        try:
            await self._hooks.claimed(job)
            handler = self._handlers[job.type or ""]
            try:
                payload = handler.payload_of(job)
            except PayloadValidationError as error:
                return Failure(error, may_retry=False)
            await handler(payload)
        except asyncio.CancelledError:
            if run.cut is not None or is_being_cancelled():
                raise
            why = RuntimeError("the handler was cancelled by what it waited for")
            return Failure(why, may_retry=True)
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001  # reported as the job's failure
            return Failure(error, may_retry=True)
        return None

    async def _report(self, job: Job, end: Failure | End) -> None:
        match end:
            case End.DONE:
                if await self._reporter.completed(job) is Report.TAKEN:
                    await self._hooks.completed(job)
            case Failure():
                await self._report_failure(job, end)
            case End.LOST:
                log(logging.WARNING, "lease_lost", "was cancelled: its lease is lost", job=job)
            case End.STOPPED if not self._handlers[job.type or ""].is_async:
                text = "runs on in its thread and is not reported: its lease runs out"
                log(logging.WARNING, "job_left", text, job=job)
            case End.STOPPED:
                await self._report_stop(job, "the worker was stopped before the handler had ended")
            case End.NOT_BEGUN:
                await self._report_stop(job, "the worker was stopped before the handler had begun")
            case _:
                assert_never(end)

    async def _report_stop(self, job: Job, why: str) -> None:
        await self._report_failure(job, Failure(asyncio.CancelledError(why), may_retry=True))

    async def _report_failure(self, job: Job, failure: Failure) -> None:
        error = failure.error
        log(
            logging.WARNING,
            "job_failed",
            "failed: it is tried again, or dead if that was its last attempt"
            if failure.may_retry
            else "is dead",
            job=job,
            error=error,
            # Of a payload that does not fit there is nothing more to see.
            has_traceback=failure.may_retry and error.__traceback__ is not None,
            retry=failure.may_retry,
        )
        if await self._reporter.failed(job, failure) is not Report.LEASE_LOST:
            await self._hooks.failed(job, error)


def _take_back_cancellation() -> None:
    """Let the task go on: only the handler was to be cancelled."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
