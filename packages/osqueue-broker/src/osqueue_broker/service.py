"""What the broker answers: each operation as one mutation through the commit loop."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from dataclasses import asdict
from functools import cache
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from osqueue_client.errors import BrokerLeadershipError, OsqueueError
from osqueue_client.models import JobList, Model, QueueStats
from osqueue_client.operations import CLAIM_JOB, CLAIM_JOBS, GET_STATS, SUBMIT_JOB, SUBMIT_JOBS, Operation
from osqueue_storage import StorageBackend, Throttled

from .clock import Clock
from .commit_loop import CommitLoop
from .queue.claims import undelivered
from .queue.ids import time_ordered
from .queue.mutation import Mutation
from .readiness import Readiness

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

FEATURES: Final = ("fail", "dead", "requestIds", "leaseTokens", "batch", "wait", "pages")
"""What this broker adds to the old protocol: `failJob`; `listDead`, `requeueDead` and `deleteDead`; `requestId` in what
changes the queue; `leaseToken` in claims and in what a lease is needed for; `submitJobs`, `claimJobs`, `completeJobs`
and `heartbeatJobs`; `wait` in claims; pages and filters in `listJobs`."""

_MAKES_JOB: Final = frozenset({SUBMIT_JOB.name, SUBMIT_JOBS.name})
_MAKES_LEASE: Final = frozenset({CLAIM_JOB.name, CLAIM_JOBS.name})

_BOUNDED: Final = frozenset({"request_id", "max_attempts", "retry", "wait"})
"""Fields of requests that never hold much."""

_ENTRY: Final = 128
"""Bytes of an entry of a batch without its texts."""

_CLAIMED: Final = 256
"""Bytes that are counted for each job that a claim asks for."""

_ANY_READ: Final = Mutation(GET_STATS, GET_STATS.request(), "")


class QueueService:
    """The operations of one broker, for every transport alike. While the broker does not lead, it refuses them."""

    def __init__(self, storage: StorageBackend, address: str, clock: Clock) -> None:
        self._storage = storage
        self._address = address
        self._clock = clock
        self._commits: CommitLoop | None = None
        self._refusal: OsqueueError = BrokerLeadershipError("this broker does not run yet")
        self._idle = Readiness("starting")

    def begin(self, commits: CommitLoop) -> None:
        """Serve from the commit loop of a new term."""
        self._commits = commits

    def end(self, refusal: OsqueueError, idle: Readiness) -> None:
        """Refuse everything from now on, and say that of the broker, until `begin`."""
        self._commits = None
        self._refusal = refusal
        self._idle = idle

    def readiness(self) -> Readiness:
        """Return whether the broker leads, and may answer by itself."""
        return self._idle if self._commits is None else self._commits.readiness()

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """Do what is asked, and return the answer once it is durable.

        Raises the `OsqueueError` that tells what was wrong. Cancelling the call withdraws a request that no
        batch has taken yet; any later, it happens all the same, and a lease is taken back as by `undelivered`.
        """
        commits = self._leading()
        waiting = commits.put(Mutation(operation, request, self._new_id(operation.name)), _size(request))
        try:
            answer = await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._take_back(request, waiting.result())
            raise
        if isinstance(answer, QueueStats):
            answer = msgspec.structs.replace(
                answer, broker_address=self._address, features=FEATURES, commits=commits.written()
            )
        elif isinstance(answer, JobList):
            answer = msgspec.structs.replace(answer, broker_address=self._address)
        assert isinstance(answer, operation.response)
        return answer

    def undelivered(self, operation: Operation[Req, Res], request: Req, answer: Res, /) -> None:
        """Hear that an answer of `call` has reached nobody: a lease in it is taken back, soon or at once."""
        self._take_back(request, answer)

    def _take_back(self, request: Model, answer: Model) -> None:
        mutation = undelivered(request, answer)
        if mutation is not None:
            with contextlib.suppress(OsqueueError):  # no longer leading: the next leader sees to the lease
                self._leading().put(mutation)

    async def document(self) -> bytes:
        """Return the queue document as last committed.

        It waits as any read does, for it is given only while nobody else can have taken over.
        """
        commits = self._leading()
        await commits.put(_ANY_READ)
        return commits.document

    def throttle_stats(self) -> dict[str, object]:
        """Return the counters of a throttled storage."""
        if not isinstance(self._storage, Throttled):
            return {"throttling": False}
        counters = asdict(self._storage.throttle_stats())
        return {"throttling": True} | {_camel(name): value for name, value in counters.items()}

    def _new_id(self, operation: str) -> str:
        if operation in _MAKES_JOB:
            return time_ordered(self._clock.wall_ms(), self._clock.new_id())
        return self._clock.new_id() if operation in _MAKES_LEASE else ""

    def _leading(self) -> CommitLoop:
        if self._commits is None:
            raise copy.copy(self._refusal)  # one raised again and again would collect tracebacks
        return self._commits


def _size(request: Model) -> int:
    """Return about how many bytes a request holds while it waits."""
    size = 0
    for name in _unbounded_fields(type(request)):
        value = getattr(request, name)
        if isinstance(value, Raw):
            size += len(memoryview(value))
        elif isinstance(value, str):
            size += len(value)
        elif isinstance(value, tuple):
            size += sum(len(item) if isinstance(item, str) else _ENTRY + _size(item) for item in value)
        elif isinstance(value, Model):
            size += _size(value)
        elif isinstance(value, int):  # the limit of a claim
            size += value * _CLAIMED
    return size


@cache
def _unbounded_fields(model: type[Model]) -> tuple[str, ...]:
    return tuple(name for name in model.__struct_fields__ if name not in _BOUNDED)


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))
