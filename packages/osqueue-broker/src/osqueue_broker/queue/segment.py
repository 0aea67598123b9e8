"""A segment: waiting jobs in an object of their own, which never changes; what the document says of it; its jobs read.

The document holds a summary of each segment, and which of its jobs are `gone`: taken out into the document, or done. A
segment's object is made before the commit that first refers to it, and its name is never used twice.
"""

from __future__ import annotations

from array import array
from base64 import b64decode, b64encode
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
from msgspec import Raw, Struct

from osqueue_client.errors import EngineStateError
from osqueue_client.wire_json import UNREADABLE

from .sequence import Block

TYPES_TOLD: Final = 100
"""A summary counts the jobs of each type up to so many types; of more it says nothing."""

_encoder = msgspec.json.Encoder()


class SegmentText(Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A segment's summary in the document.

    `first` and `last` are the orders of its first and last job, `first_id` and `last_id` the lowest and the highest of
    their ids; `jobs` counts all, `types` those that are left; `gone` are the bits of those that are not, in base64.
    """

    name: str
    first: int
    last: int
    jobs: int
    bytes: int
    first_id: str
    last_id: str
    types: dict[str, int] | None = None
    gone: str = ""


class SegmentNeeded(Exception):
    """A request cannot be done before a segment has been read.

    Nothing was changed for it, save that a claim may have buried jobs without attempts left.
    """

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment.id)
        self.segment = segment


class _Known(Struct):
    id: str
    order: int
    type: str | None = None


class _Texts(Struct):
    segment: str
    jobs: list[Raw]


class _Jobs(Struct):
    jobs: list[_Known]


_texts_decoder = msgspec.json.Decoder(_Texts)
_jobs_decoder = msgspec.json.Decoder(_Jobs)


def segment_body(name: str, texts: Iterable[bytes]) -> bytes:
    """Return the object of a segment with these jobs, whose texts say their order."""
    return b'{"segment":%b,"jobs":[%b]}' % (_encoder.encode(name), b",".join(texts))


def merged_body(name: str, bodies: Iterable[bytes]) -> bytes:
    """Return the object of a segment with the jobs of others, whose objects are these."""
    return segment_body(name, (body[body.index(b"[") + 1 : -2] for body in bodies))


class Contents:
    """The jobs of a segment that was read: found by their place in it, by type, by id."""

    __slots__ = ("_by_type", "_next", "_next_by_type", "ids", "orders", "texts", "types")

    def __init__(self, texts: list[Raw], known: list[_Known]) -> None:
        self.texts = texts
        self.ids = {job.id: place for place, job in enumerate(known)}
        self.orders = [job.order for job in known]
        self.types = [job.type or "" for job in known]
        self._by_type: dict[str, list[int]] = {}
        for place, type in enumerate(self.types):
            self._by_type.setdefault(type, []).append(place)
        self._next = 0
        self._next_by_type: dict[str, int] = {}

    @classmethod
    def of(cls, segment: Segment, body: bytes) -> Contents:
        """Return the contents of a segment. Raises `EngineStateError` if the object is not that segment."""
        try:
            texts, known = _texts_decoder.decode(body), _jobs_decoder.decode(body).jobs
        except UNREADABLE as error:
            raise EngineStateError(f"segment {segment.id} cannot be read: {error}") from error
        orders = [job.order for job in known]
        if texts.segment != segment.id or len(known) != segment.count or orders != sorted(set(orders)):
            raise EngineStateError(f"segment {segment.id} does not hold what the document says of it")
        return cls(texts.jobs, known)

    def first(self, segment: Segment, types: Sequence[str]) -> int | None:
        """Return the place of the first job of these types that is left; of any type if there are none."""
        if not types:
            while self._next < len(self.orders) and segment.is_gone(self._next):
                self._next += 1
            return self._next if self._next < len(self.orders) else None
        found = [place for type in types if type and (place := self._first_of(segment, type)) is not None]
        return min(found, default=None)

    def _first_of(self, segment: Segment, type: str) -> int | None:
        places = self._by_type.get(type, ())
        at = self._next_by_type.get(type, 0)
        while at < len(places) and segment.is_gone(places[at]):
            at += 1
        self._next_by_type[type] = at
        return places[at] if at < len(places) else None


class Segment:
    """A segment as the document speaks of it; `contents` are its jobs while they are in memory."""

    __slots__ = (
        "_gone", "_ids", "_text", "block", "body", "bytes", "contents", "count", "first_id", "id",
        "is_lost", "last", "last_id", "left", "position", "text_limit", "type_hashes", "types",
    )  # fmt: skip

    def __init__(self, known: SegmentText) -> None:
        self.id = known.name
        self.position = known.first
        self.last = known.last
        self.count = known.jobs
        self.bytes = known.bytes
        self.first_id = known.first_id
        self.last_id = known.last_id
        self.types = known.types
        self._gone = bytearray(b64decode(known.gone).ljust((known.jobs + 7) // 8, b"\0"))
        self.left = known.jobs - int.from_bytes(self._gone, "little").bit_count()
        self.contents: Contents | None = None
        self.body: bytes | None = None
        """The object, where it was made just now and is still whole."""
        self.is_lost = False
        """The object is not there, or is not what it should be."""
        self.block: Block | None = None
        self._text: bytes | None = None
        self.text_limit = len(self.text()) + (known.jobs + 7) // 8 * 4 // 3 + 16
        """Bytes that the summary never exceeds, however many of its jobs are gone."""
        self._ids: _Fingerprints | None = None
        self.type_hashes: frozenset[int] | None = None
        """Of the types that may be left, where the summary does not count them and they are known."""

    def text(self) -> bytes:
        """Return the summary as JSON text."""
        if self._text is None:
            known = SegmentText(
                name=self.id, first=self.position, last=self.last, jobs=self.count, bytes=self.bytes,
                first_id=self.first_id, last_id=self.last_id, types=self.types,
                gone=b64encode(self._gone).decode() if self.left < self.count else "",
            )  # fmt: skip
            self._text = _encoder.encode(known)
        return self._text

    def is_gone(self, place: int) -> bool:
        """Whether the job at this place was taken out."""
        return bool(self._gone[place >> 3] & 1 << (place & 7))

    def take(self, place: int, type: str) -> None:
        """Note that the job at this place, of this type, is taken out."""
        assert not self.is_gone(place), "a job is taken out once"
        self._gone[place >> 3] |= 1 << (place & 7)
        self.left -= 1
        self.body = None
        if self.types is not None:
            self.types[type] -= 1
            if not self.types[type]:
                del self.types[type]
        self._text = None

    def gone_bits(self) -> int:
        """Return which jobs were taken out, the first one's bit the lowest."""
        return int.from_bytes(self._gone, "little")

    def may_hold_type(self, type: str) -> bool:
        """Whether a job of this type may be left; it is certain where the summary counts them."""
        if self.types is not None:
            return type in self.types
        return self.may_hold_any(frozenset((hash(type),)))

    def may_hold_any(self, hashes: frozenset[int]) -> bool:
        """Whether a job of one of the types with these hashes may be left; only where the summary counts none."""
        return self.type_hashes is None or not self.type_hashes.isdisjoint(hashes)

    def may_hold(self, job_id: str) -> bool:
        """Whether the job may be left in it; it is certain while its jobs are in memory."""
        if self.contents is not None:
            place = self.contents.ids.get(job_id)
            return place is not None and not self.is_gone(place)
        return self.first_id <= job_id <= self.last_id and (self._ids is None or self._ids.may_hold(job_id))

    def give_up(self) -> None:
        """Have the jobs in memory no more, but remember what would have to be read again for each question."""
        contents = self.contents
        assert contents is not None, "it was read"
        left = set(self.left_places())
        self._ids = _Fingerprints(id for id, place in contents.ids.items() if place in left)
        if self.types is None:
            self.type_hashes = frozenset(hash(contents.types[place]) for place in left)
        self.contents = None

    def left_places(self) -> Iterator[int]:
        """Yield the places of the jobs that are left, in order."""
        return (place for place in range(self.count) if not self.is_gone(place))


class _Fingerprints:
    """A set of texts in 8 bytes each, that may take another text for one of them: once in 10^13 for 1,000 of them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._hashes = array("q", sorted(map(hash, texts)))

    def may_hold(self, text: str) -> bool:
        wanted = hash(text)
        place = bisect_left(self._hashes, wanted)
        return place < len(self._hashes) and self._hashes[place] == wanted
