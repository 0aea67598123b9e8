"""The requests that wait for the commit loop: bounded, in order, each with the future of its answer."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable

from osqueue_client.errors import OsqueueError, QueueFullError, StorageBackendError
from osqueue_client.models import Model

from .queue.apply import Mutation
from .settings import BrokerSettings


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

    def give(self, outcome: Model | OsqueueError) -> None:
        """Answer the request, unless its caller has gone."""
        if self.answer.done():
            return
        if isinstance(outcome, OsqueueError):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


class Inbox:
    """What waits to be taken into a batch, and what was taken and waits for its commit.

    A request that waits longer than `request_timeout` is answered with `StorageBackendError`, which tells
    whether it may have had an effect. The timer for it runs only while something waits.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._pending: deque[Waiting] = deque()
        self._pending_bytes = 0
        self._taken: list[Waiting] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._closed_with: OsqueueError | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, mutation: Mutation, size: int) -> asyncio.Future[Model]:
        """Add a request; return the future of its answer. Cancelling it before it is taken withdraws it.

        Raises `QueueFullError` when too much waits, and the reason when the inbox is closed.
        """
        if self._closed_with is not None:
            raise self._closed_with
        settings = self._settings
        if (
            len(self._pending) >= settings.max_pending
            or self._pending_bytes + size > settings.max_pending_bytes
        ):
            raise QueueFullError(
                f"{len(self._pending):,} requests ({self._pending_bytes:,} bytes) wait for the store",
                retry_after=1.0,
            )
        answer: asyncio.Future[Model] = self._loop.create_future()
        self._pending.append(Waiting(mutation, size, answer, self._loop.time()))
        self._pending_bytes += size
        if not self._arrived.is_set():
            self._arrived.set()
        if self._alarm is None:
            self._set_alarm()
        return answer

    def take(self) -> list[Waiting]:
        """Return all that wait, in order; those that were withdrawn are left out."""
        batch = [waiting for waiting in self._pending if not waiting.answer.done()]
        self._pending.clear()
        self._pending_bytes = 0
        self._arrived.clear()
        self._taken = batch
        return batch

    def answer(self, outcomes: Iterable[Model | OsqueueError]) -> None:
        """Answer what was taken, in one sweep."""
        batch, self._taken = self._taken, []
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.give(outcome)

    def refuse_taken(self, error: OsqueueError) -> None:
        """Answer all that was taken with the same error."""
        self.answer([error] * len(self._taken))

    def wake(self) -> None:
        """Make `wait` return though nothing has arrived."""
        self._arrived.set()

    async def wait(self) -> None:
        """Return when something waits, or `wake` was called."""
        await self._arrived.wait()

    def close(self, error: OsqueueError) -> None:
        """Take no more; answer what still waits with `error`, now and from now on."""
        self._closed_with = error
        self.refuse_taken(error)
        self.take()
        self.refuse_taken(error)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _set_alarm(self) -> None:
        # A quarter of the timeout: a request waits at most that much longer than it should.
        self._alarm = self._loop.call_later(self._settings.request_timeout / 4, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self.give_up(arrived_before=self._loop.time() - self._settings.request_timeout)
        if self._pending or self._taken:
            self._set_alarm()

    def give_up(self, *, arrived_before: float = math.inf) -> None:
        """Answer what has waited since before that moment (of the loop's clock): the store is not answering."""
        overdue = arrived_before
        for waiting in self._taken:
            if waiting.arrived_at <= overdue:
                waiting.give(StorageBackendError("the store has not confirmed the change", outcome="unknown"))
        while self._pending and (self._pending[0].arrived_at <= overdue or self._pending[0].answer.done()):
            waiting = self._pending.popleft()
            self._pending_bytes -= waiting.size
            waiting.give(StorageBackendError("the store does not answer", outcome="not_applied"))
