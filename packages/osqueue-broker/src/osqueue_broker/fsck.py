"""What is wrong with a queue's document and its segments, and the document as it should be. It does no I/O."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Raw, Struct

from osqueue_client.errors import EngineStateError
from osqueue_client.wire_json import UNREADABLE
from osqueue_storage import PROBE_PREFIX

from .queue.bits import bits_in_text
from .queue.document import read_document, read_header
from .queue.order import HIGHEST, with_nothing_aside, without_place
from .queue.rules import Now, Rules
from .queue.segment import TYPES_TOLD, SegmentText
from .queue.terms import Header
from .segment_store import epoch_of

_RULES: Final = Rules()
_NO_TIME: Final = Now(0, 0.0)


class Mend(StrEnum):
    """Who can mend something."""

    REPAIR = "repair"
    """`--repair`, and nothing is lost by it."""
    DROP_MISSING = "drop-missing"
    """Whoever puts the object back; `--repair --drop-missing` gives its jobs up."""
    HAND = "hand"
    """Only a person."""


UNMENDABLE: Final = frozenset({"documentUnreadable", "documentOld"})
"""Kinds of findings beside which nothing is mended and nothing deleted: it might be what a person needs."""


class Finding(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One thing that is wrong."""

    kind: str
    text: str
    mend: Mend
    segment: str | None = None
    job_id: str | None = None
    jobs: int | None = None
    """Jobs that are not served."""


class Garbage(Struct, frozen=True, rename="camel"):
    """Objects to which the document does not refer, by name."""

    old: list[str]
    """Of older epochs than the document's: nothing will ever refer to them."""
    recent: list[str]
    """Of the document's epoch: they may be referred to by the next commit."""
    probes: list[str]
    """Of brokers that try the store, or were killed while they did."""
    unknown: list[str]
    """Not named as segments are: left alone."""

    @property
    def names(self) -> list[str]:
        """What may be deleted once nobody leads, and no broker starts."""
        return [*self.old, *self.recent, *self.probes]


class Counts(Struct, rename="camel"):
    """What there is. Of segments that could not be read, what the document says."""

    bytes: int = 0
    jobs_in_document: int = 0
    dead_in_document: int = 0
    segments: int = 0
    jobs_in_segments: int = 0
    dead_segments: int = 0
    dead_in_segments: int = 0


@dataclass(slots=True)
class Segments:
    """The segments of one kind, as the document should speak of them."""

    known: list[SegmentText]
    is_of_dead: bool
    right: dict[str, SegmentText] = field(default_factory=dict)


class _Lists(Struct, rename="camel"):
    jobs: list[Raw] = []
    dead_jobs: list[Raw] = []
    segments: list[SegmentText] = []
    dead_segments: list[SegmentText] = []


class _Job(Struct):
    id: str
    order: int | None = None
    type: str | None = None


class _Body(Struct):
    segment: str
    jobs: list[_Job]


class _Unplaced(Struct):
    id: str
    type: str | None = None


_job_decoder: Final = msgspec.json.Decoder(_Job)
_unplaced_decoder: Final = msgspec.json.Decoder(_Unplaced)
_body_decoder: Final = msgspec.json.Decoder(_Body)
_encoder: Final = msgspec.json.Encoder()


class Check:
    """One document, and the segments that it refers to, given one after another by `see`.

    It remembers the ids of all jobs, and nothing else of them. Raises `EngineStateError` if it is no queue document.
    """

    def __init__(self, body: bytes) -> None:
        self.findings: list[Finding] = []
        self.counts = Counts(bytes=len(body))
        self._body = body
        self.header: Header = read_header(body)
        try:
            lists = msgspec.json.decode(body, type=_Lists)
            self._jobs = [_job(text) for text in lists.jobs]
            dead_jobs = [_job(text) for text in lists.dead_jobs]
        except UNREADABLE as error:
            raise EngineStateError(f"the queue document cannot be read: {error}") from error
        self._live = Segments(lists.segments, is_of_dead=False)
        self._dead = Segments(lists.dead_segments, is_of_dead=True)
        self._places: dict[str, str] = {}
        self._orders: dict[int, str] = {}
        self._moved: set[str] = set()
        self._unread: dict[str, Finding] = {}
        self.counts.jobs_in_document, self.counts.dead_in_document = len(self._jobs), len(dead_jobs)
        self._check_document(dead_jobs)

    @property
    def epoch(self) -> int:
        """The epoch of the document; 0 if only brokers without terms have written it."""
        return self.header.stamp.epoch if self.header.stamp else 0

    @property
    def seq(self) -> int:
        """The number of the commit that made the document; 0 as above."""
        return self.header.stamp.seq if self.header.stamp else 0

    @property
    def names(self) -> list[str]:
        """The names of the segments that the document refers to."""
        return [known.name for kind in (self._live, self._dead) for known in kind.known]

    def size(self, name: str) -> int:
        """Return how large the object of a segment should be."""
        return next(
            known.bytes for kind in (self._live, self._dead) for known in kind.known if known.name == name
        )

    def see(self, name: str, body: bytes | None) -> None:
        """Check a segment against its object, None if there is none. In the order of `names`."""
        kind = self._dead if any(known.name == name for known in self._dead.known) else self._live
        known = next(known for known in kind.known if known.name == name)
        try:
            jobs = _jobs_of(name, body)
        except EngineStateError as error:
            self._lose(kind, known, "segmentMissing" if body is None else "segmentDamaged", error.message)
            return
        assert body is not None, "a missing object has no jobs"
        gone = _bits(known)
        if gone is None:  # which of its jobs are left is not known, and a repair must not guess it
            self._find("goneWrong", f"segment {name}: its bits cannot be read", Mend.HAND, name)
            self._count(kind, known.jobs)
            return
        if gone >> len(jobs):
            self._find(
                "goneWrong", f"segment {name}: it has bits for more jobs than it holds", Mend.REPAIR, name
            )
            gone &= (1 << len(jobs)) - 1
        right = _summary(known, jobs, gone, len(body), kind)
        wrong = [
            field
            for field in SegmentText.__struct_fields__
            if field != "gone" and getattr(known, field) != getattr(right, field)
        ]
        if wrong:
            said = ", ".join(_said(field, known, right) for field in wrong)
            self._find("summaryWrong", f"segment {name}: the document says {said}", Mend.REPAIR, name)
        gone = self._check_jobs(name, jobs, gone, kind)
        kind.right[name] = _summary(known, jobs, gone, len(body), kind)
        left = len(jobs) - gone.bit_count()
        if not left:
            self._find("segmentEmpty", f"segment {name}: none of its jobs is left", Mend.REPAIR, name)
        self._count(kind, left)

    def garbage(self, names: Iterable[str]) -> Garbage:
        """Sort the objects to which the document does not refer, and which were there before it was read."""
        referred = set(self.names)
        found = Garbage([], [], [], [])
        for name in names:
            epoch = epoch_of(name)
            if name in referred:
                continue
            if name.startswith(PROBE_PREFIX):
                found.probes.append(name)
            elif epoch is None:
                found.unknown.append(name)
            elif epoch < self.epoch:
                found.old.append(name)
            elif epoch == self.epoch and _seq_of(name) <= self.seq:
                found.recent.append(name)
            else:
                self._find(
                    "documentOld",
                    f"segment {name} was made after commit {self.seq:,} of epoch {self.epoch}, the document's: "
                    "it is an older copy. Stop the brokers and restore the newer queue.json; until then fsck mends and "
                    "deletes nothing",
                    Mend.HAND,
                    name,
                )
        return found

    def mended(self, *, drop_missing: bool) -> bytes:
        """Return the document with all mended that can be."""
        fields = msgspec.json.decode(self._body, type=dict[str, Raw])
        dropped = {finding.segment for finding in self._unread.values()} if drop_missing else set()
        for field_name, kind in (("segments", self._live), ("deadSegments", self._dead)):
            left = [
                kind.right.get(known.name, known)
                for known in {known.name: known for known in kind.known}.values()
                if known.name not in dropped
            ]
            left = [known for known in left if known.name not in kind.right or _left(known)]
            if left:
                fields[field_name] = Raw(_encoder.encode(left))
            else:
                fields.pop(field_name, None)
        has_lost_last = bool(self._live.known) and "segments" not in fields
        if self._moved or has_lost_last:
            texts = msgspec.json.decode(fields["jobs"], type=list[Raw])
            pairs = zip(self._jobs, texts, strict=True)
            if has_lost_last:
                texts = [_as_without_segments(job, text) for job, text in pairs]
            else:
                texts = [_without_order(text) if job.id in self._moved else text for job, text in pairs]
            fields["jobs"] = Raw(_encoder.encode(texts))
        return _encoder.encode(fields)

    def _check_document(self, dead_jobs: list[_Job]) -> None:
        try:
            read_document(self._body, _RULES, _NO_TIME)
        except EngineStateError as error:
            self._find("documentUnreadable", error.message, Mend.HAND)
        for job in (*self._jobs, *dead_jobs):
            if job.id in self._places:
                text = f"job {job.id} stands twice in the document"
                self._find("duplicateId", text, Mend.HAND, job_id=job.id)
            self._places[job.id] = "the document"
        for known, count in Counter(self.names).items():
            if count > 1:
                text = f"segment {known} stands {count} times in the document"
                self._find("segmentTwice", text, Mend.REPAIR, known)
        for job in self._jobs if self._live.known else ():
            if job.order is None:
                continue
            if job.order in self._orders:
                self._misplace(job.id, job.order, self._orders[job.order])
            else:
                self._orders[job.order] = job.id

    def _check_jobs(self, name: str, jobs: list[_Job], gone: int, kind: Segments) -> int:
        """Return which jobs are gone, those included that stand elsewhere as well."""
        for place, job in enumerate(jobs):
            if gone >> place & 1:
                continue
            if job.id in self._places:
                where = self._places[job.id]
                text = f"job {job.id} stands in segment {name} and in {where}: it counts there"
                self._find("duplicateId", text, Mend.REPAIR, name, job.id)
                gone |= 1 << place
                continue
            self._places[job.id] = f"segment {name}"
            if not kind.is_of_dead and job.order in self._orders:
                self._misplace(self._orders[job.order], job.order, job.id)
        return gone

    def _misplace(self, job_id: str, order: int, other: str) -> None:
        if job_id not in self._moved:
            self._moved.add(job_id)
            text = f"job {job_id} has order {order}, which is that of {other}: repaired, it comes last"
            self._find("orderTwice", text, Mend.REPAIR, job_id=job_id)

    def _lose(self, kind: Segments, known: SegmentText, what: str, message: str) -> None:
        gone = _bits(known) or 0
        left = known.jobs - gone.bit_count()
        self._count(kind, left)
        text = (
            f"{message}: {counted(left, 'dead job' if kind.is_of_dead else 'job')} of it cannot be served until the "
            f"object segments/{known.name}.json is restored, as from a backup or the versions that the bucket keeps; "
            "--repair --drop-missing gives them up"
        )
        self._find(what, text, Mend.DROP_MISSING, known.name, jobs=left)
        self._unread[known.name] = self.findings[-1]

    def _count(self, kind: Segments, left: int) -> None:
        if kind.is_of_dead:
            self.counts.dead_segments += 1
            self.counts.dead_in_segments += left
        else:
            self.counts.segments += 1
            self.counts.jobs_in_segments += left

    def _find(
        self,
        kind: str,
        text: str,
        mend: Mend,
        segment: str | None = None,
        job_id: str | None = None,
        jobs: int | None = None,
    ) -> None:
        self.findings.append(
            Finding(kind=kind, text=text, mend=mend, segment=segment, job_id=job_id, jobs=jobs)
        )


def counted(count: int, thing: str) -> str:
    """Return how many things there are, in words: "1 job", "8,496 jobs"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _job(text: Raw) -> _Job:
    """Return a job of the document; what is no place in its `order` is somebody else's, and says none."""
    try:
        job = _job_decoder.decode(text)
    except msgspec.ValidationError:
        unplaced = _unplaced_decoder.decode(text)
        return _Job(unplaced.id, None, unplaced.type)
    return job if job.order is None or 0 <= job.order <= HIGHEST else _Job(job.id, None, job.type)


def _jobs_of(name: str, body: bytes | None) -> list[_Job]:
    if body is None:
        raise EngineStateError(f"segment {name} is not in the store")
    try:
        found = _body_decoder.decode(body)
    except UNREADABLE as error:
        raise EngineStateError(f"segment {name} cannot be read ({error})") from error
    if found.segment != name:
        raise EngineStateError(f"segment {name} holds another one, {found.segment}")
    orders = [-1 if job.order is None else job.order for job in found.jobs]
    if not orders or orders[0] < 0 or orders != sorted(set(orders)):
        raise EngineStateError(f"the jobs of segment {name} are in no order")
    return found.jobs


def _summary(known: SegmentText, jobs: list[_Job], gone: int, size: int, kind: Segments) -> SegmentText:
    ids = [job.id for job in jobs]
    types = Counter(job.type or "" for place, job in enumerate(jobs) if not gone >> place & 1)
    # A summary that tells no types is right, too: its segment had more of them when it was made.
    is_told = not kind.is_of_dead and known.types is not None and len(types) <= TYPES_TOLD
    return SegmentText(
        name=known.name,
        first=jobs[0].order or 0,
        last=jobs[-1].order or 0,
        jobs=len(jobs),
        bytes=size,
        first_id=min(ids),
        last_id=max(ids),
        types=dict(types) if is_told else None,
        gone=b64encode(gone.to_bytes((len(jobs) + 7) // 8, "little")).decode() if gone else "",
    )


def _seq_of(name: str) -> int:
    seq = name.split("-")[1]
    return int(seq) if seq.isascii() and seq.isdigit() else 0


def _bits(known: SegmentText) -> int | None:
    """Return which jobs are gone, read as a broker reads it; None if that cannot be."""
    try:
        return bits_in_text(known.gone)
    except ValueError:
        return None


def _left(known: SegmentText) -> int:
    return known.jobs - (_bits(known) or 0).bit_count()


def _said(field: str, known: SegmentText, right: SegmentText) -> str:
    told, is_so = getattr(known, field), getattr(right, field)
    if isinstance(told, dict) and isinstance(is_so, dict):
        return f"the types {_difference(told, is_so)}"
    return f"{field} {told!r}, which is {is_so!r}"


def _difference(told: dict[str, int], is_so: dict[str, int]) -> str:
    wrong = [type for type in {**told, **is_so} if told.get(type) != is_so.get(type)]
    return ", ".join(
        f"{type!r} {told.get(type, 0)} times, which is {is_so.get(type, 0)}" for type in wrong[:3]
    )


def _as_without_segments(job: _Job, text: Raw) -> Raw:
    body = bytes(text)
    return Raw(with_nothing_aside(body) if job.order is None else without_place(body, job.order))


def _without_order(text: Raw) -> Raw:
    fields = msgspec.json.decode(text, type=dict[str, Raw])
    fields.pop("order", None)
    return Raw(_encoder.encode(fields))
