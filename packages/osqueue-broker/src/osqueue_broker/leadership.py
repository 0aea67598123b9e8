"""How a broker becomes the leader: by a takeover that lands in the store before anything is served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from osqueue_client.errors import BrokerLeadershipError, EngineStateError, Outcome, StorageBackendError
from osqueue_storage import StorageBackend, StoredObject

from .clock import Clock
from .document_writer import DocumentWriter, Gone, Landed, Superseded
from .queue.apply import bury_exhausted
from .queue.document import read_document, read_header, write_document
from .queue.rules import Now
from .queue.state import QueueState
from .queue.terms import EMPTY, Header, Right, right_to_lead
from .settings import BrokerSettings

logger = logging.getLogger("osqueue.broker.leadership")


@dataclass(slots=True)
class Term:
    """What a leader holds: the state, the header and version of its last commit, and when that was sent."""

    state: QueueState
    header: Header
    version: str
    sent_at: float
    body: bytes


class Candidate:
    """A broker that would lead the queue under its advertised address."""

    def __init__(
        self,
        writer: DocumentWriter,
        address: str,
        *,
        storage: StorageBackend,
        settings: BrokerSettings,
        clock: Clock,
    ) -> None:
        self._writer = writer
        self.address = address
        self._settings = settings
        self._rules = settings.rules(storage)
        # At first a budget on the store may be used up, and the last write may just have been.
        self._patience = settings.request_timeout + 2 * settings.slowest_spacing(storage)
        self._clock = clock

    async def run(self, *, has_bound: bool) -> Term:
        """Begin a term, after watching a possible leader for as long as it takes to know that it is dead.

        `has_bound`: this program has bound the port of its address, so that no other broker can be there.

        Raises `BrokerLeadershipError` that names the leader if there is one alive, `EngineStateError` if the
        document cannot be read, and `StorageBackendError` if the store does not answer.
        """
        async with self._patiently("not_applied"):
            found = await self._writer.read()
        has_just_bound = has_bound
        while True:
            if found is not None and self._right(found, has_just_bound) is Right.WATCH:
                found = await self._watch(found)
                has_just_bound = False
            async with self._patiently("unknown"):
                end = await self.take_over(found)
            if isinstance(end, Term):
                return end
            found = end  # somebody was faster: look at what is there now
            has_just_bound = False

    async def take_over(self, found: StoredObject | None) -> Term | StoredObject:
        """Write the first commit of a new term upon what was found; return the term, or what is there now.

        Raises `EngineStateError` if the document was deleted, or what is there cannot be read.
        """
        now = Now(self._clock.wall_ms(), 0.0)
        if found is None:
            header, state = EMPTY, QueueState(self._rules)
        else:
            header, state = read_document(found.body, self._rules, now)
        bury_exhausted(state, now)
        header = header.takeover(commit_id=self._clock.new_id(), wall_ms=now.wall_ms, broker=self.address)
        assert header.stamp is not None
        sent_at = self._clock.monotonic()
        body = write_document(header, state)
        match await self._writer.replace(body, header.stamp, found.version if found else None):
            case Landed(version):
                logger.info("leadership_taken", extra={"address": self.address, "epoch": header.stamp.epoch})
                return Term(state, header, version, sent_at, body)
            case Superseded(now_there, _):
                return now_there
            case Gone():
                raise EngineStateError("the queue document was deleted while this broker took over")

    @asynccontextmanager
    async def _patiently(self, outcome: Outcome) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._patience):
                yield
        except TimeoutError as error:
            failure = self._writer.last_failure or "no answer"
            raise StorageBackendError(
                f"the store has given no good answer for {self._patience:g} s: {failure}", outcome=outcome
            ) from error

    def _right(self, found: StoredObject, has_just_bound: bool) -> Right:
        return right_to_lead(read_header(found.body), self.address, has_just_bound=has_just_bound)

    async def _watch(self, found: StoredObject) -> StoredObject:
        """Return the document once its version has not moved for the broker heartbeat timeout."""
        leader = read_header(found.body).broker
        logger.info("leadership_watching", extra={"leader": leader})
        give_up_at = self._clock.monotonic() + self._settings.broker_heartbeat_timeout
        while (left := give_up_at - self._clock.monotonic()) > 0:
            await asyncio.sleep(min(left, self._settings.broker_heartbeat_interval / 2))
            seen = await self._writer.read()
            if seen is None:
                raise BrokerLeadershipError("the queue document was deleted while its leader was watched")
            if seen.version != found.version:
                return self._moved(seen)
        return found

    def _moved(self, seen: StoredObject) -> StoredObject:
        leader = read_header(seen.body).broker
        if leader is None:
            return seen  # it has just stepped down
        raise BrokerLeadershipError(
            f"the queue is led by {leader}, which is alive. Stop it first, or give this broker another --storage",
            leader=leader,
        )
