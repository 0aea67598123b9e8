"""What each operation does to the queue. A request that cannot be done fails alone, never its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from osqueue_client import models, operations
from osqueue_client.errors import (
    BrokerProtocolError,
    JobNotFoundError,
    LeaseLostError,
    OsqueueError,
    QueueFullError,
)
from osqueue_client.models import Model, RequestId
from osqueue_client.operations import AnyOperation, Operation

from .dead import DeadJob
from .job import IN_PROGRESS, UNCLAIMED, Job
from .once import answer_once
from .rules import Now
from .state import QueueState

DEAD_PAGE: Final = 100
"""Dead jobs on a page when the request does not say."""

_RESERVE: Final = 64
"""Submits leave this fraction of the document free, for what has to be remembered of claims."""

WORKER_ID_LIMIT: Final = 1024
"""Characters of a worker's id."""

TYPES_LIMIT: Final = 1000
"""Job types that one claim may name."""

ERROR_TYPE_LIMIT: Final = 256
ERROR_MESSAGE_LIMIT: Final = 8192
"""Characters that are kept of an error; the rest is cut off."""

_SHORTEST_MESSAGE: Final = 100

UNCONFIRMED_TIMEOUT: Final = 10.0
"""Seconds for which a lease waits to be asked for again, when the answer with it has reached nobody."""


class UndeliveredLease(Model, frozen=True, kw_only=True):
    """The answer with a lease has reached nobody. `may_be_repeated`: its claim had an id."""

    job_id: str
    lease_token: str
    may_be_repeated: bool


UNDELIVERED: Final = Operation(
    "undelivered", UndeliveredLease, models.Empty,
    "POST", "", 204, "work", "Take back a lease that nobody was told of: the broker's own, and on no wire.",
)  # fmt: skip


def undelivered(request: Model, answer: Model) -> Mutation | None:
    """Return what has to be done when the answer to a request has reached nobody; None when that does no harm."""
    if not isinstance(answer, models.ClaimedJob) or answer.job_id is None or answer.lease_token is None:
        return None
    assert isinstance(request, models.ClaimJob)
    return Mutation(
        UNDELIVERED,
        UndeliveredLease(
            job_id=answer.job_id,
            lease_token=answer.lease_token,
            may_be_repeated=request.request_id is not None,
        ),
    )


@dataclass(frozen=True, slots=True)
class Mutation:
    """One request to the queue, a read included. `new_id` names the job or the lease that it may make."""

    operation: AnyOperation
    request: Model
    new_id: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """The answers to a batch, one a mutation, and whether a commit must land before they are given."""

    answers: list[Model | OsqueueError]
    has_changed: bool


def apply(state: QueueState, batch: Sequence[Mutation], now: Now) -> Applied:
    """Do the mutations; return their answers in the same order.

    What proves that a worker is alive goes first, then leases expire, then comes all else: a heartbeat that had
    to wait for the store keeps its lease.
    """
    before = state.changes
    answers: list[Model | OsqueueError] = [_DONE] * len(batch)
    others: list[int] = []
    for place, mutation in enumerate(batch):
        if mutation.operation.name in _OF_LEASES:
            answers[place] = _answer(state, mutation, now)
        else:
            others.append(place)
    expire(state, now)
    for place in others:
        answers[place] = _answer(state, batch[place], now)
    return Applied(answers, state.changes != before)


def never_changes(operation: AnyOperation) -> bool:
    """Whether an operation owes no commit, whatever the state: reads, and heartbeats."""
    return operation.is_read or operation is operations.HEARTBEAT


def answer_without_commit(
    state: QueueState, batch: Sequence[Mutation], now: Now
) -> list[Model | OsqueueError]:
    """Answer what never changes anything; no lease expires meanwhile."""
    return [_answer(state, mutation, now) for mutation in batch]


def _answer(state: QueueState, mutation: Mutation, now: Now) -> Model | OsqueueError:
    request_id: RequestId | None = getattr(mutation.request, "request_id", None)
    try:
        if request_id is not None:
            return answer_once(state, mutation.operation, request_id, now, lambda: _do(state, mutation, now))
        return _HANDLERS[mutation.operation.name](state, mutation, now)
    except OsqueueError as error:
        return error


def _do(state: QueueState, mutation: Mutation, now: Now) -> Model:
    return _HANDLERS[mutation.operation.name](state, mutation, now)


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
        message = f"all {job.attempts} attempts were used up before this broker led"
        _end_attempt(
            state, job, models.JobError(type="AttemptsExhausted", message=message), now, may_retry=False
        )


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


def _submit(state: QueueState, mutation: Mutation, now: Now) -> Model:
    request = mutation.request
    assert isinstance(request, models.SubmitJob)
    job = Job.submitted(
        id=mutation.new_id,
        payload=request.payload,
        type=request.type,
        max_attempts=None if request.max_attempts is None else max(request.max_attempts, 1),
        created_at=now.wall_ms,
        position=state.next_position(),
    )
    limit = state.rules.max_document_bytes
    if limit is not None and state.bytes + job.size + limit // _RESERVE > limit:
        raise QueueFullError(
            f"the queue holds {state.bytes:,} bytes, and the store takes {limit:,} in one object"
        )
    state.add(job)
    return models.JobSubmitted(job_id=job.id)


def _claim(state: QueueState, mutation: Mutation, now: Now) -> Model:
    request = mutation.request
    assert isinstance(request, models.ClaimJob)
    if len(request.worker_id) > WORKER_ID_LIMIT:
        raise BrokerProtocolError(
            f"claimJob: field 'workerId' is longer than {WORKER_ID_LIMIT:,} characters", field="workerId"
        )
    if request.types and len(request.types) > TYPES_LIMIT:
        raise BrokerProtocolError(
            f"claimJob: field 'types' names more than {TYPES_LIMIT:,} types: send [] to claim any",
            field="types",
        )
    job = state.first_claimable(request.types or ())
    if job is None:
        return models.ClaimedJob()
    state.lease(job, request.worker_id, mutation.new_id or None, now)
    return job.claimed()


def _heartbeat(state: QueueState, mutation: Mutation, now: Now) -> Model:
    request = mutation.request
    assert isinstance(request, models.LeasedJob)
    state.heartbeat(_leased(state, request), now)
    return _DONE


def _complete(state: QueueState, mutation: Mutation, now: Now) -> Model:
    request = mutation.request
    assert isinstance(request, models.LeasedJob)
    state.complete(_leased(state, request))
    return _DONE


def _fail(state: QueueState, mutation: Mutation, now: Now) -> Model:
    request = mutation.request
    assert isinstance(request, models.FailJob)
    job = _leased(state, request)
    _end_attempt(state, job, request.error, now, may_retry=request.retry is not False)
    return _DONE


def _undelivered(state: QueueState, mutation: Mutation, now: Now) -> Model:
    request = mutation.request
    assert isinstance(request, UndeliveredLease)
    job = state.running(request.job_id, request.lease_token)
    if job is not None:
        state.doubt(job, UNCONFIRMED_TIMEOUT if request.may_be_repeated else 0.0, now)
    return _DONE


def _requeue_dead(state: QueueState, mutation: Mutation, now: Now) -> Model:
    state.requeue(_dead(state, mutation.request))
    return _DONE


def _delete_dead(state: QueueState, mutation: Mutation, now: Now) -> Model:
    state.delete_dead(_dead(state, mutation.request))
    return _DONE


def _dead(state: QueueState, request: Model) -> DeadJob:
    assert isinstance(request, models.DeadJobRef)
    dead = state.dead.get(request.job_id)
    if dead is None:
        raise JobNotFoundError(f"no dead job {request.job_id}")
    return dead


def _stats(state: QueueState, mutation: Mutation, now: Now) -> Model:
    return models.QueueStats(
        total=len(state.jobs),
        unclaimed=state.unclaimed,
        in_progress=state.in_progress,
        completed_total=state.completed_total,
        dead=len(state.dead),
    )


def _list_jobs(state: QueueState, mutation: Mutation, now: Now) -> Model:
    if state.listing is None:  # one for all who ask before the next change
        state.listing = models.JobList(
            jobs=tuple(_info(job) for job in state.jobs),
            total=len(state.jobs),
            unclaimed=state.unclaimed,
            in_progress=state.in_progress,
            completed_total=state.completed_total,
        )
    return state.listing


def _list_dead(state: QueueState, mutation: Mutation, now: Now) -> Model:
    request = mutation.request
    assert isinstance(request, models.ListDead)
    after = _cursor(request.cursor)
    limit = request.limit or DEAD_PAGE
    page: list[DeadJob] = []
    for dead in state.dead:
        if dead.number <= after:
            continue
        if len(page) == limit:
            return models.DeadJobList(
                jobs=tuple(dead.view() for dead in page),
                total=len(state.dead),
                next_cursor=str(page[-1].number),
            )
        page.append(dead)
    return models.DeadJobList(jobs=tuple(dead.view() for dead in page), total=len(state.dead))


def _cursor(text: str | None) -> int:
    if not text:
        return 0
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    raise BrokerProtocolError("listDead: field 'cursor' is not one that listDead answered", field="cursor")


def _leased(state: QueueState, request: models.LeasedJob) -> Job:
    job = state.jobs.get(request.job_id)
    if job is None:
        raise JobNotFoundError(f"no job {request.job_id}: it was completed, it is dead, or it never was")
    token = request.lease_token
    is_holder = job.worker_id == request.worker_id if token is None else job.lease_token == token
    if job.status != IN_PROGRESS or not is_holder:
        which = "the lease" if token is None else "this lease"
        raise LeaseLostError(f"worker {request.worker_id} does not hold {which} of job {request.job_id}")
    return job


def _info(job: Job) -> models.JobInfo:
    return models.JobInfo(
        id=job.id,
        status=job.status,
        payload=job.payload,
        type=job.type or None,
        worker_id=job.worker_id,
        created_at=job.created_at,
        attempts=job.attempts,
        max_attempts=job.max_attempts or 0,
        heartbeat=job.heartbeat or 0,
    )


_DONE: Final = models.Empty()

_OF_LEASES: Final = frozenset(
    operation.name for operation in (operations.HEARTBEAT, operations.COMPLETE_JOB, operations.FAIL_JOB)
)

_Handler = Callable[[QueueState, Mutation, Now], Model]
_HANDLERS: Final[dict[str, _Handler]] = {
    operations.SUBMIT_JOB.name: _submit,
    operations.CLAIM_JOB.name: _claim,
    operations.HEARTBEAT.name: _heartbeat,
    operations.COMPLETE_JOB.name: _complete,
    operations.FAIL_JOB.name: _fail,
    operations.GET_STATS.name: _stats,
    operations.LIST_JOBS.name: _list_jobs,
    operations.LIST_DEAD.name: _list_dead,
    operations.REQUEUE_DEAD.name: _requeue_dead,
    operations.DELETE_DEAD.name: _delete_dead,
    UNDELIVERED.name: _undelivered,
}
