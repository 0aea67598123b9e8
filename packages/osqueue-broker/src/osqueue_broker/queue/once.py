"""Requests with an id are done once: a repeat gets the first answer, and one that comes too late is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from osqueue_client import models
from osqueue_client.errors import BrokerProtocolError, QueueFullError, RequestExpiredError
from osqueue_client.models import Model, RequestId
from osqueue_client.operations import CLAIM_JOB, SUBMIT_JOB, AnyOperation

from .rules import Now
from .sessions import ANSWERS_LIMIT, LONGEST_AGE_MS, SESSIONS_LIMIT, ClientSession, Remembered
from .state import QueueState

_CLAIM_ROOM: Final = 256
"""Bytes that remembering a claim may add to the document."""

_DONE: Final = models.Empty()


def answer_once(
    state: QueueState, operation: AnyOperation, id: RequestId, now: Now, do: Callable[[], Model]
) -> Model:
    """Return the first answer to a request, or what `do` returns if there was none.

    Only what changed the queue is remembered: an error or an empty claim had no effect, and may be done anew.
    Raises what `do` raises, and `RequestExpiredError` when the first answer may have been forgotten.
    """
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
            answer = _again(state, operation, first, now)
            if answer is not None:
                return answer
            sessions.forget(session, id.number)
    _require_room(state, operation, session)
    changes = state.changes
    answer = do()
    if state.changes != changes:
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


def _require_room(state: QueueState, operation: AnyOperation, session: ClientSession | None) -> None:
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
    # Only claims: whatever ends a job makes room.
    if operation is CLAIM_JOB and state.is_short_of_room(_CLAIM_ROOM):
        raise QueueFullError("the queue document has no room to remember a claim", retry_after=1.0)


def _again(state: QueueState, operation: AnyOperation, first: Remembered, now: Now) -> Model | None:
    """Return the first answer; None for a claim whose lease is over: its job may be anywhere now."""
    match first:
        case Remembered(job_id=str(job_id), token=str(token)) if operation is CLAIM_JOB:
            job = state.running(job_id, token)
            if job is None:
                return None
            state.hand_out_again(job, now)
            return job.claimed()
        case Remembered(job_id=str(job_id), token=None) if operation is SUBMIT_JOB:
            return models.JobSubmitted(job_id=job_id)
        case Remembered(job_id=None) if operation is not CLAIM_JOB and operation is not SUBMIT_JOB:
            return _DONE
    raise BrokerProtocolError(
        f"{operation.name}: field 'requestId.number' is that of another request",
        field="requestId.number",
        method=operation.name,
    )


def _remembered(number: int, answer: Model) -> Remembered:
    match answer:
        case models.JobSubmitted(job_id=job_id):
            return Remembered(number, job_id)
        case models.ClaimedJob(job_id=job_id, lease_token=token):
            return Remembered(number, job_id, token)
    return Remembered(number)
