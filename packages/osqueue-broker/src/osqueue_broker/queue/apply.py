"""What a batch of requests does to the queue. A request that cannot be done fails alone, never its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final

from osqueue_client import operations
from osqueue_client.errors import OsqueueError
from osqueue_client.operations import AnyOperation

from . import burials, claims, leases, reads, sealing, submits
from .entries import entries_done
from .mutation import DONE, FOR_JOB, Answer, Mutation, Outcome
from .once import answer_once
from .rules import Now
from .segment import Segment, SegmentNeeded
from .state import QueueState


@dataclass(frozen=True, slots=True)
class Applied:
    """The answers to a batch, one a mutation, and whether a commit must land before they are given.

    `late` are claims of earlier batches that have waited until now, with their answers; `needed` the segments that must
    be read before those can be answered whose answer is `SegmentNeeded`.
    """

    answers: list[Answer]
    late: list[tuple[Mutation, Answer]]
    needed: list[Segment]
    has_changed: bool


def apply(state: QueueState, batch: Sequence[Mutation], now: Now) -> Applied:
    """Do the mutations; return their answers in the same order.

    What proves that a worker is alive goes first, then leases expire: a heartbeat that had to wait for the store keeps
    its lease. Claims come last, those that have waited before those of the batch.
    """
    before = state.changes
    answers: list[Answer] = [DONE] * len(batch)
    others: list[int] = []
    new_claims: list[int] = []
    for place, mutation in enumerate(batch):
        name = mutation.operation.name
        if name in _OF_LEASES:
            answers[place] = _answer(state, mutation, now)
        elif name in _CLAIMS:
            new_claims.append(place)
        else:
            others.append(place)
    leases.expire(state, now)
    for place in others:
        answers[place] = _answer(state, batch[place], now)
    late = _answer_waiting(state, now)
    for place in new_claims:
        answers[place] = _answer(state, batch[place], now)
    return Applied(answers, late, _needed(answers, late), state.changes != before)


def never_changes(operation: AnyOperation) -> bool:
    """Whether an operation owes no commit, whatever the state: reads, and heartbeats."""
    return operation.is_read or operation.name in _HEARTBEATS


def answer_without_commit(state: QueueState, batch: Sequence[Mutation], now: Now) -> Applied:
    """Answer what never changes anything; no lease expires meanwhile."""
    answers = [_answer(state, mutation, now) for mutation in batch]
    return Applied(answers, [], _needed(answers, []), has_changed=False)


def requests_done(batch: Sequence[Mutation], applied: Applied) -> int:
    """Return how many requests that may change the queue were done, each entry of a batch counted."""
    answered = (*zip(batch, applied.answers, strict=True), *applied.late)
    return sum(entries_done(answer) for mutation, answer in answered if mutation.operation.name in _CHANGES)


def _needed(answers: list[Answer], late: list[tuple[Mutation, Answer]]) -> list[Segment]:
    later = [
        answer for answer in (*answers, *(answer for _, answer in late)) if isinstance(answer, SegmentNeeded)
    ]
    return [answer.segment for answer in later]


def _answer(state: QueueState, mutation: Mutation, now: Now) -> Answer:
    do = _HANDLERS[mutation.operation.name]
    request_id = getattr(mutation.request, "request_id", None)
    try:
        if request_id is not None:
            return answer_once(state, mutation, request_id, now, do)
        return do(state, mutation, now)
    except (OsqueueError, SegmentNeeded) as error:
        return error


def _answer_waiting(state: QueueState, now: Now) -> list[tuple[Mutation, Answer]]:
    """Give the jobs that have become claimable, oldest first, to the claims that have waited longest for them.

    A claim that was sent again while it waited is answered each time.
    """
    answered: list[tuple[Mutation, Answer]] = []
    waiting = state.waiting_claims
    types = state.take_offered_types()
    if not len(waiting):
        return answered
    heads = [(job.position, type) for type in types if (job := state.first_of_type(type)) is not None]
    heapify(heads)
    while heads and len(waiting):
        position, type = heappop(heads)
        job = state.first_of_type(type)
        if job is not None and job.position == position:
            claim = waiting.first_for(type)
            if claim is None:
                continue
            for each in (claim, *waiting.other_repeats_of(claim)):  # those get the answer to it
                waiting.remove(each.new_id)
                answer = _answer(state, each, now)
                if answer is not FOR_JOB:  # else it names other types, and waits on
                    answered.append((each, answer))
            job = state.first_of_type(type)
        if job is not None:
            heappush(heads, (job.position, type))
    return answered


_HEARTBEATS: Final = frozenset({operations.HEARTBEAT.name, operations.HEARTBEAT_JOBS.name})

_OF_LEASES: Final = _HEARTBEATS | {
    operations.COMPLETE_JOB.name, operations.COMPLETE_JOBS.name, operations.FAIL_JOB.name,
}  # fmt: skip

_CHANGES: Final = frozenset(
    operation.name for operation in operations.OPERATIONS if not never_changes(operation)
)

_CLAIMS: Final = frozenset({operations.CLAIM_JOB.name, operations.CLAIM_JOBS.name})

_Handler = Callable[[QueueState, Mutation, Now], Outcome]
_HANDLERS: Final[dict[str, _Handler]] = {
    operations.SUBMIT_JOB.name: submits.submit,
    operations.SUBMIT_JOBS.name: submits.submit_many,
    operations.CLAIM_JOB.name: claims.claim,
    operations.CLAIM_JOBS.name: claims.claim_many,
    operations.HEARTBEAT.name: leases.heartbeat,
    operations.HEARTBEAT_JOBS.name: leases.heartbeat_many,
    operations.COMPLETE_JOB.name: leases.complete,
    operations.COMPLETE_JOBS.name: leases.complete_many,
    operations.FAIL_JOB.name: leases.fail,
    operations.GET_STATS.name: reads.stats,
    operations.LIST_JOBS.name: reads.list_jobs,
    operations.LIST_DEAD.name: reads.list_dead,
    operations.REQUEUE_DEAD.name: burials.requeue_dead,
    operations.DELETE_DEAD.name: burials.delete_dead,
    claims.UNDELIVERED.name: claims.take_back,
    sealing.SEAL.name: sealing.seal,
}
