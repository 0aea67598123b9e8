"""The entries of a batch: how one is refused, and how many were done."""

from __future__ import annotations

from osqueue_client import models
from osqueue_client.errors import OsqueueError
from osqueue_client.models import EntryError


def entry_error(error: OsqueueError) -> EntryError:
    """Return an error as the answer to one entry: it had no effect."""
    return EntryError(
        tag=error.tag,
        message=error.message,
        field=getattr(error, "field", None),
        outcome="not_applied",
        retry_after=getattr(error, "retry_after", None),
    )


def entries_done(answer: object) -> int:
    """Return how many entries of a request that may change the queue were done, as its answer tells."""
    match answer:
        case models.JobSubmitted() | models.Empty():
            return 1
        case models.ClaimedJob(job_id=job_id):
            return job_id is not None
        case models.ClaimedJobs(jobs=jobs):
            return len(jobs)
        case models.JobsSubmitted(results=results) | models.LeasedResults(results=results):
            return sum(result.error is None for result in results)
    return 0
