"""The queue in memory: which jobs there are, which are claimable, which are leased and until when."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from msgspec import Raw

from .dead import DeadJob
from .job import CONFIRMED, GONE, IN_PROGRESS, TAKEN, UNCLAIMED, Job
from .ready import Ready
from .rules import Now, Rules
from .segment import Segment
from .segments import Segments
from .sequence import Sequence
from .sessions import Sessions
from .waiting_claims import WaitingClaims

if TYPE_CHECKING:
    from .merging import Merge
    from .sealing import Plan


class QueueState:
    """Jobs and their indexes, changed only through the methods below, each O(1) or O(log n).

    `changes` grows with every change that must be written before it is told to anybody. A renewed lease is
    not one: it is written with the next commit, whatever that is for.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.changes = 0
        self.jobs: Sequence[Job] = Sequence()
        self.dead: Sequence[DeadJob] = Sequence()
        self.segments = Segments()
        self.dead_segments = Segments()
        self.sessions = Sessions()
        self.completed_total = 0
        self.dead_total = 0
        self.in_progress = 0
        self.waiting_bytes = 0
        """Bytes of the claimable jobs that stand in the document."""
        self.dead_bytes = 0
        """Bytes of the dead jobs that stand in the document."""
        self._bytes = 0
        self.unknown: dict[str, Raw] = {}
        self.waiting_claims = WaitingClaims()
        self.positions_since = 0
        """The epoch whose leader has given the jobs their positions; 0 if they stood in the document."""
        self.plans: dict[str, Plan | Merge] = {}
        """The segments that are being made."""
        self._positions = count()
        self._by_position: dict[int, Job] = {}
        self._ready = Ready(self._by_position)
        self._ready_by_type: dict[str, Ready] = {}
        self._offered: set[str] = set()
        self._leases: list[tuple[float, int]] = []
        self._by_token: dict[str, dict[str, Job]] = {}

    # Reading

    @property
    def total(self) -> int:
        """How many jobs are claimable or run."""
        return len(self.jobs) + self.segments.left

    @property
    def dead_count(self) -> int:
        """How many jobs are dead."""
        return len(self.dead) + self.dead_segments.left

    @property
    def unclaimed(self) -> int:
        """How many jobs may be claimed now."""
        return self._ready.claimable + self.segments.left

    def first_in_document(self, types: tuple[str, ...]) -> Job | None:
        """Return the oldest claimable job of these types in the document, of any type or none if there are none.

        A claim with types never returns an untyped job, also when one of them is the empty string.
        """
        if not types:
            return self._ready.first()
        oldest: Job | None = None
        for type in types:
            job = self.first_of_type(type) if type else None
            if job and (oldest is None or job.position < oldest.position):
                oldest = job
        return oldest

    def first_of_type(self, type: str) -> Job | None:
        """Return the oldest claimable job of a type in the document, of none (`""`) included."""
        ready = self._ready_by_type.get(type)
        return ready.first() if ready else None

    def take_offered_types(self) -> set[str]:
        """Return the types of which jobs have become claimable since the last call."""
        offered, self._offered = self._offered, set()
        return offered

    @property
    def bytes(self) -> int:
        """About how large the document is: never less than it would be if it were written now."""
        return self._bytes + self.sessions.bytes + self.segments.bytes + self.dead_segments.bytes

    def running_under(self, token: str) -> list[Job]:
        """Return the jobs that run under the leases with this token."""
        return list(self._by_token.get(token, {}).values())

    def running(self, job_id: str, token: str) -> Job | None:
        """Return a job if it runs under the lease with this token."""
        job = self.jobs.get(job_id)
        return job if job is not None and job.status == IN_PROGRESS and job.lease_token == token else None

    def is_short_of_room(self, growth: int) -> bool:
        """Whether the document might become too large for the store by so many more bytes."""
        limit = self.rules.max_document_bytes
        return limit is not None and self.bytes + 2 * growth > limit

    def next_lease_deadline(self) -> float | None:
        """Return when the next lease may expire, in seconds of `Now.served`; None when nothing runs."""
        while self._leases:
            deadline, position = self._leases[0]
            job = self._running_at(position)
            if job is not None and job.lease_deadline <= deadline:
                return deadline
            heappop(self._leases)
            if job is not None:  # renewed since: its deadline lies further ahead
                heappush(self._leases, (job.lease_deadline, position))
        return None

    # Loading

    def next_position(self) -> int:
        """Return the place at the end of the list."""
        return next(self._positions)

    def begin_positions_at(self, position: int) -> None:
        """Give the next new job at least this place."""
        self._positions = count(position)

    def load(self, job: Job, now: Now) -> None:
        """Take in a job of the document as it stands; a running one gets a fresh full lease."""
        self._take_in(job)
        if job.status == UNCLAIMED:
            self._offer(job)
        elif job.status == IN_PROGRESS:
            self.in_progress += 1
            self._start_lease(job, now)
            self._note_token(job)
        # Any other status is a foreign one: the job is kept as it is, and left alone.

    def load_dead(self, dead: DeadJob) -> None:
        """Take in a dead job of the document."""
        self.dead.add(dead)
        self._bytes += len(dead.text())
        self.dead_bytes += len(dead.text())

    def load_segment(self, segment: Segment) -> None:
        """Take in the summary of a segment of jobs."""
        self.segments.add(segment)
        self.jobs.number(True)

    def load_dead_segment(self, segment: Segment) -> None:
        """Take in the summary of a segment of dead jobs."""
        self.dead_segments.add(segment)

    # Changing

    def add(self, job: Job) -> None:
        """Put a new claimable job at the end."""
        self._changed()
        self._take_in(job)
        self._offer(job)

    def first_claimable(self, types: tuple[str, ...]) -> Job | None:
        """Return the oldest claimable job of these types, of any type or none if there are none.

        One that stands in a segment is taken out into the document, and must be leased or buried at once. Raises
        `SegmentNeeded` if that segment, or one whose jobs may be older, has to be read first.
        """
        job = self.first_in_document(types)
        if not len(self.segments):
            return job
        found = self.segments.first(types, None if job is None else job.position)
        return job if found is None else self._take_out_of_segment(*found)

    def lease(self, job: Job, worker_id: str, token: str | None, now: Now) -> None:
        """Give a claimable job to a worker, under a token of its own."""
        if job.status == UNCLAIMED:
            self._withdraw(job)
        job.status = IN_PROGRESS
        job.attempts += 1
        job.worker_id = worker_id
        job.lease_token = token
        job.hand_outs = 1
        self.in_progress += 1
        self._start_lease(job, now)
        self._note_token(job)
        self._rewrite(job)

    def heartbeat(self, job: Job, now: Now) -> None:
        """Renew a lease whose worker has shown that it knows of it."""
        job.hand_outs = CONFIRMED
        self.renew(job, now)

    def hand_out_again(self, job: Job, now: Now) -> None:
        """Renew a lease that is told to its worker once more, as it may not know of it."""
        job.hand_outs = max(job.hand_outs, 0) + 1
        self.renew(job, now)

    def doubt(self, job: Job, grace: float, now: Now) -> None:
        """Note that one of the answers with a job's lease has reached nobody.

        If that was the last one, the lease expires in `grace` seconds at the latest, unless it is renewed before, and
        counts as if it had never been; with a grace of 0 at once.
        """
        job.hand_outs -= 1
        if not job.is_in_doubt:
            return
        if not grace:
            self.take_back(job)
            return
        deadline = now.served + grace
        if deadline < job.lease_deadline:
            job.lease_deadline = deadline
            heappush(self._leases, (deadline, job.position))
            self._compact_leases()

    def renew(self, job: Job, now: Now) -> None:
        """Give a running job another full lease. No commit is owed for it."""
        job.lease_deadline = now.served + self.rules.heartbeat_timeout
        job.heartbeat = now.wall_ms
        job.is_stale = True
        self.jobs.touch(job)

    def release(self, job: Job) -> None:
        """Make a running job claimable again, in its old place."""
        self._end_lease(job)
        job.status = UNCLAIMED
        self._offer(job)
        self._rewrite(job)

    def take_back(self, job: Job) -> None:
        """Make a running job claimable again, in its old place, as if it had not been claimed."""
        job.attempts -= 1
        self.release(job)

    def complete(self, job: Job) -> None:
        """Take out a running job that is done."""
        self._end_lease(job)
        self._take_out(job)
        self.completed_total += 1

    def bury(self, job: Job, now: Now) -> None:
        """Move a job, running or not, to the dead. Its `last_error` says why."""
        if job.status == UNCLAIMED:
            self._withdraw(job)
        elif job.status == IN_PROGRESS:
            self._end_lease(job)
        self.dead_total += 1
        job.is_stale = True
        dead = DeadJob.of(job, number=self.dead_total, dead_at=now.wall_ms)
        self._take_out(job)
        self.load_dead(dead)

    def requeue(self, dead: DeadJob) -> None:
        """Put a dead job back at the end of the list."""
        self.delete_dead(dead)
        self.add(dead.requeued(self.next_position()))

    def delete_dead(self, dead: DeadJob) -> None:
        """Delete a dead job for good."""
        self._changed()
        self._bytes -= len(dead.text())
        self.dead_bytes -= len(dead.text())
        self.dead.remove(dead)

    def find_dead(self, job_id: str) -> DeadJob | None:
        """Return a dead job. One that stands in a segment is taken out into the document.

        Raises `SegmentNeeded` if a segment has to be read first.
        """
        dead = self.dead.get(job_id)
        if dead is not None or not len(self.dead_segments):
            return dead
        found = self.dead_segments.find(job_id)
        if found is None:
            return None
        segment, place = found
        dead = DeadJob.from_text(bytes(self.dead_segments.contents(segment).texts[place]))
        self.dead_segments.take(segment, place)
        self._changed()
        self.load_dead(dead)
        return dead

    def replace_segments(self, parts: Iterable[Segment], merged: Segment) -> None:
        """Put a segment in the place of those whose jobs it holds; of these, some may be used up."""
        self._changed()
        for part in parts:
            if self.segments.get(part.id) is part:
                self.segments.drop(part)
        self.load_segment(merged)

    def move_to_segment(self, job: Job | DeadJob) -> None:
        """Take out of the document a claimable or a dead job that stands in a segment from now on."""
        if isinstance(job, Job):
            self._withdraw(job)
            self._take_out(job)
        else:
            self.delete_dead(job)

    def expired(self, now: Now) -> Job | None:
        """Return a running job whose lease has expired by now, if there is one."""
        deadline = self.next_lease_deadline()
        if deadline is None or deadline > now.served:
            return None
        return self._running_at(self._leases[0][1])

    def attempts_left(self, job: Job) -> int:
        """Return how many more times a job may be claimed; a limit of 0 means one attempt."""
        limit = self.rules.max_attempts if job.max_attempts is None else max(job.max_attempts, 1)
        return max(limit - job.attempts, 0)

    def _take_out_of_segment(self, segment: Segment, place: int) -> Job:
        job = Job.from_text(bytes(self.segments.contents(segment).texts[place]))
        self._changed()
        self.segments.take(segment, place)
        if not len(self.segments):
            self.jobs.number(False)
        self._take_in(job)
        job.status = TAKEN
        return job

    def _take_in(self, job: Job) -> None:
        self.jobs.add(job)
        self._by_position[job.position] = job
        self._bytes += job.size

    def _take_out(self, job: Job) -> None:
        self._changed()
        self._bytes -= job.size
        job.status = GONE
        self.jobs.remove(job)
        del self._by_position[job.position]

    def _offer(self, job: Job) -> None:
        self._ready.add(job)
        self._offered.add(job.type)
        self.waiting_bytes += job.text_bytes
        self._ready_by_type.setdefault(job.type, Ready(self._by_position)).add(job)

    def _withdraw(self, job: Job) -> None:
        job.status = GONE  # so that the heaps see it as outdated
        self.waiting_bytes -= job.text_bytes
        self._ready.drop()
        of_type = self._ready_by_type[job.type]
        of_type.drop()
        if not of_type.claimable:
            del self._ready_by_type[job.type]

    def _start_lease(self, job: Job, now: Now) -> None:
        job.lease_deadline = now.served + self.rules.heartbeat_timeout
        job.heartbeat = now.wall_ms
        heappush(self._leases, (job.lease_deadline, job.position))

    def _note_token(self, job: Job) -> None:
        if job.lease_token is not None:
            self._by_token.setdefault(job.lease_token, {})[job.id] = job

    def _end_lease(self, job: Job) -> None:
        self.in_progress -= 1
        if job.lease_token is not None:
            under_token = self._by_token[job.lease_token]
            del under_token[job.id]
            if not under_token:
                del self._by_token[job.lease_token]
        job.worker_id = None
        job.heartbeat = None
        job.lease_token = None
        job.status = GONE  # so that the heap sees it as outdated
        self._compact_leases()

    def _compact_leases(self) -> None:
        if len(self._leases) > 2 * self.in_progress + 64:
            positions = {position for _, position in self._leases}
            running = [found for position in positions if (found := self._running_at(position))]
            self._leases = [(found.lease_deadline, found.position) for found in running]
            heapify(self._leases)

    def _rewrite(self, job: Job) -> None:
        self._changed()
        self._bytes -= job.size
        job.rewrite()
        self._bytes += job.size
        self.jobs.touch(job)

    def _changed(self) -> None:
        self.changes += 1

    def _running_at(self, position: int) -> Job | None:
        job = self._by_position.get(position)
        return job if job is not None and job.status == IN_PROGRESS else None
