"""How a job ended, told to the broker until an answer is clear."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from osqueue_client import Job, JobError, JobNotFoundError, LeaseLostError, OsqueueClient, OsqueueError

from .delays import LONGEST_DELAY, jittered
from .errors import is_refusal
from .logs import has_text, log

LEASE_IS_LOST: Final = (LeaseLostError, JobNotFoundError)
_FIRST_DELAY: Final = 0.1
_PATIENCE: Final = 60.0
"""Seconds for which a report is repeated: a lease holds 30 s, but not while the broker cannot serve."""


class Report(Enum):
    """What came of a report; `NOT_TAKEN`: refused, or given up, so that the lease runs out."""

    TAKEN = auto()
    LEASE_LOST = auto()
    NOT_TAKEN = auto()


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed."""

    error: BaseException
    may_retry: bool


class Reporter:
    """Reports for one worker; `is_latest` tells whether a claim is still the worker's last one of its job."""

    def __init__(
        self,
        client: OsqueueClient,
        worker_id: str,
        is_latest: Callable[[Job], bool],
        jitter: Callable[[], float],
    ) -> None:
        self._client = client
        self._worker_id = worker_id
        self._is_latest = is_latest
        self._jitter = jitter

    async def completed(self, job: Job) -> Report:
        """Tell that a job is done."""
        # A job that is still there, leased to another, was not completed by a report that went before.
        return await self._report(
            job,
            lambda: self._client.complete_job(job.id, self._worker_id, lease_token=job.lease_token),
            done_shows_as=(JobNotFoundError,),
        )

    async def failed(self, job: Job, failure: Failure) -> Report:
        """Tell that an attempt failed."""
        error = failure.error
        described = error if has_text(error) else JobError(type=type(error).__name__, message="(unreadable)")
        return await self._report(
            job,
            lambda: self._client.fail_job(
                job.id, self._worker_id, described, retry=failure.may_retry, lease_token=job.lease_token
            ),
            done_shows_as=LEASE_IS_LOST,
        )

    async def _report(
        self,
        job: Job,
        send: Callable[[], Awaitable[None]],
        *,
        done_shows_as: tuple[type[OsqueueError], ...],
    ) -> Report:
        """Tell the broker how a job ended, and again until an answer is clear, for as long as a lease may hold.

        Repeating is safe: a broker takes one report, and to a second one says that the job or its lease is gone.
        `done_shows_as` are the errors that a report meets if one before it, of unclear outcome, was taken.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + _PATIENCE
        delay = _FIRST_DELAY
        is_unclear, has_failed = False, False
        while self._is_latest(job):
            try:
                await send()
                return Report.TAKEN
            except LEASE_IS_LOST as error:
                if is_unclear and isinstance(error, done_shows_as):
                    return Report.TAKEN
                break
            except OsqueueError as error:
                if is_refusal(error):
                    # An old broker does not know failJob: there the lease runs out by itself.
                    text = "could not be reported: its lease runs out"
                    log(logging.WARNING, "report_refused", text, job=job, error=error)
                    return Report.NOT_TAKEN
                is_unclear = is_unclear or error.outcome != "not_applied"
                if not has_failed:
                    log(logging.WARNING, "report_failed", "is reported again", job=job, error=error)
                has_failed = True
                if clock() + delay > until:
                    text = "is reported no more: its lease runs out"
                    log(logging.WARNING, "report_given_up", text, job=job, error=error)
                    return Report.NOT_TAKEN
            await asyncio.sleep(jittered(delay, self._jitter()))
            delay = min(delay * 2, LONGEST_DELAY)
        log(logging.WARNING, "lease_lost", "has ended, but its lease was lost before", job=job)
        return Report.LEASE_LOST
