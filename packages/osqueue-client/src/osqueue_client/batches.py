"""Many jobs in one call: requests of a bounded size, one after another, and the answers put together again."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from . import models, operations
from .calls import Calls
from .errors import OsqueueError, RequestTooLargeError, error_from_wire
from .features import BATCH
from .models import BATCH_LIMIT, EntryError, Lease, LeasedJob, LeasedJobs, NewJob
from .operations import Operation
from .repeats import NOT_HERE, NotKnown
from .waiting import wait_for_jobs
from .wire_json import malformed_answer

E = TypeVar("E", NewJob, Lease)
R = TypeVar("R")

REQUEST_BYTES: Final = 750_000
"""Bytes of entries in one request: a broker takes 1 MiB unless it is told otherwise, and Connect's JSON makes four
bytes of three in a payload."""

_ENTRY_BYTES: Final = 128
"""Of an entry, at most, without its payload, its type and its ids."""

_SINGLES: Final = 16
"""Calls at a time where the broker takes no batches."""

_SINGLE_LEASES: Final = 64
"""More, since their order is nothing, and all must be done before a lease ends."""


async def submit(calls: Calls, jobs: Sequence[NewJob], timeout: float | None) -> list[str | OsqueueError]:
    """Add jobs; return for each its id, or why it was not added. Raises if no request was answered at all."""

    async def many(part: Sequence[NewJob]) -> list[str | OsqueueError]:
        request = models.SubmitJobs(jobs=tuple(part))
        answer = await calls.call(operations.SUBMIT_JOBS, request, timeout, needs=BATCH)
        return job_results(answer, len(part), operations.SUBMIT_JOBS)

    async def one(job: NewJob) -> str:
        request = models.SubmitJob(payload=job.payload, type=job.type, max_attempts=job.max_attempts)
        return (await calls.call(operations.SUBMIT_JOB, request, timeout)).job_id

    # Jobs are added in their order: what follows one that is refused is not sent.
    return await _each_part(jobs, many, one, _Course((OsqueueError,), patience=1, width=_SINGLES))


async def complete(
    calls: Calls, worker_id: str, leases: Sequence[Lease], timeout: float | None
) -> list[OsqueueError | None]:
    """End jobs as done; return for each None, or why it was not. Raises if no request was answered at all."""
    return await _each_lease(
        calls, operations.COMPLETE_JOBS, operations.COMPLETE_JOB, worker_id, leases, timeout
    )


async def heartbeat(
    calls: Calls, worker_id: str, leases: Sequence[Lease], timeout: float | None
) -> list[OsqueueError | None]:
    """Keep leases; return for each None, or why it was not kept. Raises if no request was answered at all."""
    return await _each_lease(
        calls, operations.HEARTBEAT_JOBS, operations.HEARTBEAT, worker_id, leases, timeout
    )


async def _each_lease(
    calls: Calls,
    many: Operation[LeasedJobs, models.LeasedResults],
    one: Operation[LeasedJob, models.Empty],
    worker_id: str,
    leases: Sequence[Lease],
    timeout: float | None,
) -> list[OsqueueError | None]:
    async def ask_many(part: Sequence[Lease]) -> list[OsqueueError | None]:
        request = many.request(worker_id=worker_id, jobs=tuple(part))
        answer = await calls.call(many, request, timeout, needs=BATCH)
        return lease_results(answer, len(part), many)

    async def ask_one(lease: Lease) -> None:
        request = one.request(job_id=lease.job_id, worker_id=worker_id, lease_token=lease.lease_token)
        await calls.call(one, request, timeout)

    # What is refused is a matter of one lease. A broker that is away is away for all.
    course = _Course(NOT_HERE, patience=_SINGLE_LEASES, width=_SINGLE_LEASES)
    return await _each_part(leases, ask_many, ask_one, course)


async def claim(
    calls: Calls,
    worker_id: str,
    types: tuple[str, ...] | None,
    limit: int,
    wait: float,
    timeout: float | None,
) -> list[models.ClaimedJob]:
    """Lease jobs, up to a limit; of a broker that takes no batches by single claims that do not wait."""
    request = models.ClaimJobs(worker_id=worker_id, types=types, limit=limit)
    try:
        answer = await wait_for_jobs(
            calls, operations.CLAIM_JOBS, request, wait, timeout, has_jobs=lambda given: bool(given.jobs), needs=BATCH
        )  # fmt: skip
    except NotKnown:
        return await _claim_singly(calls, worker_id, types, limit, timeout)
    return [job for job in answer.jobs if job.job_id]


async def _claim_singly(
    calls: Calls, worker_id: str, types: tuple[str, ...] | None, limit: int, timeout: float | None
) -> list[models.ClaimedJob]:
    """Claim once, and if there was a job more at a time, until one finds none."""
    request = models.ClaimJob(worker_id=worker_id, types=types)
    claimed: list[models.ClaimedJob] = []
    width = 1
    while len(claimed) < limit:
        answers = await _gathered(
            [
                calls.call(operations.CLAIM_JOB, request, timeout)
                for _ in range(min(width, limit - len(claimed)))
            ]
        )
        found = [answer for answer in answers if isinstance(answer, models.ClaimedJob) and answer.job_id]
        claimed += found
        if not claimed:
            errors = [answer for answer in answers if isinstance(answer, OsqueueError)]
            if errors:
                raise errors[0]
        if len(found) < len(answers):  # what was leased is not lost for the error of another claim
            break
        width = _SINGLES
    return claimed


@dataclass(slots=True)
class _Course:
    """Whether a call goes on where something of it fails, and whether anything of it was answered."""

    silence: tuple[type[OsqueueError], ...]
    """The errors that are no answer to an entry: others may have the same."""
    patience: int
    """After so many of them in a row nothing more is sent."""
    width: int
    """Calls at a time where the broker takes no batches."""
    is_answered: bool = False
    is_over: bool = False
    _in_a_row: int = 0

    def is_silence(self, answer: object) -> bool:
        return isinstance(answer, self.silence)

    def note(self, *answers: object) -> None:
        """Take notice of what came of entries."""
        for answer in answers:
            if self.is_silence(answer):
                self._in_a_row += 1
                self.is_over = self.is_over or self._in_a_row >= self.patience
            else:
                self._in_a_row, self.is_answered = 0, True


async def _each_part(
    entries: Sequence[E],
    many: Callable[[Sequence[E]], Awaitable[list[R | OsqueueError]]],
    one: Callable[[E], Coroutine[Any, Any, R]],
    course: _Course,
) -> list[R | OsqueueError]:
    """Send a request for each part, or for each entry where the broker takes no batches, until the course is over.

    If nothing was answered at all, the error is raised that tells least of what was done.
    """
    results: list[R | OsqueueError] = []
    room = REQUEST_BYTES
    while len(results) < len(entries) and not course.is_over:
        part = part_at(entries, len(results), room)
        answers = await _sent(part, many, one, course)
        if answers is None:
            room = sum(map(size_of, part)) // 2
        else:
            results += answers
    errors = [(place, result) for place, result in enumerate(results) if isinstance(result, OsqueueError)]
    for place, error in errors:
        if isinstance(error, RequestTooLargeError):
            error.args = (f"jobs[{place}]: {error.message}",)
    if errors and not course.is_answered:
        raise max((error for _, error in errors), key=_doubt)
    return _with_rest(results, entries, course)


async def _sent(
    part: Sequence[E],
    many: Callable[[Sequence[E]], Awaitable[list[R | OsqueueError]]],
    one: Callable[[E], Coroutine[Any, Any, R]],
    course: _Course,
) -> list[R | OsqueueError] | None:
    """Send a part; return what came of each that was sent, or None where the broker takes no request as large."""
    try:
        answers = await many(part)
    except NotKnown:
        return await _singly(part, one, course)
    except OsqueueError as failure:
        if len(part) > 1 and isinstance(failure, RequestTooLargeError) and failure.outcome == "not_applied":
            return None
        if course.is_silence(failure):
            course.note(*[failure] * len(part))
        others: list[R | OsqueueError] = [copy.copy(failure) for _ in part[1:]]
        return [failure, *others]
    course.is_answered = True
    course.note(*answers)
    return answers


async def _singly(
    entries: Sequence[E], one: Callable[[E], Coroutine[Any, Any, R]], course: _Course
) -> list[R | OsqueueError]:
    """Send each entry alone; return what came of those that were sent, which are the first."""
    answers: dict[int, R | OsqueueError] = {}
    left = enumerate(entries)

    async def send() -> None:
        for place, entry in left:
            answers[place] = answer = await _answer_or_error(one(entry))
            course.note(answer)
            if course.is_over:
                return

    await _gathered([send() for _ in range(min(course.width, len(entries)))])
    return [answers[place] for place in range(len(answers))]


def _doubt(error: OsqueueError) -> int:
    return ("not_applied", None, "unknown").index(error.outcome)


def _with_rest(
    results: list[R | OsqueueError], entries: Sequence[E], course: _Course
) -> list[R | OsqueueError]:
    """Return the results with those of the entries that were not sent any more."""
    left = len(entries) - len(results)
    if left:
        first = next(
            result for result in results if isinstance(result, OsqueueError) and course.is_silence(result)
        )
        for _ in range(left):
            error = copy.copy(first)
            error.args, error.outcome = (
                (f"not sent, as one before it failed: {first.message}",),
                "not_applied",
            )
            results.append(error)
    return results


def part_at(entries: Sequence[E], start: int, room: int) -> Sequence[E]:
    """Return the entries from there on that fit into one request; one that is too large is alone."""
    size = 0
    for place in range(start, min(start + BATCH_LIMIT, len(entries))):
        size += size_of(entries[place])
        if place > start and size > room:
            return entries[start:place]
    return entries[start : start + BATCH_LIMIT]


def size_of(entry: NewJob | Lease | LeasedJob) -> int:
    """Return about how many bytes an entry has in a request, at least as many as it has."""
    if isinstance(entry, Lease | LeasedJob):
        return _ENTRY_BYTES + len(entry.job_id) + len(entry.lease_token or "")
    payload = len(memoryview(entry.payload)) if isinstance(entry.payload, Raw) else 0
    # A character may take six in JSON. What is no text is refused where it is checked.
    return _ENTRY_BYTES + payload + (6 * len(entry.type) if isinstance(entry.type, str) else 0)


def lease_results(
    answer: models.LeasedResults, count: int, operation: Operation[Any, Any]
) -> list[OsqueueError | None]:
    """Return for each lease of a request None, or its error."""
    return [
        None if entry.error is None else entry_error(entry.error, operation)
        for entry in _require_all(answer.results, count, operation)
    ]


def job_results(
    answer: models.JobsSubmitted, count: int, operation: Operation[Any, Any]
) -> list[str | OsqueueError]:
    """Return for each job of a request its id, or its error."""
    return [
        entry.job_id or entry_error(entry.error or models.EntryError(tag="", message=""), operation)
        for entry in _require_all(answer.results, count, operation)
    ]


def entry_error(error: EntryError, operation: Operation[Any, Any]) -> OsqueueError:
    """Return the error of an entry as one that is raised."""
    fields: dict[str, object] = msgspec.to_builtins(error)
    return error_from_wire(fields, method=operation.name)


def _require_all(results: tuple[R, ...], count: int, operation: Operation[Any, Any]) -> tuple[R, ...]:
    if len(results) != count:
        raise malformed_answer(operation.name, f"{len(results)} results to {count} entries")
    return results


async def _gathered(calls: Sequence[Coroutine[Any, Any, R]]) -> list[R | OsqueueError]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_answer_or_error(call)) for call in calls]
    except ExceptionGroup as faults:  # of the program's own transport: as a single call raises it
        raise faults.exceptions[0] from None
    return [task.result() for task in tasks]


async def _answer_or_error(call: Coroutine[Any, Any, R]) -> R | OsqueueError:
    try:
        return await call
    except OsqueueError as error:
        return error
