"""The queue document: state and header to bytes and back, with every field that it came with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from osqueue_client.errors import EngineStateError
from osqueue_client.wire_json import UNREADABLE

from .dead import DeadJob
from .job import NOWHERE, Job
from .rules import Now, Rules
from .segment import Segment, SegmentText
from .sessions import SessionText
from .state import QueueState
from .terms import Header, Stamp

_encoder = msgspec.json.Encoder()

T = TypeVar("T")


class _Known(Struct, rename="camel", kw_only=True):
    """The top-level fields that we know; all others are kept as they came."""

    broker: str | None = None
    broker_heartbeat: int = 0
    epoch: int | None = None
    seq: int | None = None
    commit_id: str | None = None
    previous_terms: tuple[Stamp, ...] = ()
    completed_total: int = 0
    dead_total: int = 0


class _Lists(Struct, rename="camel"):
    jobs: tuple[Raw, ...] = ()
    dead_jobs: tuple[Raw, ...] = ()
    sessions: tuple[SessionText, ...] = ()
    segments: tuple[SegmentText, ...] = ()
    dead_segments: tuple[SegmentText, ...] = ()


_KNOWN_NAMES: Final = frozenset((*_Known.__struct_encode_fields__, *_Lists.__struct_encode_fields__))


def read_header(body: bytes) -> Header:
    """Return a document's header. Raises `EngineStateError` if it is not a queue document."""
    return _header(_decode(body, _Known))


def read_document(body: bytes, rules: Rules, now: Now) -> tuple[Header, QueueState]:
    """Return what a document holds; every running job gets a fresh full lease.

    Raises `EngineStateError` if it is not a queue document: it is never repaired by guessing.
    """
    known = _decode(body, _Known)
    lists = _decode(body, _Lists)
    state = QueueState(rules)
    state.completed_total = known.completed_total
    state.dead_total = known.dead_total
    fields = _decode(body, dict[str, Raw])
    state.unknown = {name: value.copy() for name, value in fields.items() if name not in _KNOWN_NAMES}
    try:
        for segment in lists.segments:
            state.load_segment(Segment(segment))
        for segment in lists.dead_segments:
            state.load_dead_segment(Segment(segment))
        for job in _in_order(lists.jobs, state):
            _require_new(state, job)
            state.load(job, now)
        for text in lists.dead_jobs:
            _require_new(state, dead := DeadJob.from_text(bytes(text)))
            state.load_dead(dead)
            state.dead_total = max(state.dead_total, dead.position)
        for session in lists.sessions:
            if state.sessions.get(session.id) is not None:
                raise EngineStateError(f"the queue document has two sessions with the id {session.id}")
            state.sessions.load(session, now.served)
    except (*UNREADABLE, ValueError) as error:
        raise EngineStateError(f"the queue document has a job that cannot be read: {error}") from error
    return _header(known), state


def _in_order(texts: Sequence[Raw], state: QueueState) -> list[Job]:
    """Return the jobs of the document with their positions, in order.

    While there are segments, jobs say their order. Those that do not, or say that of another, a foreign broker has
    added: they come last. Without segments the order is that of the list.
    """
    if not len(state.segments):
        state.begin_positions_at(len(texts))
        return [Job.from_text(bytes(text), place) for place, text in enumerate(texts)]
    jobs = [Job.from_text(bytes(text)) for text in texts]
    last = max(max(segment.last for segment in state.segments), *(job.position for job in jobs), NOWHERE)
    taken: set[int] = set()
    for job in jobs:
        if job.position == NOWHERE or job.position in taken:
            last += 1
            job.position = last
        taken.add(job.position)
    state.begin_positions_at(last + 1)
    return sorted(jobs, key=lambda job: job.position)


def write_document(header: Header, state: QueueState) -> bytes:
    """Return the document of this state. Only what changed since the last time is encoded."""
    stamp = header.stamp
    assert stamp is not None, "every commit has a stamp"
    fields: dict[str, object] = {
        "broker": header.broker,
        "brokerHeartbeat": header.broker_heartbeat,
        "completedTotal": state.completed_total,
        "epoch": stamp.epoch,
        "seq": stamp.seq,
        "commitId": stamp.commit_id,
        "previousTerms": header.previous_terms,
        "deadTotal": state.dead_total,
        **state.unknown,
    }
    head = _encoder.encode(fields)
    pieces = [head[:-1]]
    if len(state.sessions):
        pieces += (b',"sessions":', *state.sessions.text())
    if len(state.segments):
        pieces += (b',"segments":', *state.segments.text())
    if len(state.dead_segments):
        pieces += (b',"deadSegments":', *state.dead_segments.text())
    pieces += (b',"deadJobs":', *state.dead.text(), b',"jobs":', *state.jobs.text(), b"}")
    return b"".join(pieces)


def _header(known: _Known) -> Header:
    stamp = None
    if known.epoch is not None and known.seq is not None and known.commit_id is not None:
        stamp = Stamp(known.epoch, known.seq, known.commit_id)
    return Header(
        broker=known.broker or None,
        broker_heartbeat=known.broker_heartbeat,
        stamp=stamp,
        previous_terms=known.previous_terms,
    )


def _require_new(state: QueueState, item: Job | DeadJob) -> None:
    if item.id in state.jobs or item.id in state.dead:
        raise EngineStateError(f"the queue document has two jobs with the id {item.id}")


def _decode(body: bytes, type: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type)
    except UNREADABLE as error:
        raise EngineStateError(
            f"the object is not a queue document ({error}); nothing was changed. Look at it, and either mend it "
            "or give the broker another storage"
        ) from error
