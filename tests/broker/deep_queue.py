"""A deep queue without a broker: what is sealed goes to a dict, what is needed is read from there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from msgspec import Raw

from osqueue_broker.queue.apply import apply
from osqueue_broker.queue.document import read_document, write_document
from osqueue_broker.queue.ids import time_ordered
from osqueue_broker.queue.mutation import Answer, Mutation
from osqueue_broker.queue.rules import Now, Rules
from osqueue_broker.queue.sealing import SEAL, plan_segment
from osqueue_broker.queue.segment import Contents, Segment, SegmentNeeded
from osqueue_broker.queue.state import QueueState
from osqueue_broker.queue.terms import EMPTY
from osqueue_client import operations
from osqueue_client.errors import OsqueueError
from osqueue_client.operations import AnyOperation

THRESHOLD = 4_000
"""Segments of about four small jobs."""

READS_LIMIT = 200
"""A request that needs more reads than this never ends."""


class DeepQueue:
    """A state, and the objects beside its document. Time stands but for `pass_time`."""

    def __init__(self, *, threshold: int = THRESHOLD, **rules: Any) -> None:
        self.rules = Rules(segment_threshold=threshold, **rules)
        self.state = QueueState(self.rules)
        self.header = EMPTY.takeover(commit_id="c0", wall_ms=1, broker="us:1")
        self.objects: dict[str, bytes] = {}
        self.reads: list[str] = []
        self.served = 0.0
        self.body = b""
        self._numbers = itertools.count(1)
        self.commit()

    @property
    def now(self) -> Now:
        return Now(1_700_000_000_000, self.served)

    def pass_time(self, seconds: float) -> None:
        self.served += seconds

    def new_id(self) -> str:
        number = next(self._numbers)
        return time_ordered(1_700_000_000_000 + number, f"00000000-0000-4000-8000-{number:012x}")

    def ask(self, operation: AnyOperation, **fields: Any) -> Any:
        """Return the answer, after as many reads as it takes; raise it if it is an error. Commits."""
        new_id = "" if operation is SEAL else self.new_id()
        mutation = Mutation(operation, operation.request(**fields), new_id)
        for _ in range(READS_LIMIT):
            answer = self.try_once(mutation)
            if isinstance(answer, SegmentNeeded):
                self.read(answer.segment)
                continue
            self.commit()
            if isinstance(answer, OsqueueError):
                raise answer
            return answer
        raise AssertionError(f"{operation.name} needs a segment again and again")

    def try_once(self, mutation: Mutation) -> Answer:
        [answer] = apply(self.state, [mutation], self.now).answers
        return answer

    def read(self, segment: Segment) -> None:
        self.reads.append(segment.id)
        contents = Contents.of(segment, self.objects[segment.id])
        for segments in (self.state.segments, self.state.dead_segments):
            if segments.get(segment.id) is segment:
                segments.read(segment, contents)

    def submit(self, payload: object = 0, **fields: Any) -> str:
        raw = Raw(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
        id: str = self.ask(operations.SUBMIT_JOB, payload=raw, **fields).job_id
        return id

    def claim(self, *types: str, worker: str = "w") -> Any:
        return self.ask(operations.CLAIM_JOB, worker_id=worker, types=types or None)

    def complete(self, claimed: Any, worker: str = "w") -> None:
        self.ask(
            operations.COMPLETE_JOB,
            job_id=claimed.job_id,
            worker_id=worker,
            lease_token=claimed.lease_token,
        )

    def commit(self) -> None:
        """Write the document as it stands."""
        assert self.header.stamp is not None
        id = f"c{self.header.stamp.seq + 1}"
        self.header = self.header.next_commit(commit_id=id, wall_ms=1, broker="us:1")
        self.body = write_document(self.header, self.state)
        assert len(self.body) <= self.state.bytes + 1000, "the estimate is never too small"

    def seal(self, *, between: Any = None) -> int:
        """Make and use all segments that are due; `between` happens after the objects were made."""
        made = 0
        while plan := plan_segment(self.state, f"1-{self.header.stamp.seq}-{made:012x}", len(self.body)):  # type: ignore[union-attr]
            made += 1
            assert plan.name not in self.objects
            self.objects[plan.name] = plan.body
            if between is not None:
                between(plan)
            self.ask(SEAL, name=plan.name)
        return made

    def take_over(self, body: bytes | None = None) -> None:
        """Go on as another broker that has read the document, and nothing else."""
        header, self.state = read_document(self.body if body is None else body, self.rules, self.now)
        self.header = header.takeover(commit_id=f"t{self.new_id()}", wall_ms=1, broker="us:1")
        self.body = write_document(self.header, self.state)

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document

    def pages(self, operation: AnyOperation, limit: int, **fields: Any) -> Iterator[Any]:
        """Yield what is listed, page by page."""
        cursor = None
        for _ in range(10_000):
            page = self.ask(operation, limit=limit, cursor=cursor, **fields)
            yield from page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return
        raise AssertionError("the pages have no end")
