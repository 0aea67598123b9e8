"""The documents of a run, read: what each holds, and what became of each job from one to the next."""

from __future__ import annotations

import math
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec
from msgspec import Raw, Struct

from .history import Landing

IN_PROGRESS = "in_progress"
UNCLAIMED = "unclaimed"


class LeaseText(Struct, rename="camel"):
    """What our brokers add to a job that runs."""

    token: str
    worker_id: str
    attempts: int


class JobText(Struct, rename="camel"):
    """A job, live or dead, as it stands in a document."""

    id: str
    status: str
    attempts: int
    created_at: int = 0
    payload: Raw = Raw(b"")
    type: str | None = None
    max_attempts: int | None = None
    worker_id: str | None = None
    lease: LeaseText | None = None
    order: int | None = None
    dead_number: int = 0

    @property
    def mark(self) -> int:
        """The number that the producer put into the payload."""
        return int(bytes(self.payload))

    @property
    def token(self) -> str | None:
        """The token of the running lease, if the one that stands here is about that lease."""
        lease = self.lease
        if lease is None or self.status != IN_PROGRESS:
            return None
        is_its_own = lease.worker_id == self.worker_id and lease.attempts == self.attempts
        return lease.token if is_its_own else None


class TermText(Struct, rename="camel"):
    """A term that a takeover ended."""

    epoch: int
    seq: int
    commit_id: str


class SegmentText(Struct, rename="camel"):
    """What a document says of a segment."""

    name: str
    jobs: int
    gone: str = ""

    @property
    def gone_bits(self) -> int:
        """Which of its jobs stand there no more, the first one's bit the lowest."""
        return int.from_bytes(b64decode(self.gone), "little")


class SegmentJobs(Struct):
    """The object of a segment."""

    segment: str
    jobs: list[JobText]


class DocumentText(Struct, rename="camel"):
    """A document. What is not here the checker does not look at."""

    broker: str | None = None
    epoch: int = 0
    seq: int = 0
    commit_id: str = ""
    previous_terms: list[TermText] = []
    completed_total: int = 0
    dead_total: int = 0
    jobs: list[JobText] = []
    dead_jobs: list[JobText] = []
    segments: list[SegmentText] = []
    dead_segments: list[SegmentText] = []


_decoder = msgspec.json.Decoder(DocumentText)
_segment_decoder = msgspec.json.Decoder(SegmentJobs)


class Lease(NamedTuple):
    """Who runs a job, in which attempt, under which token."""

    worker_id: str
    attempts: int
    token: str | None


def lease_of(job: JobText | None) -> Lease | None:
    """Return the lease of a job, None if it does not run."""
    if job is None or job.status != IN_PROGRESS:
        return None
    return Lease(job.worker_id or "", job.attempts, job.token)


@dataclass(slots=True)
class Document:
    """A document that landed, with its jobs by id."""

    index: int
    landing: Landing
    text: DocumentText
    live: dict[str, JobText]
    dead: dict[str, JobText]
    leader: str = ""
    """The process that wrote the last one that is not of a broker without terms."""

    @property
    def unclaimed(self) -> int:
        """How many jobs may be claimed."""
        return sum(job.status == UNCLAIMED for job in self.live.values())


Kind = Literal["submit", "claim", "end", "take back", "bury", "complete", "requeue", "delete", "unlawful"]


@dataclass(slots=True)
class Change:
    """What one commit did to one job."""

    kind: Kind
    index: int
    job_id: str
    before: JobText | None
    after: JobText | None
    lease: Lease | None = None
    """The lease that was given or has ended."""
    users: list[tuple[int, int]] = field(default_factory=list)
    """The numbers of the calls, and of their entries, that were told that they did this."""


def read_documents(landings: list[Landing], segments: dict[str, bytes]) -> list[Document]:
    """Read all documents of a run with the segments that they refer to. The first is an empty one, before all.

    The jobs of a segment count as the document's own, as far as it does not say that they are gone.
    """
    contents = {name: _segment_decoder.decode(body).jobs for name, body in segments.items()}
    nothing = Landing(at=-1.0, version="", body=b"{}", writer="", sent_at=-1.0)
    documents = []
    leader = ""
    for index, landing in enumerate([nothing, *landings]):
        text = _decoder.decode(landing.body)
        if text.segments:
            text.jobs = sorted(text.jobs + _left_in(text.segments, contents), key=_order)
        if text.dead_segments:
            text.dead_jobs += _left_in(text.dead_segments, contents)
            text.dead_jobs.sort(key=lambda dead: dead.dead_number)
        leader = leader if landing.is_foreign else landing.writer
        documents.append(
            Document(
                index,
                landing,
                text,
                {job.id: job for job in text.jobs},
                {job.id: job for job in text.dead_jobs},
                leader,
            )
        )
    return documents


def segments_in(body: bytes) -> list[str]:
    """Return the names of the segments that a document refers to."""
    if b'egments":' not in body:
        return []
    text = _decoder.decode(body)
    return [segment.name for segment in (*text.segments, *text.dead_segments)]


def _left_in(segments: list[SegmentText], contents: dict[str, list[JobText]]) -> list[JobText]:
    return [
        job
        for segment in segments
        for gone in (segment.gone_bits,)
        for place, job in enumerate(contents.get(segment.name, ()))
        if not gone >> place & 1
    ]


def _order(job: JobText) -> float:
    return math.inf if job.order is None else job.order


def changes_between(old: Document, new: Document) -> list[Change]:
    """Return what became of each job that is not as it was."""
    changes: list[Change] = []
    for job_id, before in old.live.items():
        after = new.live.get(job_id)
        if after is None:
            changes += _left(new, job_id, before)
        elif (
            after.attempts != before.attempts
            or after.status != before.status
            or after.worker_id != before.worker_id
            or after.token != before.token
        ):
            changes += _stayed(new.index, before, after)
    for job_id, before in old.dead.items():
        if job_id in new.dead:
            continue
        after = new.live.get(job_id)
        if after is None:
            changes.append(Change("delete", new.index, job_id, before, None))
        else:
            changes.append(Change("requeue", new.index, job_id, before, after))
            changes += _claimed_anew(new.index, after, 0)
    for job_id, after in new.live.items():
        if job_id not in old.live and job_id not in old.dead:
            changes.append(Change("submit", new.index, job_id, None, after))
            changes += _claimed_anew(new.index, after, 0)
    for job_id, after in new.dead.items():
        if job_id not in old.live and job_id not in old.dead:
            changes.append(Change("unlawful", new.index, job_id, None, after))
    return changes


def _left(new: Document, job_id: str, before: JobText) -> list[Change]:
    lease = lease_of(before)
    dead = new.dead.get(job_id)
    if dead is not None:
        return [Change("bury", new.index, job_id, before, dead, lease)]
    kind: Kind = "unlawful" if lease is None else "complete"
    return [Change(kind, new.index, job_id, before, None, lease)]


def _stayed(index: int, before: JobText, after: JobText) -> list[Change]:
    changes: list[Change] = []
    attempts = before.attempts
    if (lease := lease_of(before)) is not None:
        grown = after.attempts - before.attempts
        runs = after.status == IN_PROGRESS
        if grown == (1 if runs else 0):
            changes.append(Change("end", index, before.id, before, after, lease))
        elif grown == (0 if runs else -1):
            changes.append(Change("take back", index, before.id, before, after, lease))
            attempts -= 1
        elif after.attempts == (1 if runs else 0):  # it died, and a requeue that came late met it there
            changes.append(Change("bury", index, before.id, before, after, lease))
            changes.append(Change("requeue", index, before.id, before, after))
            attempts = 0
        else:
            return [Change("unlawful", index, before.id, before, after)]
    return changes + _claimed_anew(index, after, attempts)


def _claimed_anew(index: int, after: JobText, attempts: int) -> list[Change]:
    lease = lease_of(after)
    if after.attempts == attempts + (0 if lease is None else 1):
        return [] if lease is None else [Change("claim", index, after.id, None, after, lease)]
    return [Change("unlawful", index, after.id, None, after)]
