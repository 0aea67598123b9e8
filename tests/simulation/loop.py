"""One event loop in virtual time, on which several programs live that can be killed and paused.

Each simulated process is a `Node`, and everything that it schedules carries it in its context: the loop looks
there before it runs a handle. What belongs to a killed node is never run again, so that no `finally` of it is
either; what belongs to a paused one waits for its end. Each node reads a clock of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any, Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TURN: Final = 2e-5
"""Seconds that a turn of the loop takes, so that nothing can go round for ever at one moment."""


class Node:
    """A process of the simulation, with a clock of its own: `rate` seconds of it pass in a true second."""

    def __init__(self, loop: SimLoop, name: str, *, offset: float, rate: float) -> None:
        self.loop = loop
        self.name = name
        self.offset = offset
        self.rate = rate
        self.is_dead = False
        self.is_paused = False
        self.pauses: list[tuple[float, float]] = []
        """From when to when it was paused, in true seconds."""
        self._paused_at = 0.0
        self._waiting: list[asyncio.Handle] = []
        # Referenced for ever: a coroutine that is collected is closed, and would run its `finally` blocks.
        self._kept: list[object] = []

    def __repr__(self) -> str:
        return self.name

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Begin something in this process."""
        context = Context()
        context.run(NODE.set, self)
        task = self.loop.create_task(work, name=name, context=context)
        task.add_done_callback(self._note_fault, context=WORLD)
        return task

    def _note_fault(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.loop.faults.append(f"{self.name}: {task.get_name()} ended in {task.exception()!r}")

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.is_dead = True
        self._kept += self._waiting
        self._waiting.clear()

    def pause(self) -> None:
        """Stop it where it stands, at any of its awaits."""
        if not self.is_dead and not self.is_paused:
            self.is_paused, self._paused_at = True, self.loop.now

    def resume(self) -> None:
        """Let it go on."""
        if self.is_paused:
            self.is_paused = False
            self.pauses.append((self._paused_at, self.loop.now))
            waiting, self._waiting = self._waiting, []
            self.loop.run_again(waiting)

    def hold(self, handle: asyncio.Handle) -> None:
        """Keep what may not run now: it never will, or when the process is resumed."""
        (self._kept if self.is_dead else self._waiting).append(handle)

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Keep a task of this process from ever being collected."""
        self._kept.append(task)


NODE: ContextVar[Node | None] = ContextVar("NODE", default=None)
"""The process that is running."""

WORLD: Final = Context()
"""Where that runs which belongs to no process: what is on its way, and what happens to processes."""


class SimTask(asyncio.Task[T]):
    """A task with a number for its hash: the order of a set of tasks must not hang on their addresses."""

    _numbers = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(SimTask._numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Nothing:
    """In place of a selector: there are no sockets here."""

    def select(self, timeout: float | None = None) -> list[object]:
        return []


class SimLoop(asyncio.BaseEventLoop):
    """Where others wait, its clock jumps: to the next timer, as soon as all else is done."""

    _selector = _Nothing()
    _stopping: bool  # BaseEventLoop's own

    def __init__(self) -> None:
        super().__init__()
        SimTask._numbers = itertools.count()
        self.now = 0.0
        """True time, which no process can see."""
        self.faults: list[str] = []
        """What was raised and caught by nobody."""
        self._order = itertools.count()
        self._queue: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self.set_task_factory(_sim_task)  # type: ignore[arg-type]  # typeshed knows factories by another shape
        self.set_exception_handler(self._on_exception)

    def time(self) -> float:
        node = NODE.get()
        return self.now if node is None else node.offset + node.rate * self.now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = events.Handle(callback, args, self, context)
        self._queue.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Ring at a moment of the clock of the process that asks."""
        node = NODE.get()
        at = when if node is None else (when - node.offset) / node.rate
        handle = events.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (at, next(self._order), handle))
        return handle

    def after(self, delay: float, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Have something happen after so many true seconds that belongs to no process."""
        handle = events.TimerHandle(self.now + delay, callback, args, self, WORLD)
        heapq.heappush(self._timers, (self.now + delay, next(self._order), handle))

    def run_in_executor(self, *_: object) -> Any:
        """Refuse: a thread has a time of its own."""
        raise AssertionError("there are no threads in a simulation")

    def run_again(self, handles: list[asyncio.Handle]) -> None:
        """Run what was held back, in its old order."""
        self._queue.extend(handles)

    def _run_once(self) -> None:
        queue, timers = self._queue, self._timers
        if not queue and timers:
            self.now = max(self.now, timers[0][0])
        self.now += TURN
        while timers and timers[0][0] <= self.now:
            queue.append(heapq.heappop(timers)[2])
        assert queue or self._stopping, "nothing is left that could ever happen"
        for _ in range(len(queue)):
            handle = queue.popleft()
            if handle.cancelled():
                continue
            node = handle._context.get(NODE)  # type: ignore[attr-defined]  # the way to whose it is
            if node is not None and (node.is_dead or node.is_paused):
                node.hold(handle)
            else:
                handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # it is passed over when its time comes

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")


def _sim_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], context: Context | None = None, **_: Any
) -> asyncio.Task[T]:
    assert isinstance(loop, SimLoop)
    task: SimTask[T] = SimTask(work, loop=loop, context=context)
    node = (context or contextvars.copy_context()).get(NODE)
    if node is not None:
        node.keep(task)
    return task
