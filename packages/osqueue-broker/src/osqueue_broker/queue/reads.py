"""What is told of the queue: counts, and pages of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush, merge
from operator import attrgetter
from typing import Final, TypeVar

from osqueue_client import models
from osqueue_client.errors import BrokerProtocolError

from .dead import DeadJob
from .job import IN_PROGRESS, Job
from .mutation import Mutation
from .rules import Now
from .segment import Segment
from .segments import Segments
from .state import QueueState

Entry = TypeVar("Entry", Job, DeadJob)

_position = attrgetter("position")

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
        waiting_claims=len(state.waiting_claims),
    )


def list_jobs(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """List a page of live jobs."""
    request = mutation.request
    assert isinstance(request, models.ListJobs)
    after = _cursor("listJobs", request.cursor)
    page, is_cut = _page(_jobs_after(state, after, request), request.limit or models.LIST_LIMIT)
    return models.JobList(
        jobs=tuple(map(_info, page)),
        total=state.total,
        unclaimed=state.unclaimed,
        in_progress=state.in_progress,
        completed_total=state.completed_total,
        truncated=True if is_cut else None,
        next_cursor=str(page[-1].position) if is_cut else None,
    )


def list_dead(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """List a page of dead jobs."""
    request = mutation.request
    assert isinstance(request, models.ListDead)
    after = _cursor("listDead", request.cursor)
    in_segments = _in_segments(state.dead_segments, after, None, DeadJob.from_text)
    dead_jobs = merge(state.dead.after(after), in_segments, key=_position)
    page, is_cut = _page(dead_jobs, request.limit or DEAD_PAGE)
    return models.DeadJobList(
        jobs=tuple(dead.view() for dead in page),
        total=state.dead_count,
        next_cursor=str(page[-1].position) if is_cut else None,
    )


def _jobs_after(state: QueueState, after: int, request: models.ListJobs) -> Iterator[Job]:
    """Yield the jobs behind a place that are asked for, in order. Raises `SegmentNeeded`."""
    jobs: Iterator[Job] = (
        job
        for job in state.jobs.after(after)
        if request.type in (None, job.type) and request.status in (None, job.status)
    )
    if request.status == IN_PROGRESS:
        return jobs  # none of those stands in a segment
    return merge(jobs, _in_segments(state.segments, after, request.type, Job.from_text), key=_position)


def _in_segments(
    segments: Segments, after: int, type: str | None, read: Callable[[bytes], Entry]
) -> Iterator[Entry]:
    """Yield what stands in segments behind a place, in order. A segment is read when its first place is reached."""
    opened: list[tuple[int, str, Entry, Iterator[Entry]]] = []

    def push(entries: Iterator[Entry]) -> None:
        for entry in entries:
            heappush(opened, (entry.position, entry.id, entry, entries))
            return

    for segment in segments:
        if segment.last <= after or segment.is_lost or not (type is None or segment.may_hold_type(type)):
            continue
        while opened and opened[0][0] < segment.position:
            _, _, entry, entries = heappop(opened)
            yield entry
            push(entries)
        push(_in_segment(segments, segment, after, type, read))
    while opened:
        _, _, entry, entries = heappop(opened)
        yield entry
        push(entries)


def _in_segment(
    segments: Segments, segment: Segment, after: int, type: str | None, read: Callable[[bytes], Entry]
) -> Iterator[Entry]:
    contents = segments.contents(segment)
    for place in segment.left_places():
        if contents.orders[place] > after and type in (None, contents.types[place]):
            yield read(bytes(contents.texts[place]))


def _page(entries: Iterable[Entry], limit: int) -> tuple[list[Entry], bool]:
    """Return as many as fit on a page, and whether there are more."""
    page: list[Entry] = []
    size = 0
    for entry in entries:
        if len(page) == limit or size > PAGE_BYTES:
            return page, True
        page.append(entry)
        size += len(entry.text())
    return page, False


def _cursor(method: str, text: str | None) -> int:
    if not text:
        return -1
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    raise BrokerProtocolError(
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
