"""The requests that wait for the commit loop: bounded, in order, each with the future of its answer."""

from __future__ import annotations

import asyncio
import copy
import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from osqueue_client.errors import OsqueueError, QueueFullError, StorageBackendError
from osqueue_client.models import Model

from .queue.apply import UNDELIVERED, Mutation, never_changes, undelivered
from .settings import BrokerSettings

_SWEEP_INTERVAL: Final = 0.1
"""Seconds between two searches of a full inbox for requests whose callers have gone."""


class Waiting:
    """One request, and where its answer goes."""

    __slots__ = ("answer", "arrived_at", "mutation", "size")

    def __init__(
        self, mutation: Mutation, size: int, answer: asyncio.Future[Model], arrived_at: float
    ) -> None:
        self.mutation = mutation
        self.size = size
        self.answer = answer
        self.arrived_at = arrived_at

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
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._callers = 0
        self._all_callers: asyncio.Event | None = None
        self._quiet: deque[Waiting] = deque()
        self._pending: deque[Waiting] = deque()
        self._undelivered: deque[Waiting] = deque()
        self._bytes = 0
        self._taken: list[Waiting] = []
        self._next_sweep_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._closed_with: OsqueueError | None = None

    def __len__(self) -> int:
        return len(self._pending) + len(self._quiet) + len(self._undelivered)

    def put(self, mutation: Mutation, size: int) -> asyncio.Future[Model]:
        """Add a request; return the future of its answer. Cancelling it before it is taken withdraws it.

        Raises `QueueFullError` when too much waits, and the reason when the inbox is closed.
        """
        if self._closed_with is not None:
            raise copy.copy(self._closed_with)  # one raised again and again would collect tracebacks
        if mutation.operation is UNDELIVERED:
            return self._put_undelivered(mutation)
        if self._is_full(size):
            if self._loop.time() >= self._next_sweep_at:
                self._next_sweep_at = self._loop.time() + _SWEEP_INTERVAL
                self._drop_withdrawn()
            if self._is_full(size):
                raise QueueFullError(
                    f"{len(self):,} requests ({self._bytes:,} bytes) wait for the store", retry_after=1.0
                )
        answer: asyncio.Future[Model] = self._loop.create_future()
        queue = self._quiet if never_changes(mutation.operation) else self._pending
        queue.append(Waiting(mutation, size, answer, self._loop.time()))
        self._bytes += size
        if not self._arrived.is_set():
            self._arrived.set()
        if self._all_callers is not None and not self.lacks_callers:
            self._all_callers.set()
        if self._alarm is None:
            self._set_alarm()
        return answer

    def _put_undelivered(self, mutation: Mutation) -> asyncio.Future[Model]:
        answer: asyncio.Future[Model] = self._loop.create_future()
        answer.add_done_callback(_retrieve)
        self._undelivered.append(Waiting(mutation, 0, answer, self._loop.time()))
        self._arrived.set()
        return answer

    def take(self) -> list[Waiting]:
        """Return all that wait, what never changes anything first; those that were withdrawn are left out."""
        queues = self._quiet, self._undelivered, self._pending
        batch = [waiting for queue in queues for waiting in queue if not waiting.is_over]
        for queue in queues:
            queue.clear()
        self._bytes = 0
        self._arrived.clear()
        self._taken = batch
        return batch

    def take_quiet(self) -> list[Waiting]:
        """Return those that wait and never change anything."""
        batch = [waiting for waiting in self._quiet if not waiting.is_over]
        self._bytes -= sum(waiting.size for waiting in self._quiet)
        self._quiet.clear()
        self._arrived.clear()
        self._taken = batch
        return batch

    def answer(self, outcomes: Iterable[Model | OsqueueError]) -> None:
        """Answer what was taken, in one sweep."""
        batch, self._taken = self._taken, []
        self._callers = len(batch) + len(self)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.give(outcome) or isinstance(outcome, OsqueueError):
                continue
            if (mutation := undelivered(waiting.mutation.request, outcome)) is not None:
                self._put_undelivered(mutation)

    def refuse_taken(self, error: OsqueueError) -> None:
        """Answer all that was taken with the same error."""
        self.answer([copy.copy(error) for _ in self._taken])

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
        self.take()
        self.refuse_taken(self._closed_with)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _is_full(self, size: int) -> bool:
        settings = self._settings
        return len(self) >= settings.max_pending or self._bytes + size > settings.max_pending_bytes

    def _drop_withdrawn(self) -> None:
        for queue in (self._quiet, self._pending):
            left = [waiting for waiting in queue if not waiting.is_over]
            queue.clear()
            queue.extend(left)
        self._bytes = sum(waiting.size for queue in (self._quiet, self._pending) for waiting in queue)

    def _set_alarm(self) -> None:
        # A quarter of the timeout: a request waits at most that much longer than it should.
        self._alarm = self._loop.call_later(self._settings.request_timeout / 4, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self.give_up(arrived_before=self._loop.time() - self._settings.request_timeout)
        if len(self) or self._taken:
            self._set_alarm()

    def give_up(self, *, arrived_before: float = math.inf) -> None:
        """Answer what has waited since before that moment (of the loop's clock): the store is not answering."""
        for waiting in self._taken:
            if waiting.arrived_at <= arrived_before:
                waiting.give(_unconfirmed())
        for queue in (self._quiet, self._pending):
            for waiting in queue:
                if waiting.arrived_at > arrived_before:
                    break
                waiting.give(_unanswered())
        self._drop_withdrawn()


def _unconfirmed() -> StorageBackendError:
    return StorageBackendError(
        "the store has not confirmed the change: the broker's log says why", outcome="unknown"
    )


def _unanswered() -> StorageBackendError:
    return StorageBackendError(
        "the store does not answer, or refuses: the broker's log says why", outcome="not_applied"
    )
