"""What the broker answers: each operation as one mutation through the commit loop."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from osqueue_client.errors import BrokerLeadershipError
from osqueue_client.models import JobList, Model, QueueStats
from osqueue_client.operations import GET_STATS, SUBMIT_JOB, Operation
from osqueue_storage import StorageBackend, Throttled

from .clock import Clock
from .commit_loop import CommitLoop
from .queue.apply import Mutation

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

FEATURES: Final = ("fail", "dead")
"""What this broker adds to the old protocol: `failJob`; `listDead`, `requeueDead` and `deleteDead`."""

_ANY_READ: Final = Mutation(GET_STATS, GET_STATS.request(), "")


class QueueService:
    """The operations of a leading broker, for every transport alike."""

    def __init__(self, commits: CommitLoop, storage: StorageBackend, address: str, clock: Clock) -> None:
        self._commits = commits
        self._storage = storage
        self._address = address
        self._clock = clock

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """Do what is asked, and return the answer once it is durable.

        Raises the `OsqueueError` that tells what was wrong. Cancelling the call withdraws a request that no
        batch has taken yet; any later, it happens all the same.
        """
        new_id = self._clock.new_id() if operation is SUBMIT_JOB else ""
        answer = await self._commits.put(Mutation(operation, request, new_id), _size(request))
        if isinstance(answer, QueueStats):
            answer = msgspec.structs.replace(answer, broker_address=self._address, features=FEATURES)
        elif isinstance(answer, JobList):
            answer = msgspec.structs.replace(answer, broker_address=self._address)
        assert isinstance(answer, operation.response)
        return answer

    async def document(self) -> bytes:
        """Return the queue document as last committed.

        It waits as any read does, for it is given only while nobody else can have taken over.
        """
        await self._commits.put(_ANY_READ)
        return self._commits.document

    def throttle_stats(self) -> dict[str, object]:
        """Return the counters of a throttled storage."""
        if not isinstance(self._storage, Throttled):
            return {"throttling": False}
        counters = asdict(self._storage.throttle_stats())
        return {"throttling": True} | {_camel(name): value for name, value in counters.items()}


class NotRunning:
    """The service of a mounted broker outside of its `running()`: it refuses everything."""

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """Raise `BrokerLeadershipError`."""
        raise _not_running()

    async def document(self) -> bytes:
        """Raise `BrokerLeadershipError`."""
        raise _not_running()

    def throttle_stats(self) -> dict[str, object]:
        """Raise `BrokerLeadershipError`."""
        raise _not_running()


def _not_running() -> BrokerLeadershipError:
    return BrokerLeadershipError(
        "this broker is not running: its application has to hold running() open while it serves"
    )


def _size(request: Model) -> int:
    """Return about how many bytes a request holds while it waits."""
    size = 0
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, Raw):
            size += len(memoryview(value))
        elif isinstance(value, tuple):
            size += sum(map(len, value))
        elif isinstance(value, Model):
            size += _size(value)
    return size


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))
