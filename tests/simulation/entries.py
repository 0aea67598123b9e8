"""Batches, taken apart: each entry is looked at as the single call that it stands for.

A batch of submits, completions or heartbeats is one call for each entry. A batch of claims is one call, too, that may
have been answered with several jobs; as long as nobody knows with how many, it may have been as many as it asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from msgspec import Raw

from osqueue_client import models as m
from osqueue_client.errors import OsqueueError, error_from_wire
from osqueue_client.models import Model

from .history import Call, Delivery, History

SINGLE = {
    "submitJobs": "submitJob",
    "claimJobs": "claimJob",
    "completeJobs": "completeJob",
    "heartbeatJobs": "heartbeat",
}
"""The single operations that the entries of batches stand for."""


class Singles:
    """The calls and deliveries of a run, with an own one for each entry of a batch."""

    def __init__(self, history: History) -> None:
        self.calls: list[Call] = []
        self.deliveries: list[Delivery] = []
        self._of: dict[int, list[Delivery]] = {}
        for call in history.calls:
            self.calls += self._taken_apart(call) if call.operation in SINGLE else [call]
        for delivery in history.deliveries:
            self.deliveries += self._of.get(id(delivery), [delivery])

    def _taken_apart(self, call: Call) -> list[Call]:
        if isinstance(call.request, m.ClaimJobs):
            single = replace(call, operation=SINGLE[call.operation], deliveries=[])
            for delivery in _of_batch(call):
                for request, answer, error in _claims(delivery):
                    self._add(single, delivery, request, answer, error)
            return [single]
        singles = []
        for place, (request, answer, error) in enumerate(_entries(call)):
            single = replace(
                call, operation=SINGLE[call.operation], request=request, answer=answer, error=error,
                entry=place, mark=mark_of(request), deliveries=[],
            )  # fmt: skip
            singles.append(single)
        for delivery in _of_batch(call):
            for single, (request, answer, error) in zip(singles, _entries(delivery), strict=True):
                self._add(single, delivery, request, answer, error)
        return singles

    def _add(
        self, call: Call, delivery: Delivery, request: Model, answer: Model | None, error: OsqueueError | None
    ) -> None:
        single = replace(
            delivery, call=call, operation=call.operation, request=request, answer=answer, error=error
        )
        call.deliveries.append(single)
        self._of.setdefault(id(delivery), []).append(single)


def mark_of(request: Model) -> int | None:
    """Return the number in the payload of a submit."""
    if isinstance(request, m.NewJob) and isinstance(request.payload, Raw):
        return int(bytes(request.payload))
    return None


def _of_batch(call: Call) -> list[Delivery]:
    """Return its deliveries without those of what its client had to ask first."""
    return [delivery for delivery in call.deliveries if delivery.operation == call.operation]


_Single = tuple[Model, Model | None, OsqueueError | None]


def _entries(asked: Call | Delivery) -> Iterator[_Single]:
    """Yield each entry of a batch that is no claim, and what came of it."""
    request, answer, error = asked.request, asked.answer, asked.error
    match request:
        case m.SubmitJobs():
            for place, job in enumerate(request.jobs):
                single: Model = m.SubmitJob(
                    payload=job.payload,
                    type=job.type,
                    max_attempts=job.max_attempts,
                    request_id=request.request_id,
                )
                if not isinstance(answer, m.JobsSubmitted):
                    yield single, None, error  # type: ignore[misc]  # the call of a program may end in any error
                    continue
                result = answer.results[place]
                if result.job_id is not None:
                    yield single, m.JobSubmitted(job_id=result.job_id), None
                else:
                    yield single, None, _error(result.error)
        case m.LeasedJobs():
            for place, lease in enumerate(request.jobs):
                fields = {
                    "job_id": lease.job_id,
                    "worker_id": request.worker_id,
                    "lease_token": lease.lease_token,
                }
                if isinstance(request, m.LeasedChanges):
                    single = m.LeasedChange(**fields, request_id=request.request_id)  # type: ignore[arg-type]
                else:
                    single = m.LeasedJob(**fields)  # type: ignore[arg-type]
                if not isinstance(answer, m.LeasedResults):
                    yield single, None, error  # type: ignore[misc]
                    continue
                refusal = answer.results[place].error
                yield (
                    single,
                    m.Empty() if refusal is None else None,
                    None if refusal is None else _error(refusal),
                )
        case _:
            raise AssertionError(f"{request} is no batch")


def _claims(delivery: Delivery) -> Iterator[_Single]:
    """Yield a claim for each job that the batch was answered with, or may have been."""
    request, answer = delivery.request, delivery.answer
    assert isinstance(request, m.ClaimJobs)
    single = m.ClaimJob(
        worker_id=request.worker_id, types=request.types, wait=request.wait, request_id=request.request_id
    )
    if isinstance(answer, m.ClaimedJobs):
        for claimed in answer.jobs or (m.ClaimedJob(),):
            yield single, claimed, None
        return
    is_unclear = delivery.error is None or delivery.error.outcome == "unknown"
    for _ in range(request.limit or 1) if is_unclear else (0,):
        yield single, None, delivery.error


def _error(error: m.EntryError | None) -> OsqueueError:
    assert error is not None, "an entry without a result has an error"
    fields: dict[str, object] = {"_tag": error.tag, "message": error.message, "outcome": error.outcome}
    return error_from_wire(fields, method="batch", status=503)
