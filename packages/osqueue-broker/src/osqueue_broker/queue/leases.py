"""Leases are kept, and end with the attempt: done, failed, or expired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from osqueue_client import models
from osqueue_client.errors import JobNotFoundError, LeaseLostError

from .entries import entry_error
from .job import IN_PROGRESS, UNCLAIMED, Job
from .mutation import DONE, Mutation
from .rules import Now
from .state import QueueState

ERROR_TYPE_LIMIT: Final = 256
ERROR_MESSAGE_LIMIT: Final = 8192
"""Characters that are kept of an error; the rest is cut off."""

_SHORTEST_MESSAGE: Final = 100

_DONE_ENTRY: Final = models.LeasedEntry()

ALL: Final = -1
"""The bits of all entries of a batch."""


def heartbeat(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """Keep a lease for another lease timeout."""
    request = mutation.request
    assert isinstance(request, models.LeasedJob)
    state.heartbeat(_leased(state, request.job_id, request.worker_id, request.lease_token), now)
    return DONE


def heartbeat_many(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """Keep many leases of one worker."""
    request = mutation.request
    assert isinstance(request, models.LeasedJobs)
    return _each(state, request, lambda job: state.heartbeat(job, now))


def complete(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """End a job as done."""
    request = mutation.request
    assert isinstance(request, models.LeasedJob)
    state.complete(_leased(state, request.job_id, request.worker_id, request.lease_token))
    return DONE


def complete_many(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """End many jobs of one worker as done."""
    request = mutation.request
    assert isinstance(request, models.LeasedJobs)
    return complete_rest(state, request, ALL)


def complete_rest(state: QueueState, request: models.LeasedJobs, rest: int) -> models.LeasedResults:
    """End as done those jobs of a batch whose bits are set; the others have ended before."""
    return _each(state, request, state.complete, rest)


def refused(results: models.LeasedResults) -> int:
    """Return the bits of the entries that were refused, the first one's bit the lowest."""
    return sum(1 << place for place, result in enumerate(results.results) if result.error is not None)


def fail(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """End an attempt as failed."""
    request = mutation.request
    assert isinstance(request, models.FailJob)
    job = _leased(state, request.job_id, request.worker_id, request.lease_token)
    _end_attempt(state, job, request.error, now, may_retry=request.retry is not False)
    return DONE


def expire(state: QueueState, now: Now) -> None:
    """Make jobs whose lease has expired claimable again, or dead when their attempts are used up."""
    state.sessions.drop_idle(now.served)
    while job := state.expired(now):
        if job.is_in_doubt:
            state.take_back(job)
            continue
        timeout = state.rules.heartbeat_timeout
        message = f"no heartbeat of {job.worker_id} for {timeout:g} s, in attempt {job.attempts}"
        _end_attempt(state, job, models.JobError(type="LeaseExpired", message=message), now, may_retry=True)


def bury_exhausted(state: QueueState, now: Now) -> None:
    """Move claimable jobs without attempts left to the dead: only a foreign broker leaves such behind."""
    for job in [job for job in state.jobs if job.status == UNCLAIMED and not state.attempts_left(job)]:
        bury_exhausted_job(state, job, now)


def bury_exhausted_job(state: QueueState, job: Job, now: Now) -> None:
    """Move a claimable job without attempts left to the dead."""
    message = f"all {job.attempts} attempts were used up before this broker led"
    _end_attempt(state, job, models.JobError(type="AttemptsExhausted", message=message), now, may_retry=False)


def _end_attempt(state: QueueState, job: Job, error: models.JobError, now: Now, *, may_retry: bool) -> None:
    message = error.message
    if state.is_short_of_room(len(message)):
        message = message[:_SHORTEST_MESSAGE]  # an error must never be what makes the document too large
    job.last_error = {
        "type": error.type[:ERROR_TYPE_LIMIT],
        "message": message[:ERROR_MESSAGE_LIMIT],
        "at": now.wall_ms,
    }
    if may_retry and state.attempts_left(job):
        state.release(job)
    else:
        state.bury(job, now)


def _each(
    state: QueueState,
    request: models.LeasedJobs,
    do: Callable[[Job], None],
    places: int = ALL,
) -> models.LeasedResults:
    """Do it to each job of a batch whose bit is set and whose lease holds, and say of the others why not."""
    results = []
    for place, lease in enumerate(request.jobs):
        result = _DONE_ENTRY
        if places >> place & 1:
            try:
                do(_leased(state, lease.job_id, request.worker_id, lease.lease_token))
            except (JobNotFoundError, LeaseLostError) as error:
                result = models.LeasedEntry(error=entry_error(error))
        results.append(result)
    return models.LeasedResults(results=tuple(results))


def _leased(state: QueueState, job_id: str, worker_id: str, token: str | None) -> Job:
    job = state.jobs.get(job_id)
    if job is None:
        if state.segments.may_hold(job_id):  # none is read for that: nobody runs what stands in one
            raise _lost(worker_id, job_id, token)
        raise _not_found(job_id)
    is_holder = job.worker_id == worker_id if token is None else job.lease_token == token
    if job.status != IN_PROGRESS or not is_holder:
        raise _lost(worker_id, job_id, token)
    return job


def _not_found(job_id: str) -> JobNotFoundError:
    return JobNotFoundError(f"no job {job_id}: it was completed, it is dead, or it never was")


def _lost(worker_id: str, job_id: str, token: str | None) -> LeaseLostError:
    which = "the lease" if token is None else "this lease"
    return LeaseLostError(f"worker {worker_id} does not hold {which} of job {job_id}")
