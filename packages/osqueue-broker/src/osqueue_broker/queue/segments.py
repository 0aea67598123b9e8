"""All segments of one kind, in the order of their first jobs, and which of them are in memory."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Final

from osqueue_client.errors import StorageBackendError

from .segment import Contents, Segment, SegmentNeeded
from .sequence import Sequence

KEPT_READ: Final = 8
"""Segments whose jobs are kept in memory at least, those that come next included."""

KEPT_BYTES: Final = 32 * 1024 * 1024
"""Bytes of segments up to which more are kept; in memory they take about twice as many."""

AT_HAND: Final = 64
"""Segments whose objects are kept in memory until they are merged."""

NEXT: Final = 2
"""Segments at the front that are read before they are asked for."""

_CLAIMS_NOTED: Final = 100
"""Sets of types for which it is remembered what segments have such jobs."""

_position = attrgetter("position")


class Segments:
    """Each method is O(1), O(log n), or goes over the segments; `read` also over the jobs of what it gives up."""

    def __init__(self) -> None:
        self.left = 0
        """Jobs in all of them."""
        self.bytes = 0
        """Bytes that their summaries add to the document at most."""
        self.last = -1
        """The position of the last job that was ever in one of them."""
        self.dropped: list[str] = []
        """The names of those that were taken out since `take_dropped`."""
        self._all: Sequence[Segment] = Sequence()
        self._by_type: dict[str, list[Segment]] = {}
        self._untold: list[Segment] = []
        self._with_types: dict[tuple[str, ...], list[Segment]] = {}
        self._read: OrderedDict[str, Segment] = OrderedDict()
        self._whole: list[Segment] = []

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._all)

    @property
    def lost(self) -> int:
        """Jobs in those whose object is not there, or not what it should be, as far as is known."""
        return sum(segment.left for segment in self._all if segment.is_lost)

    def get(self, name: str) -> Segment | None:
        """Return the segment with this name."""
        return self._all.get(name)

    def add(self, segment: Segment) -> None:
        """Take in a segment."""
        self._with_types.clear()
        self._all.add(segment)
        self.last = max(self.last, segment.last)
        self.left += segment.left
        self.bytes += segment.text_limit
        if segment.types is None:
            insort(self._untold, segment, key=_position)
        for type in segment.types or ():
            insort(self._by_type.setdefault(type, []), segment, key=_position)

    def first(self, types: tuple[str, ...], before: int | None) -> tuple[Segment, int] | None:
        """Return the oldest job of these types, of any if there are none, that is older than `before`.

        That is its segment and its place in it. Raises `SegmentNeeded` if a segment has to be read for it.
        """
        best: tuple[Segment, int] | None = None
        for segment in self._candidates(types):
            if before is not None and segment.position >= before:
                break
            if segment.is_lost:
                continue
            contents = self.contents(segment)
            place = contents.first(segment, types)
            if place is None:
                continue
            order = contents.orders[place]
            if before is None or order < before:
                before, best = order, (segment, place)
        return best

    def may_hold(self, job_id: str) -> bool:
        """Whether a job may stand in a segment; it is certain where that is in memory."""
        return any(segment.may_hold(job_id) for segment in self._all)

    def find(self, job_id: str) -> tuple[Segment, int] | None:
        """Return the segment and the place of a job. Raises `SegmentNeeded` if a segment has to be read for it.

        Raises `StorageBackendError` if it may stand in one that is lost.
        """
        for segment in self._all:
            if segment.may_hold(job_id):
                if segment.is_lost:
                    raise StorageBackendError(
                        f"job {job_id} may stand in segment {segment.id}, which cannot be read; the log says why",
                        outcome="not_applied",
                    )
                return segment, self.contents(segment).ids[job_id]
        return None

    def contents(self, segment: Segment) -> Contents:
        """Return the jobs of a segment. Raises `SegmentNeeded` if it has to be read for that."""
        if segment.contents is None:
            raise SegmentNeeded(segment)
        self._read.move_to_end(segment.id)
        return segment.contents

    def read(self, segment: Segment, contents: Contents) -> None:
        """Take in the jobs of a segment, and give up those of the ones that were not asked for longest."""
        segment.contents = contents
        self._read[segment.id] = segment
        size = sum(read.bytes for read in self._read.values())
        kept = (segment, *self.front())
        for oldest in [read for read in self._read.values() if read not in kept]:
            if len(self._read) <= KEPT_READ or size <= KEPT_BYTES:
                break
            size -= oldest.bytes
            self._read.pop(oldest.id).give_up()
            self._with_types.clear()  # it is known now which types are left in it

    def front(self) -> list[Segment]:
        """Return the segments that come next."""
        return [segment for segment, _ in zip(self._all, range(NEXT), strict=False)]

    def whole(self) -> list[Segment]:
        """Return the segments whose objects are at hand."""
        self._whole = [segment for segment in self._whole if segment.body is not None]
        return self._whole

    def keep_whole(self, segment: Segment, body: bytes) -> None:
        """Keep the object of a segment at hand, as long as it is whole, and none of too many newer ones is."""
        segment.body = body
        self._whole.append(segment)
        if len(self._whole) > AT_HAND:
            self._whole.pop(0).body = None

    def take(self, segment: Segment, place: int) -> None:
        """Take a job out of a segment that was read, and the segment if it was the last one."""
        contents = self.contents(segment)
        type = contents.types[place]
        segment.take(place, type)
        self._all.touch(segment)
        self.left -= 1
        if segment.types is not None and type not in segment.types:
            self._forget_type(segment, type)
        if not segment.left:
            self.drop(segment)

    def drop(self, segment: Segment) -> None:
        """Take out a segment."""
        self._with_types.clear()
        self._all.remove(segment)
        self.left -= segment.left
        self.bytes -= segment.text_limit
        self._read.pop(segment.id, None)
        segment.contents = segment.body = None
        if segment.types is None:
            self._untold.remove(segment)
        for type in segment.types or ():
            self._forget_type(segment, type)
        self.dropped.append(segment.id)

    def take_dropped(self) -> list[str]:
        """Return the names of the segments that were taken out since the last call."""
        dropped, self.dropped = self.dropped, []
        return dropped

    def text(self) -> list[bytes]:
        """Return the summaries as the pieces of a JSON array."""
        return self._all.text()

    def _candidates(self, types: tuple[str, ...]) -> Iterable[Segment]:
        if not types:
            return self._all
        found = self._with_types.get(types)
        if found is None:
            wanted = [type for type in types if type]  # untyped jobs are for those who take any
            told = (segment for type in wanted for segment in self._by_type.get(type, ()))
            hashes = frozenset(map(hash, wanted))
            untold = (segment for segment in self._untold if segment.may_hold_any(hashes))
            found = sorted(dict.fromkeys((*told, *untold)), key=_position)
            if len(self._with_types) >= _CLAIMS_NOTED:
                self._with_types.clear()
            self._with_types[types] = found
        return found

    def _forget_type(self, segment: Segment, type: str) -> None:
        self._with_types.clear()
        segments = self._by_type[type]
        segments.remove(segment)
        if not segments:
            del self._by_type[type]
