"""Many jobs in one call: requests of a bounded size, one after another, and the answers put together again."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from . import models, operations
from .calls import Calls
from .errors import JobNotFoundError, LeaseLostError, OsqueueError, error_from_wire
from .features import BATCH
from .models import BATCH_LIMIT, EntryError, Lease, LeasedJob, LeasedJobs, NewJob
from .operations import Operation
from .repeats import NotKnown
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


async def submit(calls: Calls, jobs: Sequence[NewJob], timeout: float | None) -> list[str | OsqueueError]:
    """Add jobs; return for each its id, or why it was not added. Raises if no request was answered at all."""

    async def many(part: Sequence[NewJob]) -> list[str | OsqueueError]:
        request = models.SubmitJobs(jobs=tuple(part))
        answer = await calls.call(operations.SUBMIT_JOBS, request, timeout, needs=BATCH)
        return job_results(answer, len(part), operations.SUBMIT_JOBS)

    async def one(job: NewJob) -> str:
        request = models.SubmitJob(payload=job.payload, type=job.type, max_attempts=job.max_attempts)
        return (await calls.call(operations.SUBMIT_JOB, request, timeout)).job_id

    return await _each_part(jobs, many, one)


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

    return await _each_part(leases, ask_many, ask_one)


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


async def _each_part(
    entries: Sequence[E],
    many: Callable[[Sequence[E]], Awaitable[list[R | OsqueueError]]],
    one: Callable[[E], Coroutine[Any, Any, R]],
) -> list[R | OsqueueError]:
    """Send a request for each part, or for each entry where the broker takes no batches, until one stops that."""
    results: list[R | OsqueueError] = []
    for part in split(entries):
        try:
            answers = await many(part)
        except NotKnown:
            answers = await _singly(part, one)
        except OsqueueError as failure:
            if not results:
                raise
            answers = [copy.copy(failure) for _ in part]
        results += answers
        if any(map(_stops, answers)):
            break
    return _with_rest(results, entries)


async def _singly(entries: Sequence[E], one: Callable[[E], Coroutine[Any, Any, R]]) -> list[R | OsqueueError]:
    results: list[R | OsqueueError] = []
    for start in range(0, len(entries), _SINGLES):
        answers = await _gathered([one(entry) for entry in entries[start : start + _SINGLES]])
        results += answers
        if any(map(_stops, answers)):
            break
    if isinstance(results[0], OsqueueError) and all(map(_stops, results)):
        raise results[0]
    return _with_rest(results, entries)


def _stops(answer: object) -> bool:
    """Whether what follows is not sent: jobs are added in order, and a broker that is away is away for all."""
    return isinstance(answer, OsqueueError) and not isinstance(answer, JobNotFoundError | LeaseLostError)


def _with_rest(results: list[R | OsqueueError], entries: Sequence[E]) -> list[R | OsqueueError]:
    """Return the results with those of the entries that were not sent any more."""
    left = len(entries) - len(results)
    if left:
        first = next(result for result in results if isinstance(result, OsqueueError) and _stops(result))
        for _ in range(left):
            error = copy.copy(first)
            error.args, error.outcome = (
                (f"not sent, as one before it failed: {first.message}",),
                "not_applied",
            )
            results.append(error)
    return results


def split(entries: Sequence[E]) -> Iterator[Sequence[E]]:
    """Yield the entries in parts that fit into a request each; one that is too large is alone."""
    start = size = 0
    for place, entry in enumerate(entries):
        entry_size = size_of(entry)
        if place > start and (place - start == BATCH_LIMIT or size + entry_size > REQUEST_BYTES):
            yield entries[start:place]
            start, size = place, 0
        size += entry_size
    if start < len(entries):
        yield entries[start:]


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
