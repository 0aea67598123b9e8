"""Jobs are leased to those who ask, at once or as soon as there are some, and taken back from who never heard of it."""

from __future__ import annotations

from typing import Final

from osqueue_client import models
from osqueue_client.errors import BrokerProtocolError, QueueFullError
from osqueue_client.models import Empty, Model
from osqueue_client.operations import Operation

from .job import Job
from .leases import bury_exhausted_job
from .mutation import DONE, FOR_JOB, Mutation, Outcome
from .rules import Now
from .segment import SegmentNeeded
from .state import QueueState

WORKER_ID_LIMIT: Final = 1024
"""Characters of a worker's id."""

TYPES_LIMIT: Final = 1000
"""Job types that one claim may name."""

ANSWER_BYTES: Final = 1024 * 1024
"""Bytes of jobs after which a batch takes no further one."""

WAITING_LIMIT: Final = 10_000
"""Claims that may wait for jobs."""

UNCONFIRMED_TIMEOUT: Final = 10.0
"""Seconds for which a lease waits to be asked for again, when the answer with it has reached nobody."""


class UndeliveredLeases(Model, frozen=True, kw_only=True):
    """The answer with these leases has reached nobody. `may_be_repeated`: its claim had an id."""

    job_ids: tuple[str, ...]
    lease_token: str
    may_be_repeated: bool


UNDELIVERED: Final = Operation(
    "undelivered", UndeliveredLeases, Empty,
    "POST", "", 204, "work", "Take back leases that nobody was told of: the broker's own, and on no wire.",
)  # fmt: skip


def undelivered(request: Model, answer: Model) -> Mutation | None:
    """Return what has to be done when the answer to a request has reached nobody; None when that does no harm."""
    claimed: tuple[models.ClaimedJob, ...]
    match answer:
        case models.ClaimedJob(job_id=str()):
            claimed = (answer,)
        case models.ClaimedJobs(jobs=jobs) if jobs:
            claimed = jobs
        case _:
            return None
    assert isinstance(request, models.ClaimJob | models.ClaimJobs)
    token = claimed[0].lease_token
    if token is None:
        return None
    leases = UndeliveredLeases(
        job_ids=tuple(job.job_id for job in claimed if job.job_id is not None),
        lease_token=token,
        may_be_repeated=request.request_id is not None,
    )
    return Mutation(UNDELIVERED, leases)


def claim(state: QueueState, mutation: Mutation, now: Now) -> Outcome:
    """Lease the oldest claimable job, or wait for one."""
    request = mutation.request
    assert isinstance(request, models.ClaimJob)
    _check(mutation, request)
    job = _lease_first(state, request, mutation.new_id, now)
    if job is None:
        return _wait(state, mutation, request.wait) or models.ClaimedJob()
    return job.claimed()


def claim_many(state: QueueState, mutation: Mutation, now: Now) -> Outcome:
    """Lease the oldest claimable jobs up to the limit, or wait for the first that come."""
    request = mutation.request
    assert isinstance(request, models.ClaimJobs)
    _check(mutation, request)
    jobs: list[models.ClaimedJob] = []
    size = 0
    while len(jobs) < (request.limit or 1) and size < ANSWER_BYTES:
        try:
            job = _lease_first(state, request, mutation.new_id, now)
        except SegmentNeeded:
            if not jobs:
                raise
            break  # what there is will do
        if job is None:
            break
        jobs.append(job.claimed())
        size += job.size
    if not jobs:
        return _wait(state, mutation, request.wait) or models.ClaimedJobs()
    return models.ClaimedJobs(jobs=tuple(jobs))


def take_back(state: QueueState, mutation: Mutation, now: Now) -> Model:
    """Take back leases that nobody was told of."""
    request = mutation.request
    assert isinstance(request, UndeliveredLeases)
    for job_id in request.job_ids:
        job = state.running(job_id, request.lease_token)
        if job is not None:
            state.doubt(job, UNCONFIRMED_TIMEOUT if request.may_be_repeated else 0.0, now)
    return DONE


def _lease_first(
    state: QueueState, request: models.ClaimJob | models.ClaimJobs, token: str, now: Now
) -> Job | None:
    while (job := state.first_claimable(request.types or ())) is not None:
        if state.attempts_left(job):
            state.lease(job, request.worker_id, token or None, now)
            return job
        bury_exhausted_job(state, job, now)  # out of a segment of a leader that allowed more
    return None


def _wait(state: QueueState, mutation: Mutation, wait: float | None) -> Outcome | None:
    if not wait:
        return None
    if len(state.waiting_claims) >= WAITING_LIMIT:
        raise QueueFullError(f"{WAITING_LIMIT:,} claims wait for jobs", retry_after=1.0)
    state.waiting_claims.add(mutation)
    return FOR_JOB


def _check(mutation: Mutation, request: models.ClaimJob | models.ClaimJobs) -> None:
    name = mutation.operation.name
    if len(request.worker_id) > WORKER_ID_LIMIT:
        raise BrokerProtocolError(
            f"{name}: field 'workerId' is longer than {WORKER_ID_LIMIT:,} characters", field="workerId"
        )
    if request.types and len(request.types) > TYPES_LIMIT:
        raise BrokerProtocolError(
            f"{name}: field 'types' names more than {TYPES_LIMIT:,} types: send [] to claim any",
            field="types",
        )
