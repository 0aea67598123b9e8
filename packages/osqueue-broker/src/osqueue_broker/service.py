"""What the broker answers: each operation as one mutation through the commit loop."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from osqueue_client.models import JobList, Model, QueueStats
from osqueue_client.operations import SUBMIT_JOB, Operation

from .clock import Clock
from .commit_loop import CommitLoop
from .queue.apply import Mutation

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

FEATURES: Final = ("fail", "dead")
"""What this broker adds to the old protocol: `failJob`; `listDead`, `requeueDead` and `deleteDead`."""


class QueueService:
    """The operations of a leading broker, for every transport alike."""

    def __init__(self, commits: CommitLoop, address: str, clock: Clock) -> None:
        self._commits = commits
        self._address = address
        self._clock = clock

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """Do what is asked, and return the answer once it is durable.

        Raises the `OsqueueError` that tells what was wrong. Cancelling the call withdraws a request that no
        batch has taken yet; any later, it happens all the same.
        """
        new_id = self._clock.new_id() if operation is SUBMIT_JOB else ""
        payload = getattr(request, "payload", None)
        size = len(memoryview(payload)) if isinstance(payload, Raw) else 0
        answer = await self._commits.put(Mutation(operation, request, new_id), size)
        if isinstance(answer, QueueStats):
            answer = msgspec.structs.replace(answer, broker_address=self._address, features=FEATURES)
        elif isinstance(answer, JobList):
            answer = msgspec.structs.replace(answer, broker_address=self._address)
        assert isinstance(answer, operation.response)
        return answer

    def document(self) -> bytes:
        """Return the queue document as it was last committed."""
        return self._commits.document

    def throttle_stats(self) -> dict[str, object]:
        """Return the counters of a throttled storage; none throttles yet."""
        return {"throttling": False}
