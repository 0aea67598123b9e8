"""The requests that wait for the commit loop: bounded, in order, each with the future of its answer."""

from __future__ import annotations

import asyncio
import copy
import math
from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

import msgspec

from osqueue_client.errors import OsqueueError, QueueFullError, StorageBackendError
from osqueue_client.models import Model

from .queue.apply import Applied, never_changes
from .queue.claims import UNDELIVERED, undelivered
from .queue.mutation import FOR_JOB, Answer, Mutation
from .queue.sealing import SEAL
from .queue.segment import SegmentNeeded
from .settings import BrokerSettings

_OWN: Final = (UNDELIVERED, SEAL)
"""What the broker asks of itself: it is always taken, and waits as long as it takes."""

_SWEEP_INTERVAL: Final = 0.1
"""Seconds between two searches of a full inbox for requests whose callers have gone."""


class Waiting:
    """One request, and where its answer goes. The commit loop's, until it is answered."""

    __slots__ = ("answer", "arrived_at", "mutation", "size", "waits_until")

    def __init__(
        self, mutation: Mutation, size: int, answer: asyncio.Future[Model], arrived_at: float
    ) -> None:
        self.mutation = mutation
        self.size = size
        self.answer = answer
        self.arrived_at = arrived_at
        self.waits_until = arrived_at

    @property
    def is_over(self) -> bool:
        """Whether its caller has gone, or has been answered."""
        return self.answer.done()

    def give(self, outcome: Model | OsqueueError) -> bool:
        """Answer the request; return False where its caller has gone, or was told that the outcome is unknown."""
        if self.answer.done():
            return False
        if isinstance(outcome, OsqueueError):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)
        return True


def _retrieve(answer: asyncio.Future[Model]) -> None:
    """Take note of an answer that nobody waits for: a failure would be logged as one that was overlooked."""
    if not answer.cancelled():
        answer.exception()


class Inbox:
    """What waits to be taken into a batch, and what was taken and waits for its commit.

    A request that waits longer than `request_timeout` is answered with `StorageBackendError`, which tells
    whether it may have had an effect. The timer for it runs only while something waits. An answer that finds its
    caller gone is followed by what has to be done about that (`UNDELIVERED`), which waits as long as it takes.

    A claim that waits for a job is held until it is answered late, its caller has gone, or its `wait` is over: then it
    is taken once more, as one that does not wait. From `take_late` on it is one of those that were taken.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._callers = 0
        self._all_callers: asyncio.Event | None = None
        self._quiet: deque[Waiting] = deque()
        self._pending: deque[Waiting] = deque()
        self._own: deque[Waiting] = deque()
        self.bytes = 0
        """Of all that waits to be taken, for a segment included."""
        self._taken: list[Waiting] = []
        self._late: dict[str, Waiting] = {}
        self._held: dict[str, Waiting] = {}
        self._held_bytes = 0
        self._no_waits: OsqueueError | None = None
        self._waits_end: list[tuple[float, str]] = []
        self._withdrawn: list[str] = []
        self._deferred: dict[str, list[Waiting]] = {}
        self._next_sweep_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._closed_with: OsqueueError | None = None

    def __len__(self) -> int:
        """How many can be taken into a batch."""
        return len(self._pending) + len(self._quiet) + len(self._own)

    def put(self, mutation: Mutation, size: int) -> asyncio.Future[Model]:
        """Add a request; return the future of its answer. Cancelling it before it is taken withdraws it.

        Raises `QueueFullError` when too much waits, and the reason when the inbox is closed.
        """
        if self._closed_with is not None:
            raise copy.copy(self._closed_with)  # one raised again and again would collect tracebacks
        if mutation.operation in _OWN:
            return self.put_own(mutation)
        if self._is_full(size):
            if self._loop.time() >= self._next_sweep_at:
                self._next_sweep_at = self._loop.time() + _SWEEP_INTERVAL
                self._drop_withdrawn()
            if self._is_full(size):
                raise QueueFullError(
                    f"{len(self):,} requests ({self.bytes:,} bytes) wait for the store", retry_after=1.0
                )
        answer: asyncio.Future[Model] = self._loop.create_future()
        queue = self._quiet if never_changes(mutation.operation) else self._pending
        queue.append(Waiting(mutation, size, answer, self._loop.time()))
        self.bytes += size
        if not self._arrived.is_set():
            self._arrived.set()
        if self._all_callers is not None and not self.lacks_callers:
            self._all_callers.set()
        if self._alarm is None:
            self._set_alarm()
        return answer

    def put_own(self, mutation: Mutation) -> asyncio.Future[Model]:
        """Add a request of the broker to itself; see `put`."""
        answer: asyncio.Future[Model] = self._loop.create_future()
        answer.add_done_callback(_retrieve)
        self._own.append(Waiting(mutation, 0, answer, self._loop.time()))
        self._arrived.set()
        return answer

    def take(self, limit: float = math.inf) -> list[Waiting]:
        """Return what waits, what never changes anything first; those that were withdrawn are left out.

        Of what may change something so much as makes up `limit` bytes, and always one request; the rest waits on.
        """
        batch = [waiting for queue in (self._quiet, self._own) for waiting in queue if not waiting.is_over]
        self.bytes -= sum(waiting.size for waiting in self._quiet)
        self._quiet.clear()
        self._own.clear()
        while self._pending and limit > 0:
            waiting = self._pending.popleft()
            self.bytes -= waiting.size
            if not waiting.is_over:
                limit -= waiting.size
                batch.append(waiting)
        self._arrived.clear()
        self._taken = batch
        return batch

    def take_withdrawn(self) -> list[str]:
        """Return the claims that wait for a job no more, by their `new_id`.

        Their callers have gone, or their time is up; the latter are taken with the next batch, before newer ones.
        """
        now = self._loop.time()
        ended: list[Waiting] = []
        while self._waits_end and self._waits_end[0][0] <= now:
            _, new_id = heappop(self._waits_end)
            held = self._release(new_id)
            if held is None:
                continue
            self._withdrawn.append(new_id)
            if held.is_over:  # and `_let_go` has not been called yet
                continue
            held.mutation = _without_wait(held.mutation)
            held.arrived_at = now
            ended.append(held)
        self._put_back(ended)
        withdrawn, self._withdrawn = self._withdrawn, []
        return withdrawn

    def next_wait_ends_in(self) -> float | None:
        """Seconds until a claim has waited long enough for a job; None if none waits."""
        while self._waits_end and self._waits_end[0][1] not in self._held:
            heappop(self._waits_end)
        return self._waits_end[0][0] - self._loop.time() if self._waits_end else None

    def end_waits(self, error: OsqueueError) -> None:
        """Answer the claims that wait for a job, and have no effect, with an error."""
        held, self._held = self._held, {}
        self._held_bytes = 0
        for new_id, waiting in held.items():
            self._withdrawn.append(new_id)
            waiting.give(copy.copy(error))

    def refuse_waits(self, error: OsqueueError) -> None:
        """Answer the claims that wait for a job, and all that would have to from now on, with an error."""
        self._no_waits = copy.copy(error)
        self.end_waits(error)

    def take_late(self, claims: Iterable[Mutation]) -> None:
        """Hear which claims that waited for a job have come to something; `answer_late` tells them."""
        for claim in claims:
            waiting = self._release(claim.new_id)
            if waiting is not None:
                waiting.arrived_at = self._loop.time()
                self._late[claim.new_id] = waiting

    def take_quiet(self) -> list[Waiting]:
        """Return those that wait and never change anything."""
        batch = [waiting for waiting in self._quiet if not waiting.is_over]
        self.bytes -= sum(waiting.size for waiting in self._quiet)
        self._quiet.clear()
        self._arrived.clear()
        self._taken = batch
        return batch

    def answer(self, outcomes: Iterable[Answer]) -> None:
        """Answer what was taken, in one sweep, but for what has to wait for a job or for a segment."""
        batch, self._taken = self._taken, []
        self._callers = len(batch) + len(self)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if outcome is FOR_JOB:
                self._callers -= 1
                self._hold(waiting)
            elif isinstance(outcome, SegmentNeeded):
                self._defer(waiting, outcome)
            elif not waiting.give(outcome):
                self._take_back(waiting.mutation.request, outcome)

    def answer_late(self, applied: Applied) -> None:
        """Answer the claims that have waited for a job until now."""
        for mutation, outcome in applied.late:
            assert outcome is not FOR_JOB, "it was tried because there is a job for it"
            waiting = self._late.pop(mutation.new_id, None)
            if isinstance(outcome, SegmentNeeded):
                if waiting is not None:
                    self._defer(waiting, outcome)
            elif waiting is None or not waiting.give(outcome):
                self._take_back(mutation.request, outcome)
            else:
                self._callers += 1

    def resume(self, segment: str | None = None) -> None:
        """Take with the next batch what waited for a segment, or for any."""
        for name in [segment] if segment is not None else list(self._deferred):
            waiting = self._deferred.pop(name, [])
            self.bytes -= sum(each.size for each in waiting)
            self._put_back(waiting)

    def _put_back(self, taken: list[Waiting]) -> None:
        """Have requests that were taken wait again, before all others."""
        self._pending.extendleft(reversed(taken))
        self.bytes += sum(waiting.size for waiting in taken)
        if self._pending:
            self._arrived.set()

    def _defer(self, waiting: Waiting, needed: SegmentNeeded) -> None:
        """Have a request wait until `resume` is called for the segment that it needs."""
        self._deferred.setdefault(needed.segment.id, []).append(waiting)
        self.bytes += waiting.size

    def _hold(self, waiting: Waiting) -> None:
        new_id = waiting.mutation.new_id
        if self._no_waits is not None:
            waiting.give(copy.copy(self._no_waits))
        elif self._held_bytes + waiting.size > self._settings.max_pending_bytes:
            what = f"claims of {self._held_bytes:,} bytes wait for jobs"
            waiting.give(QueueFullError(what, retry_after=1.0))
        if waiting.is_over:
            self._withdrawn.append(new_id)
            return
        if waiting.waits_until == waiting.arrived_at:  # else it has waited before
            wait: float = getattr(waiting.mutation.request, "wait", 0.0)
            waiting.waits_until += wait
        self._held[new_id] = waiting
        self._held_bytes += waiting.size
        heappush(self._waits_end, (waiting.waits_until, new_id))
        if len(self._waits_end) > 2 * len(self._held) + 64:
            self._waits_end = [end for end in self._waits_end if end[1] in self._held]
            heapify(self._waits_end)
        waiting.answer.add_done_callback(lambda _: self._let_go(new_id))

    def _let_go(self, new_id: str) -> None:
        if self._release(new_id) is not None:
            self._withdrawn.append(new_id)

    def _release(self, new_id: str) -> Waiting | None:
        """Hold a claim no longer; return it if it was held."""
        held = self._held.pop(new_id, None)
        if held is not None:
            self._held_bytes -= held.size
        return held

    def _take_back(self, request: Model, outcome: Model | OsqueueError) -> None:
        if isinstance(outcome, Model) and (mutation := undelivered(request, outcome)) is not None:
            self.put_own(mutation)

    def refuse_taken(self, error: OsqueueError) -> None:
        """Answer all that was taken with the same error."""
        self.answer([copy.copy(error) for _ in self._taken])
        late, self._late = self._late, {}
        for waiting in late.values():
            waiting.give(copy.copy(error))

    def wake(self) -> None:
        """Make `wait` and `wait_for_callers` return though nothing has arrived."""
        self._arrived.set()
        if self._all_callers is not None:
            self._all_callers.set()

    async def wait(self) -> None:
        """Return when something has arrived since the last `take` or `take_quiet`, or `wake` was called."""
        await self._arrived.wait()

    @property
    def lacks_callers(self) -> bool:
        """Whether some wait, but fewer than there were callers when the last batch was answered."""
        return 0 < len(self) < self._callers

    async def wait_for_callers(self, timeout: float) -> None:
        """Return when as many wait as there were callers, after `timeout` seconds, or at `wake`."""
        self._all_callers = asyncio.Event()
        try:
            async with asyncio.timeout(timeout):
                await self._all_callers.wait()
        except TimeoutError:
            return
        finally:
            self._all_callers = None

    def close(self, error: OsqueueError) -> None:
        """Take no more. What was taken is answered with `error`; what still waits, and whatever comes from now
        on, too, but that was surely not applied.
        """
        self.refuse_taken(error)
        self._closed_with = copy.copy(error)
        self._closed_with.outcome = "not_applied"
        self.resume()
        self.take()
        self.refuse_taken(self._closed_with)
        self.end_waits(self._closed_with)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _is_full(self, size: int) -> bool:
        settings = self._settings
        return (
            len(self) + sum(map(len, self._deferred.values())) >= settings.max_pending
            or self.bytes + size > settings.max_pending_bytes
        )

    def _drop_withdrawn(self) -> None:
        self.bytes = 0
        for queue in (self._quiet, self._pending, *self._deferred.values()):
            left = [waiting for waiting in queue if not waiting.is_over]
            queue.clear()
            queue.extend(left)
            self.bytes += sum(waiting.size for waiting in left)
        self._deferred = {name: waiting for name, waiting in self._deferred.items() if waiting}

    def _set_alarm(self) -> None:
        # A quarter of the timeout: a request waits at most that much longer than it should.
        self._alarm = self._loop.call_later(self._settings.request_timeout / 4, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self.give_up(arrived_before=self._loop.time() - self._settings.request_timeout)
        if len(self) or self._taken or self._late or self._held or self._deferred:
            self._set_alarm()

    def give_up(self, *, arrived_before: float = math.inf) -> None:
        """Answer what has waited since before that moment (of the loop's clock): the store is not answering."""
        for waiting in (*self._taken, *self._late.values()):
            if waiting.arrived_at <= arrived_before:
                waiting.give(_unconfirmed())
        for waiting in self._held.values():
            if waiting.waits_until <= arrived_before:  # no batch is taken in which its wait could end
                waiting.give(_unanswered())
        for queue in (self._quiet, self._pending, *self._deferred.values()):
            for waiting in queue:
                if waiting.arrived_at > arrived_before:
                    break
                waiting.give(_unanswered())
        self._drop_withdrawn()


def _without_wait(claim: Mutation) -> Mutation:
    return Mutation(claim.operation, msgspec.structs.replace(claim.request, wait=None), claim.new_id)


def _unconfirmed() -> StorageBackendError:
    return StorageBackendError(
        "the store has not confirmed the change: the broker's log says why", outcome="unknown"
    )


def _unanswered() -> StorageBackendError:
    return StorageBackendError(
        "the store does not answer, or refuses: the broker's log says why", outcome="not_applied"
    )
