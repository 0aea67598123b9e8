"""Requests with an id are done once: a repeat gets the first answer, and one that comes too late is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from osqueue_client import models
from osqueue_client.errors import BrokerProtocolError, QueueFullError, RequestExpiredError
from osqueue_client.models import Model, RequestId
from osqueue_client.operations import CLAIM_JOB, CLAIM_JOBS, AnyOperation

from . import leases, submits
from .entries import entries_done
from .mutation import DONE, FOR_JOB, Mutation, Outcome
from .rules import Now
from .sessions import ANSWERS_LIMIT, BYTES_LIMIT, LONGEST_AGE_MS, SESSIONS_LIMIT, ClientSession, Remembered
from .state import QueueState

_CLAIM_ROOM: Final = 256
"""Bytes that remembering a claim may add to the document, however many jobs it gets."""


def answer_once(
    state: QueueState,
    mutation: Mutation,
    id: RequestId,
    now: Now,
    do: Callable[[QueueState, Mutation, Now], Outcome],
) -> Outcome:
    """Return the first answer to a request, or what `do` returns if there was none.

    Only what changed the queue is remembered: an error or an empty claim had no effect, and may be done anew.
    Raises what `do` raises, and `RequestExpiredError` when the first answer may have been forgotten.
    """
    operation = mutation.operation
    _check(operation, id)
    sessions = state.sessions
    session = sessions.get(id.session)
    if session is not None:
        sessions.use(session, id.lowest, now.served)
        if id.number < session.lowest:
            raise RequestExpiredError(
                f"{operation.name}: its client has said that it waits for request {id.number} no more"
            )
        first = session.answers.get(id.number)
        if first is not None:
            again = _again(state, mutation, first, session, now)
            if again is not None:
                return again
            sessions.forget(session, id.number)
    _require_room(state, mutation, session)
    changes = state.changes
    answer = do(state, mutation, now)
    if state.changes == changes or answer is FOR_JOB or not entries_done(answer):
        return answer
    if session is None:
        session = sessions.begin(id.session, id.lowest, now.served)
    sessions.remember(session, id.number, _remembered(id.number, answer))
    return answer


def _check(operation: AnyOperation, id: RequestId) -> None:
    if id.number < id.lowest:
        raise BrokerProtocolError(
            f"{operation.name}: field 'requestId.number' is below the lowest number that its client waits for",
            field="requestId.number",
            method=operation.name,
        )
    if id.age_ms > LONGEST_AGE_MS:
        raise RequestExpiredError(
            f"{operation.name}: the request was sent first {id.age_ms / 1000:g} s ago,"
            f" and may be repeated for {LONGEST_AGE_MS / 1000:g} s"
        )


def _require_room(state: QueueState, mutation: Mutation, session: ClientSession | None) -> None:
    operation = mutation.operation
    if session is None and len(state.sessions) >= SESSIONS_LIMIT:
        raise QueueFullError(
            f"{SESSIONS_LIMIT:,} clients have sent requests with ids of late", retry_after=1.0
        )
    if session is not None and len(session.answers) >= ANSWERS_LIMIT:
        raise QueueFullError(
            f"{operation.name}: {ANSWERS_LIMIT:,} requests are done that the client sent after request"
            f" {session.lowest}, for which it still waits",
            retry_after=1.0,
        )
    if isinstance(mutation.request, models.LeasedJob | models.LeasedJobs | models.DeadJobRef):
        return  # whatever ends a job makes room
    if state.sessions.bytes >= BYTES_LIMIT:
        raise QueueFullError(
            f"{operation.name}: {state.sessions.bytes:,} bytes of answers are remembered, for clients that may ask for"
            " them again",
            retry_after=1.0,
        )
    is_claim = isinstance(mutation.request, models.ClaimJob | models.ClaimJobs)
    if is_claim and state.is_short_of_room(_CLAIM_ROOM):
        raise QueueFullError("the queue document has no room to remember a claim", retry_after=1.0)


def _again(
    state: QueueState, mutation: Mutation, first: Remembered, session: ClientSession, now: Now
) -> Model | None:
    """Return the first answer; None for a claim whose leases are over: its jobs may be anywhere now."""
    request = mutation.request
    match first:
        case Remembered(token=str(token)) if mutation.operation in (CLAIM_JOB, CLAIM_JOBS):
            jobs = state.running_under(token)
            for job in jobs:
                state.hand_out_again(job, now)
            if not jobs:
                return None
            claimed = tuple(job.claimed() for job in jobs)
            return models.ClaimedJobs(jobs=claimed) if mutation.operation is CLAIM_JOBS else claimed[0]
        case Remembered(token=None, job_id=str(job_id), added=None) if isinstance(request, models.SubmitJob):
            return models.JobSubmitted(job_id=job_id)
        case Remembered(token=None, job_id=str(job_id), added=int(added)) if isinstance(
            request, models.SubmitJobs
        ) and added <= len(request.jobs):
            return submits.submitted(request, job_id, added)
        case Remembered(token=None, job_id=None, refused=refused) if isinstance(
            request, models.LeasedChanges
        ):
            results = leases.complete_rest(state, request, refused)
            still_refused = leases.refused(results)
            if still_refused != refused:
                state.sessions.forget(session, first.number)
                state.sessions.remember(
                    session, first.number, Remembered(first.number, refused=still_refused)
                )
            return results
        case Remembered(token=None, job_id=None, refused=0) if not isinstance(
            request, models.ClaimJob | models.ClaimJobs | models.SubmitJob | models.SubmitJobs
        ):
            return DONE
    name = mutation.operation.name
    raise BrokerProtocolError(
        f"{name}: field 'requestId.number' is that of another request", field="requestId.number", method=name
    )


def _remembered(number: int, answer: Model) -> Remembered:
    match answer:
        case models.JobSubmitted(job_id=job_id):
            return Remembered(number, job_id)
        case models.JobsSubmitted(results=results):
            added = sum(result.job_id is not None for result in results)
            return Remembered(number, results[0].job_id, added=added)
        case models.ClaimedJob(lease_token=token):
            return Remembered(number, token=token)
        case models.ClaimedJobs(jobs=jobs):
            return Remembered(number, token=jobs[0].lease_token)
        case models.LeasedResults():
            return Remembered(number, refused=leases.refused(answer))
    return Remembered(number)
