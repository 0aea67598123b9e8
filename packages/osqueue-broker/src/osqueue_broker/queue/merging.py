"""Small segments that follow one another become a large one, so that the document has few to speak of.

Their objects are put together as they are: nothing of them is read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .bits import text_of_bits
from .segment import TYPES_TOLD, Segment, SegmentText, merged_body
from .state import QueueState


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """A segment that is being made of others, which go on as they are until it is used."""

    name: str
    parts: Sequence[Segment]
    body: bytes


def plan_merge(state: QueueState, name: str) -> Merge | None:
    """Return the next segments to merge, None if there is no need.

    They are neighbours, of which none overlaps another; those at the front will be used up before it pays.
    """
    wanted = state.rules.merged_bytes
    whole = state.segments.whole()
    if sum(segment.bytes for segment in whole) < wanted:
        return None
    taken = {part.id for plan in state.plans.values() if isinstance(plan, Merge) for part in plan.parts}
    taken.update(segment.id for segment in state.segments.front())
    size = 0
    parts: list[Segment] = []
    for segment in state.segments:
        is_next = not parts or segment.position > parts[-1].last
        if segment.body is None or segment.id in taken or not is_next:
            parts, size = [], 0
            continue
        parts.append(segment)
        size += segment.bytes
        if size >= wanted:
            bodies = [segment.body for segment in parts if segment.body is not None]
            return Merge(name, parts, merged_body(name, bodies))
    return None


def use_merged(state: QueueState, merge: Merge) -> None:
    """Put a merged segment in the place of its parts. What has left them meanwhile is gone in it, too."""
    gone = 0
    count = 0
    types: Counter[str] | None = Counter()
    for part in merge.parts:
        is_there = state.segments.get(part.id) is part
        gone |= (part.gone_bits() if is_there else (1 << part.count) - 1) << count
        count += part.count
        if part.types is None:
            types = None
        elif types is not None and is_there:
            types.update(part.types)
    if gone.bit_count() * 2 > count:
        state.segments.dropped.append(merge.name)  # not worth it any more
        return
    summary = SegmentText(
        name=merge.name,
        first=merge.parts[0].position,
        last=merge.parts[-1].last,
        jobs=count,
        bytes=len(merge.body),
        first_id=min(part.first_id for part in merge.parts),
        last_id=max(part.last_id for part in merge.parts),
        types=None if types is None or len(types) > TYPES_TOLD else dict(types),
        gone=text_of_bits(gone),
    )
    merged = Segment(summary)
    if merged.types is None:
        merged.type_hashes = _type_hashes(merge.parts)
    state.replace_segments(merge.parts, merged)


def _type_hashes(parts: Iterable[Segment]) -> frozenset[int] | None:
    hashes: set[int] = set()
    for part in parts:
        if part.types is None and part.type_hashes is None:
            return None
        hashes.update(map(hash, part.types or ()), part.type_hashes or ())
    return frozenset(hashes)
