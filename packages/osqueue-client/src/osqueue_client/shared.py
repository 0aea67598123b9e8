"""Work that many wait for and that is done once."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import OsqueueError

T = TypeVar("T")


@dataclass(slots=True)
class _Round(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Shared(Generic[T]):
    """Does its work once for all who ask while it is done; its failure is that of all of them.

    It ends early when the last who waits for it has gone.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]], name: str) -> None:
        self._work = work
        self._name = name
        self._round: _Round[T] | None = None
        # Owned here, each ended by its last waiter. A dict, which keeps their order.
        self._tasks: dict[asyncio.Task[T], None] = {}

    async def result(self) -> T:
        """Return what the work returns. Each who waits is raised an error of its own."""
        current = self._round = self._round or self._begun()
        current.waiting += 1
        try:
            await asyncio.wait((current.task,))
        finally:
            current.waiting -= 1
            if not current.waiting:
                current.task.cancel()
                self._end(current)
        try:
            return current.task.result()
        except OsqueueError as error:
            raise copy.copy(error) from error

    async def ended(self) -> None:
        """Return when nothing is done any more, which is soon after nobody waits."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def _begun(self) -> _Round[T]:
        task = asyncio.get_running_loop().create_task(self._work(), name=self._name)
        self._tasks[task] = None
        begun = _Round(task)
        task.add_done_callback(lambda _: self._end(begun))
        return begun

    def _end(self, current: _Round[T]) -> None:
        if current.task.done():
            self._tasks.pop(current.task, None)
            if not current.task.cancelled():
                current.task.exception()  # seen, also where all who waited have gone
        if self._round is current:
            self._round = None
