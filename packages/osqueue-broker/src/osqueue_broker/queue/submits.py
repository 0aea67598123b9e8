"""Jobs are added at the end of the queue."""

from __future__ import annotations

from typing import Final

from osqueue_client import models
from osqueue_client.errors import QueueFullError

from .entries import entry_error
from .ids import numbered
from .job import Job
from .mutation import Mutation
from .rules import Now
from .state import QueueState

_RESERVE: Final = 64
"""Submits leave this fraction of the document free, for what has to be remembered of claims."""


def submit(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """Add one job."""
    request = mutation.request
    assert isinstance(request, models.SubmitJob)
    _add(state, mutation.new_id, request, now)
    return models.JobSubmitted(job_id=mutation.new_id)


def submit_many(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """Add many jobs, in order, up to the first for which there is no room."""
    request = mutation.request
    assert isinstance(request, models.SubmitJobs)
    added = 0
    for id, new_job in zip(numbered(mutation.new_id, len(request.jobs)), request.jobs, strict=True):
        try:
            _add(state, id, new_job, now)
        except QueueFullError as error:
            if not added:
                raise
            return submitted(request, mutation.new_id, added, error)
        added += 1
    return submitted(request, mutation.new_id, added)


def submitted(
    request: models.SubmitJobs, first: str, added: int, error: QueueFullError | None = None
) -> models.JobsSubmitted:
    """Return the answer to a batch of which the first so many were added."""
    results = [models.SubmittedEntry(job_id=id) for id in numbered(first, added)]
    if left := len(request.jobs) - added:
        refusal = entry_error(
            error or QueueFullError("the queue was full when the jobs before it were added")
        )
        results += [models.SubmittedEntry(error=refusal)] * left
    return models.JobsSubmitted(results=tuple(results))


def _add(state: QueueState, id: str, new_job: models.NewJob | models.SubmitJob, now: Now) -> None:
    job = Job.submitted(
        id=id,
        payload=new_job.payload,
        type=new_job.type,
        max_attempts=None if new_job.max_attempts is None else max(new_job.max_attempts, 1),
        created_at=now.wall_ms,
        position=state.next_position(),
    )
    limit = state.rules.max_document_bytes
    if limit is not None and state.bytes + job.size + limit // _RESERVE > limit:
        raise QueueFullError(
            f"the queue holds {state.bytes:,} bytes, and the store takes {limit:,} in one object"
        )
    state.add(job)
