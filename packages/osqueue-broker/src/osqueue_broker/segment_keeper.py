"""A leader's segments: made when the document grows, read when their jobs are wanted, deleted when they are garbage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from osqueue_client.errors import EngineStateError

from .clock import Clock
from .queue.merging import Merge
from .queue.mutation import Mutation
from .queue.sealing import SEAL, Plan, Seal, plan_segment
from .queue.segment import Contents, Segment
from .queue.state import QueueState
from .queue.terms import Header
from .segment_store import SegmentStore, epoch_of
from .settings import BrokerSettings

logger = logging.getLogger("osqueue.broker.segments")

_LOST_AGAIN_AFTER: Final = 30.0
"""Seconds after which a segment that was not there is looked for again."""

_LARGE: Final = 256 * 1024
"""Bytes of a segment from which on it is parsed in a thread: about 2 ms."""

_MEND: Final = (
    "restore the object, as from the versions that the store keeps; "
    "or give its jobs up: osqueue-broker fsck URL --repair --drop-missing"
)


class SegmentKeeper:
    """Works beside the commit loop, in tasks of its own, and changes the queue only through `put`.

    `resume` is called with the name of a segment that has been read, or is lost. A segment is referred to only after
    its object is in the store. Deleted are only those of older terms that nothing referred to when this term had begun,
    and those that a commit of this term has dropped; and each only `segment_retention` after that.
    """

    def __init__(
        self,
        store: SegmentStore,
        *,
        settings: BrokerSettings,
        clock: Clock,
        put: Callable[[Mutation], object],
        resume: Callable[[str], None],
    ) -> None:
        self._store = store
        self._retention = settings.segment_retention
        self._clock = clock
        self._put = put
        self._resume = resume
        self.made = 0
        """Segments of this term whose objects are in the store."""
        self.made_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: set[str] = set()
        self._garbage: dict[str, float] = {}
        self._collecting: asyncio.Task[None] | None = None

    def begin(self, state: QueueState, header: Header) -> None:
        """Work for a term that has just begun, and no more for the one before."""
        self.stop()
        assert header.stamp is not None, "a term has a stamp"
        self._state = state
        self._epoch = header.stamp.epoch
        self.made = self.made_bytes = 0
        self._reading = set()
        self._garbage = {}
        self._collecting = None
        self._start(self._find_garbage())
        self._read_front()

    def after_commit(self, header: Header, document_bytes: int) -> None:
        """Take note of a commit that has landed."""
        self._store.after_commit()
        state = self._state
        for dropped in (state.segments.take_dropped(), state.dead_segments.take_dropped()):
            if dropped:
                self._note_garbage(dropped)
        assert header.stamp is not None, "a commit has a stamp"
        while (plan := plan_segment(state, self._name(header.stamp.seq), document_bytes)) is not None:
            self._start(self._make(plan))
        self._read_front()

    def need(self, segment: Segment) -> None:
        """Have a segment read, and `resume` called: at once if it need not, or cannot, be read."""
        if segment.contents is not None or segment.is_lost or not self._is_held(segment):
            self._resume(segment.id)
        elif segment.id not in self._reading:
            self._reading.add(segment.id)
            self._start(self._read(segment))

    def stop(self) -> None:
        """Begin nothing more, and end what is under way."""
        for task in self._tasks:
            task.cancel()

    async def aclose(self) -> None:
        """Stop, and wait for that."""
        self.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _name(self, seq: int) -> str:
        # In every term another epoch; in a term another number or chance.
        return f"{self._epoch}-{seq}-{self._clock.new_id()[-12:]}"

    def _read_front(self) -> None:
        if not len(self._state.segments):
            return
        for segment in self._state.segments.front():
            if segment.contents is None and not segment.is_lost:
                self.need(segment)

    async def _make(self, plan: Plan | Merge) -> None:
        await self._store.create(plan.name, plan.body)
        self.made += 1
        self.made_bytes += len(plan.body)
        self._put(Mutation(SEAL, Seal(name=plan.name)))

    async def _read(self, segment: Segment) -> None:
        try:
            while True:
                try:
                    body = await self._store.read(segment.id, segment.bytes)
                    if body is None:
                        raise EngineStateError(f"segment {segment.id} is not in the store")
                    contents = await _contents(segment, body)
                    break
                except EngineStateError as error:
                    if not self._is_held(segment):
                        self._resume(segment.id)  # it was used up, and was deleted
                        return
                    if not segment.is_lost:
                        lost = {"segment": segment.id, "jobs": segment.left, "error": error.message}
                        logger.error("segment_lost", extra=lost | {"mend": _MEND})
                    segment.is_lost = True
                    self._resume(segment.id)
                await asyncio.sleep(_LOST_AGAIN_AFTER)
            if segment.is_lost:
                logger.warning("segment_found", extra={"segment": segment.id})
                segment.is_lost = False
            for segments in (self._state.segments, self._state.dead_segments):
                if segments.get(segment.id) is segment:
                    segments.read(segment, contents)
        finally:
            self._reading.discard(segment.id)
        self._resume(segment.id)

    def _is_held(self, segment: Segment) -> bool:
        return any(
            segments.get(segment.id) is segment
            for segments in (self._state.segments, self._state.dead_segments)
        )

    # Garbage

    async def _find_garbage(self) -> None:
        while True:
            referred = self._referred()
            names = await self._store.names()
            found = [
                name
                for name in names
                if (epoch := epoch_of(name)) is not None and epoch < self._epoch and name not in referred
            ]
            self._note_garbage([name for name in found if name not in self._garbage])
            self._look_for(referred.difference(names))
            await asyncio.sleep(self._retention)  # a leader that was deposed may have left one on its way

    def _look_for(self, missing: set[str]) -> None:
        """Read at once what is referred to and was not listed: an operator is to hear of it before a claim does."""
        for segments in (self._state.segments, self._state.dead_segments):
            for segment in segments:
                if segment.id in missing:
                    self.need(segment)

    def _referred(self) -> set[str]:
        """Return the names to which the document in the store refers, as it was last committed: and a few more."""
        names: set[str] = set()
        for segments in (self._state.segments, self._state.dead_segments):
            names.update(segment.id for segment in segments)
            names.update(segments.dropped)  # by a commit that may not have landed
        return names

    def _note_garbage(self, names: list[str]) -> None:
        at = self._clock.monotonic() + self._retention
        self._garbage.update(dict.fromkeys(names, at))
        if self._garbage and (self._collecting is None or self._collecting.done()):
            self._collecting = self._start(self._collect())

    async def _collect(self) -> None:
        while self._garbage:
            name, at = next(iter(self._garbage.items()))
            await asyncio.sleep(max(at - self._clock.monotonic(), 0.0))
            await self._store.delete(name)
            del self._garbage[name]
            logger.debug("segment_deleted", extra={"segment": name})

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="osqueue-segments")  # owned here
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("segments_failed", exc_info=error)


async def _contents(segment: Segment, body: bytes) -> Contents:
    """Return the jobs of a segment: of a large one without holding up the event loop."""
    if len(body) < _LARGE:
        return Contents.of(segment, body)
    return await asyncio.to_thread(Contents.of, segment, body)
