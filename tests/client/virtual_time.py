"""An event loop on which waiting takes no time, and a broker that does what it is told."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from osqueue_client.errors import OsqueueError
from osqueue_client.models import ClaimedJob, Empty, JobSubmitted, Model, QueueStats, RequestId
from osqueue_client.operations import GET_STATS, SUBMIT_JOB, Operation

P = ParamSpec("P")


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: where there is nothing to do until a moment, it is that moment."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "all wait, and nothing will ever happen"
            self.now += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on such a loop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


SILENCE = object()
Step = OsqueueError | Model | asyncio.Future[Model] | object | None


class Broker:
    """A broker that answers with the next step of its `script`: an error, an answer, a future, or `SILENCE`.

    Without a next step it does what it is asked. `getStats` has a script of its own.
    """

    def __init__(
        self, *script: Step, features: tuple[str, ...] = ("requestIds",), stats: tuple[Step, ...] = ()
    ) -> None:
        self.script = list(script)
        self.stats = list(stats)
        self.features = features
        self.asked: list[Model] = []
        self.asked_at: list[float] = []
        self.told_stats = 0
        self.is_closed = False

    @property
    def ids(self) -> list[RequestId]:
        found = [getattr(request, "request_id", None) for request in self.asked]
        assert None not in found
        return [id for id in found if id is not None]

    async def call(self, operation: Operation[Any, Any], request: Any, /) -> Any:
        assert not self.is_closed, "it was given back"
        await asyncio.sleep(0)
        if operation is GET_STATS:
            self.told_stats += 1
            steps = self.stats
        else:
            self.asked.append(request)
            self.asked_at.append(now())
            steps = self.script
        return await self._done(steps.pop(0) if steps else None, operation)

    async def _done(self, step: Step, operation: Operation[Any, Any]) -> Model:
        if step is SILENCE:
            await asyncio.get_running_loop().create_future()
        if isinstance(step, OsqueueError):
            raise step
        if isinstance(step, asyncio.Future):
            step = await step
        if isinstance(step, Model):
            return step
        if operation is GET_STATS:
            return QueueStats(total=0, unclaimed=0, in_progress=0, features=self.features)
        if operation is SUBMIT_JOB:
            return JobSubmitted(job_id=f"job-{len(self.asked)}")
        return ClaimedJob() if operation.response is ClaimedJob else Empty()

    async def aclose(self) -> None:
        self.is_closed = True
