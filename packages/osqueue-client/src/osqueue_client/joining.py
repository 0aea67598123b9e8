"""Single calls of one turn of the event loop go as one request, where the broker takes many at once."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from . import models, operations
from .batches import REQUEST_BYTES, job_results, lease_results, size_of
from .calls import Calls
from .errors import BrokerProtocolError, OsqueueError, RequestTooLargeError, TransportRequestError
from .features import BATCH
from .models import BATCH_LIMIT, Empty, JobSubmitted, LeasedJob, Model, NewJob, SubmitJob
from .operations import AnyOperation, Operation
from .repeats import NotKnown

Req = TypeVar("Req", SubmitJob, LeasedJob, models.LeasedChange)
Res = TypeVar("Res", bound=Model)

_OF_REQUEST: Final = (BrokerProtocolError, RequestTooLargeError, TransportRequestError)
"""Refusals that may be of the joined request only: of its size, of its path, of one other call in it."""

_DONE: Final = Empty()


class _Alone(Model, frozen=True):
    """In place of an answer: the call goes by itself."""


_ALONE: Final = _Alone()


@dataclass(slots=True)
class _Group:
    """Calls that go as one: of one operation, one worker, and one timeout."""

    operation: AnyOperation
    timeout: float | None
    requests: list[Any] = field(default_factory=list)
    answers: list[asyncio.Future[Model]] = field(default_factory=list)
    size: int = 0
    waiting: int = 0
    task: asyncio.Task[None] | None = None

    def has_room(self, size: int) -> bool:
        return len(self.requests) < BATCH_LIMIT and self.size + size <= REQUEST_BYTES

    def drop_cancelled(self) -> None:
        """Forget the calls whose callers have gone: they are not sent."""
        left = [pair for pair in zip(self.requests, self.answers, strict=True) if not pair[1].done()]
        self.requests, self.answers = [request for request, _ in left], [answer for _, answer in left]


class Joining:
    """Stands before a client's calls, and joins those that begin in one turn of the event loop with the same timeout.

    A call that is alone goes as it is. Each caller has an answer or an error of its own, and one that is cancelled
    takes nothing from the others. Nothing waits for a request that is under way: the broker gathers while it writes.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._gathering: dict[tuple[object, ...], _Group] = {}
        # Owned here: each ends with its request, or with its last caller. A dict, which keeps their order.
        self._sending: dict[asyncio.Task[None], None] = {}

    async def call(self, operation: Operation[Req, Res], request: Req, timeout: float | None = None) -> Res:
        """See `Calls.call`."""
        if BATCH not in self._calls.features:
            return await self._calls.call(operation, request, timeout)
        answer = await self._joined(operation, request, timeout)
        if answer is _ALONE:
            return await self._calls.call(operation, request, timeout)
        assert isinstance(answer, operation.response)
        return answer

    async def _joined(self, operation: AnyOperation, request: Any, timeout: float | None) -> Model:
        size = size_of(request)
        if size > REQUEST_BYTES:
            return _ALONE
        loop = asyncio.get_running_loop()
        key = (operation.name, getattr(request, "worker_id", None), timeout)
        group = self._gathering.get(key)
        if group is not None and not group.has_room(size):
            self._send(key, group)
            group = None
        if group is None:
            group = self._gathering[key] = _Group(operation, timeout)
            loop.call_soon(self._send, key, group)
        answer: asyncio.Future[Model] = loop.create_future()
        group.requests.append(request)
        group.answers.append(answer)
        group.size += size
        group.waiting += 1
        try:
            return await answer
        except asyncio.CancelledError:
            group.waiting -= 1
            if not group.waiting and group.task is not None:
                group.task.cancel()
            raise

    def _send(self, key: tuple[object, ...], group: _Group) -> None:
        if self._gathering.get(key) is not group:
            return  # it was full, and is on its way
        del self._gathering[key]
        group.drop_cancelled()
        if len(group.answers) < 2:
            _give(group, [_ALONE] * len(group.answers))
            return
        task = group.task = asyncio.get_running_loop().create_task(self._ask(group), name="osqueue-joined")
        self._sending[task] = None
        task.add_done_callback(lambda _: self._sending.pop(task, None))

    async def _ask(self, group: _Group) -> None:
        """Send the calls of a group as one, and give each its answer."""
        joint = _JOINTS[group.operation.name]
        group.drop_cancelled()
        if not group.answers:
            return
        try:
            request = joint.request_of(group.requests)
            answer = await self._calls.call(joint.operation, request, group.timeout, needs=BATCH)
            _give(group, joint.answers_in(answer, len(group.requests)))
        except NotKnown:
            _give(group, [_ALONE] * len(group.answers))
        except _OF_REQUEST as error:
            is_alone = error.outcome == "not_applied"
            _give(group, [_ALONE if is_alone else _spoken(error, joint, group) for _ in group.answers])
        except OsqueueError as error:
            _give(group, [_spoken(error, joint, group) for _ in group.answers])
        except Exception as error:  # noqa: BLE001  # raised where it is waited for
            _give(group, [error for _ in group.answers])
        finally:
            for waiting in group.answers:
                waiting.cancel()  # those that have none when the task was cancelled


@dataclass(frozen=True, slots=True)
class _Joint:
    """How calls of an operation are put into one request, and its answer is taken apart."""

    operation: Operation[Any, Any]
    request_of: Callable[[Sequence[Any]], Model]
    answers_in: Callable[[Any, int], Sequence[Model | Exception]]


def _give(group: _Group, answers: Sequence[Model | Exception]) -> None:
    for waiting, answer in zip(group.answers, answers, strict=True):
        if waiting.done():  # its caller has gone
            continue
        if isinstance(answer, Exception):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)


def _spoken(error: OsqueueError, joint: _Joint, group: _Group) -> OsqueueError:
    """Return an error of the joined request as that of one call."""
    own = copy.copy(error)
    name = f"{joint.operation.name}: "
    if own.message.startswith(name):
        own.args = (f"{group.operation.name}: {own.message.removeprefix(name)}",)
    own.__cause__ = error.__cause__
    return own


def _submits(requests: Sequence[SubmitJob]) -> Model:
    jobs = [NewJob(payload=job.payload, type=job.type, max_attempts=job.max_attempts) for job in requests]
    return models.SubmitJobs(jobs=tuple(jobs))


def _submitted(answer: models.JobsSubmitted, count: int) -> Sequence[Model | Exception]:
    results = job_results(answer, count, operations.SUBMIT_JOB)
    return [JobSubmitted(job_id=result) if isinstance(result, str) else result for result in results]


def _of_leases(many: Operation[models.LeasedJobs, models.LeasedResults], one: AnyOperation) -> _Joint:
    def request_of(requests: Sequence[LeasedJob]) -> Model:
        leases = (models.Lease(job_id=lease.job_id, lease_token=lease.lease_token) for lease in requests)
        return many.request(worker_id=requests[0].worker_id, jobs=tuple(leases))

    def answers_in(answer: models.LeasedResults, count: int) -> Sequence[Model | Exception]:
        return [error or _DONE for error in lease_results(answer, count, one)]

    return _Joint(many, request_of, answers_in)


_JOINTS: Final = {
    operations.SUBMIT_JOB.name: _Joint(operations.SUBMIT_JOBS, _submits, _submitted),
    operations.COMPLETE_JOB.name: _of_leases(operations.COMPLETE_JOBS, operations.COMPLETE_JOB),
    operations.HEARTBEAT.name: _of_leases(operations.HEARTBEAT_JOBS, operations.HEARTBEAT),
}
