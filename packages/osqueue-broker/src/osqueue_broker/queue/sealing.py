"""What is moved from the document to a new segment, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from osqueue_client.models import Empty, Model
from osqueue_client.operations import Operation

from .dead import DeadJob
from .job import NOWHERE, UNCLAIMED, Job
from .merging import Merge, plan_merge, use_merged
from .mutation import DONE, Mutation
from .order import with_place
from .rules import Now
from .segment import TYPES_TOLD, Segment, SegmentText, segment_body
from .state import QueueState

_WORTH: Final = 2
"""A segment is used if at least one in so many of its jobs are still to be moved when its object is there."""

_PARTS: Final = 4
"""Where more waits than one segment holds, one is made of so large a part of it, up to the size of merged ones."""

AT_ONCE: Final = 4
"""Segments that are made of jobs at a time."""

MERGED_AT_ONCE: Final = 2
"""Segments that are made of others at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A segment that is being made of jobs, which go on as they are until it is used.

    `attempts` are those of each job at that time: one that was claimed since is not the same any more.
    """

    name: str
    jobs: Sequence[Job | DeadJob]
    attempts: Sequence[int]
    body: bytes

    @property
    def last(self) -> int:
        """The position of its last job."""
        return self.jobs[-1].position

    @property
    def is_of_dead(self) -> bool:
        """Whether its jobs are dead."""
        return isinstance(self.jobs[0], DeadJob)


class Seal(Model, frozen=True, kw_only=True):
    """Use the segment of a plan, whose object is in the store."""

    name: str


SEAL: Final = Operation(
    "seal", Seal, Empty,
    "POST", "", 204, "manage", "Move jobs to a segment: the broker's own, and on no wire.",
)  # fmt: skip


def plan_segment(state: QueueState, name: str, document_bytes: int) -> Plan | Merge | None:
    """Note and return the next segment to make, under this name; None if there is no need.

    `document_bytes` is how large the document was when it was last written.
    """
    plans = [plan for plan in state.plans.values() if isinstance(plan, Plan)]
    plan: Plan | Merge | None = None
    if len(plans) < AT_ONCE:
        plan = _plan_jobs(state, plans, name, document_bytes) or _plan_dead(state, plans, name)
    if plan is None and len(state.plans) - len(plans) < MERGED_AT_ONCE:
        plan = plan_merge(state, name)
    if plan is not None:
        state.plans[name] = plan
    return plan


def seal(state: QueueState, mutation: Mutation, now: Now) -> Model:
    """Use the segment of a plan: what is still as it was planned is moved.

    If that is not worth it, nothing is changed, and the segment is dropped.
    """
    request = mutation.request
    assert isinstance(request, Seal)
    plan = state.plans.pop(request.name, None)
    if plan is None:
        return DONE  # it was made in a term that is over
    if isinstance(plan, Merge):
        use_merged(state, plan)
    else:
        _use(state, plan)
    return DONE


def _use(state: QueueState, plan: Plan) -> None:
    segments = state.dead_segments if plan.is_of_dead else state.segments
    moved = [_is_as_planned(state, *pair) for pair in zip(plan.jobs, plan.attempts, strict=True)]
    if _WORTH * sum(moved) < len(moved):
        segments.dropped.append(plan.name)
        return
    segment = _segment_of(plan)
    for place, (job, is_moved) in enumerate(zip(plan.jobs, moved, strict=True)):
        if is_moved:
            state.move_to_segment(job)
        else:
            segment.take(place, _type_of(job))
    if plan.is_of_dead:
        state.load_dead_segment(segment)
    else:
        state.load_segment(segment)
        if segment.left == segment.count and segment.bytes < state.rules.merged_bytes // 2:
            state.segments.keep_whole(segment, plan.body)


def _plan_jobs(state: QueueState, plans: Sequence[Plan], name: str, document_bytes: int) -> Plan | None:
    rules = state.rules
    plans = [plan for plan in plans if not plan.is_of_dead]
    is_first = not len(state.segments) and not plans
    if is_first and document_bytes <= rules.segment_threshold:
        return None
    head = rules.head_bytes if is_first else 0
    waiting = state.waiting_bytes - sum(len(plan.body) for plan in plans) - head
    if waiting < rules.segment_bytes:
        return None
    wanted = min(max(waiting // _PARTS, rules.segment_bytes), rules.merged_bytes)
    last = max((plan.last for plan in plans), default=NOWHERE)
    if len(state.segments):
        last = max(last, state.segments.last)
    # What was added last; only where that is not it, what stands before all segments and would be next.
    plan = _plan_after(state, last, name, wanted, head)
    if plan is not None or plans or is_first:
        return plan
    return _plan_after(state, NOWHERE, name, wanted, head, before=state.segments.front()[0].position)


def _plan_after(
    state: QueueState, position: int, name: str, wanted: int, head: int, before: int | None = None
) -> Plan | None:
    """Plan a segment of the jobs behind a position, and before another.

    None overlaps those that there are: what asks for jobs in order would need them all in memory at once.
    """
    jobs: list[Job] = []
    size = 0
    for job in state.jobs.after(position):
        if before is not None and job.position > before:
            return None
        if job.status != UNCLAIMED:
            continue
        if head > 0:
            head -= job.text_bytes
            continue
        jobs.append(job)
        size += job.text_bytes
        if size >= wanted:
            return _plan(name, jobs, [job.attempts for job in jobs])
    return None


def _plan_dead(state: QueueState, plans: Sequence[Plan], name: str) -> Plan | None:
    plans = [plan for plan in plans if plan.is_of_dead]
    if state.dead_bytes - sum(len(plan.body) for plan in plans) < state.rules.segment_bytes:
        return None
    dead_jobs: list[DeadJob] = []
    size = 0
    for dead in state.dead.after(max((plan.last for plan in plans), default=NOWHERE)):
        dead_jobs.append(dead)
        size += len(dead.text())
        if size >= state.rules.segment_bytes:
            return _plan(name, dead_jobs, [0] * len(dead_jobs))
    return None


def _plan(name: str, jobs: Sequence[Job | DeadJob], attempts: Sequence[int]) -> Plan:
    texts = (with_place(job.text(), job.position) for job in jobs)
    return Plan(name, jobs, attempts, segment_body(name, texts))


def _is_as_planned(state: QueueState, job: Job | DeadJob, attempts: int) -> bool:
    if isinstance(job, DeadJob):
        return state.dead.get(job.id) is job
    return state.jobs.get(job.id) is job and job.status == UNCLAIMED and job.attempts == attempts


def _segment_of(plan: Plan) -> Segment:
    ids = [job.id for job in plan.jobs]
    types = Counter(map(_type_of, plan.jobs))
    segment = Segment(
        SegmentText(
            name=plan.name,
            first=plan.jobs[0].position,
            last=plan.last,
            jobs=len(plan.jobs),
            bytes=len(plan.body),
            first_id=min(ids),
            last_id=max(ids),
            types=dict(types) if not plan.is_of_dead and len(types) <= TYPES_TOLD else None,
        )
    )
    if segment.types is None:
        segment.type_hashes = frozenset(map(hash, types))
    return segment


def _type_of(job: Job | DeadJob) -> str:
    return job.type if isinstance(job, Job) else ""
