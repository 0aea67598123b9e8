"""What is told of the queue: counts, and pages of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush, merge
from itertools import islice, takewhile
from operator import attrgetter
from typing import Final, TypeVar

from osqueue_client import models
from osqueue_client.errors import BrokerProtocolError

from .dead import DeadJob
from .job import IN_PROGRESS, Job
from .mutation import Mutation
from .rules import Now
from .segment import Segment
from .segments import KEPT_READ, NEXT, Segments
from .state import QueueState

Entry = TypeVar("Entry", Job, DeadJob)

_position = attrgetter("position")

_START: Final = -1
"""The place before all jobs."""

DEAD_PAGE: Final = 100
"""Dead jobs on a page when the request does not say."""

PAGE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of jobs after which a page ends."""


def stats(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """Count the jobs."""
    return models.QueueStats(
        total=state.total,
        unclaimed=state.unclaimed,
        in_progress=state.in_progress,
        completed_total=state.completed_total,
        dead=state.dead_count,
        segments=len(state.segments) + len(state.dead_segments),
        lost_jobs=state.segments.lost + state.dead_segments.lost,
        waiting_claims=len(state.waiting_claims),
    )


def list_jobs(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """List a page of live jobs."""
    request = mutation.request
    assert isinstance(request, models.ListJobs)
    after = _place_of(state, request.cursor)
    end = None if request.status == IN_PROGRESS else _end(state.segments, after, request.type)
    jobs = _before(_jobs_after(state, after, end, request), end)
    page, next_cursor = _page(jobs, request.limit or models.LIST_LIMIT, end)
    return models.JobList(
        jobs=tuple(map(_info, page)),
        total=state.total,
        unclaimed=state.unclaimed,
        in_progress=state.in_progress,
        completed_total=state.completed_total,
        truncated=True if next_cursor else None,
        next_cursor=f"{state.positions_since}-{next_cursor}" if next_cursor else None,
    )


def list_dead(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """List a page of dead jobs."""
    request = mutation.request
    assert isinstance(request, models.ListDead)
    after = _cursor("listDead", request.cursor)
    end = _end(state.dead_segments, after, None)
    in_segments = _in_segments(state.dead_segments, after, end, None, DeadJob.from_text)
    dead_jobs = _before(merge(state.dead.after(after), in_segments, key=_position), end)
    page, next_cursor = _page(dead_jobs, request.limit or DEAD_PAGE, end)
    return models.DeadJobList(
        jobs=tuple(dead.view() for dead in page), total=state.dead_count, next_cursor=next_cursor
    )


def _jobs_after(state: QueueState, after: int, end: int | None, request: models.ListJobs) -> Iterator[Job]:
    """Yield the jobs behind a place that are asked for, in order. Raises `SegmentNeeded`."""
    jobs: Iterator[Job] = (
        job
        for job in state.jobs.after(after)
        if request.type in (None, job.type) and request.status in (None, job.status)
    )
    if request.status == IN_PROGRESS:
        return jobs  # none of those stands in a segment
    in_segments = _in_segments(state.segments, after, end, request.type, Job.from_text)
    return merge(jobs, in_segments, key=_position)


def _in_segments(
    segments: Segments, after: int, end: int | None, type: str | None, read: Callable[[bytes], Entry]
) -> Iterator[Entry]:
    """Yield what stands behind a place in segments that begin before `end`, in order.

    A segment is read when its first place is reached.
    """
    opened: list[tuple[int, str, Entry, Iterator[Entry]]] = []

    def push(entries: Iterator[Entry]) -> None:
        for entry in entries:
            heappush(opened, (entry.position, entry.id, entry, entries))
            return

    for segment in _listed(segments, after, type):
        if end is not None and segment.position >= end:
            break
        while opened and opened[0][0] < segment.position:
            _, _, entry, entries = heappop(opened)
            yield entry
            push(entries)
        push(_in_segment(segments, segment, after, type, read))
    while opened:
        _, _, entry, entries = heappop(opened)
        yield entry
        push(entries)


def _listed(segments: Segments, after: int, type: str | None) -> Iterator[Segment]:
    """Yield the segments in which jobs of a type, or any, may stand behind a place."""
    for segment in segments:
        if segment.last > after and not segment.is_lost and (type is None or segment.may_hold_type(type)):
            yield segment


def _end(segments: Segments, after: int, type: str | None) -> int | None:
    """Return where a page ends so that it needs no more segments than are kept in memory; None if it need not."""
    for segment in islice(_listed(segments, after, type), KEPT_READ - NEXT, None):
        if segment.position > after + 1:
            return segment.position
    return None


def _before(entries: Iterator[Entry], end: int | None) -> Iterator[Entry]:
    return entries if end is None else takewhile(lambda entry: entry.position < end, entries)


def _in_segment(
    segments: Segments, segment: Segment, after: int, type: str | None, read: Callable[[bytes], Entry]
) -> Iterator[Entry]:
    contents = segments.contents(segment)
    for place in segment.left_places():
        if contents.orders[place] > after and type in (None, contents.types[place]):
            yield read(bytes(contents.texts[place]))


def _page(entries: Iterable[Entry], limit: int, end: int | None) -> tuple[list[Entry], str | None]:
    """Return as many as fit on a page, and the cursor of the next one; None if there are no more.

    At `end` the page ends in any case, and more may follow.
    """
    page: list[Entry] = []
    size = 0
    for entry in entries:
        if len(page) == limit or size > PAGE_BYTES:
            return page, str(page[-1].position)
        page.append(entry)
        size += len(entry.text())
    return page, None if end is None else str(end - 1)


def _place_of(state: QueueState, cursor: str | None) -> int:
    """Return the place that a cursor of `listJobs` stands for: an epoch, and a position that its leader gave."""
    if not cursor:
        return _START
    since, _, position = cursor.partition("-")
    if not position:
        raise _no_cursor("listJobs")
    if state.positions_since not in (0, _cursor("listJobs", since)):
        raise BrokerProtocolError(
            "listJobs: field 'cursor' is one of a leader before this one: list from the start again",
            field="cursor",
            method="listJobs",
        )
    return _cursor("listJobs", position)


def _cursor(method: str, text: str | None) -> int:
    if not text:
        return _START
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    raise _no_cursor(method)


def _no_cursor(method: str) -> BrokerProtocolError:
    return BrokerProtocolError(
        f"{method}: field 'cursor' is not one that {method} answered", field="cursor", method=method
    )


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
