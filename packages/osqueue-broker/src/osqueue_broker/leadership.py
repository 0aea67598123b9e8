"""How a broker becomes the leader: by a takeover that lands in the store before anything is served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from osqueue_client.errors import BrokerLeadershipError, EngineStateError, Outcome, StorageBackendError
from osqueue_storage import StorageBackend, StoredObject

from .clock import Clock
from .document_writer import DocumentWriter, Gone, Landed, Superseded
from .queue.document import read_document, read_header, write_document
from .queue.leases import bury_exhausted
from .queue.rules import Now
from .queue.state import QueueState
from .queue.terms import EMPTY, Header, Right, right_to_lead
from .reaching import Connect, Reached
from .settings import BrokerSettings
from .watching import Watch

logger = logging.getLogger("osqueue.broker.leadership")

_REST: Final = 4
"""After the document was fetched, the watch rests for so many times as long as that took."""


@dataclass(slots=True)
class Term:
    """What a leader holds: the state, the header and version of its last commit, and when that was sent."""

    state: QueueState
    header: Header
    version: str
    sent_at: float
    body: bytes


class Candidate:
    """A broker that would lead the queue under its advertised address.

    `standby`: it waits for its turn however long another broker leads or the store is down. `tell` is called with
    the address of the leader that it watches, when it begins to, and when that is another one.
    """

    def __init__(
        self,
        writer: DocumentWriter,
        address: str,
        *,
        storage: StorageBackend,
        settings: BrokerSettings,
        clock: Clock,
        connect: Connect,
        standby: bool = False,
        tell: Callable[[str | None], None] = lambda leader: None,
    ) -> None:
        self._writer = writer
        self.address = address
        self.epoch = 0
        """The last epoch that a takeover from here has tried to begin."""
        self._settings = settings
        self._rules = settings.rules(storage)
        # At first a budget on the store may be used up, and the last write may just have been.
        patience = settings.request_timeout + 2 * settings.slowest_spacing(storage)
        self._patience = None if standby else patience
        self._clock = clock
        self._connect = connect
        self._standby = standby
        self._tell = tell
        self._has_seen_document = False

    async def wait_for_turn(self, *, has_just_bound: bool) -> StoredObject | None:
        """Return the document to take over upon (None: there is none yet) once this broker may lead.

        `has_just_bound`: this program has just bound the port of its address, so that no other broker can be there.

        Raises `EngineStateError` if the document cannot be read or was deleted; if not `standby`,
        `BrokerLeadershipError` that names the leader if there is one alive, and `StorageBackendError` if the store
        does not answer.
        """
        async with self._patiently("not_applied"):
            found = await self._writer.read()
        if found is None:
            if self._has_seen_document:
                raise _deleted("while this broker stood by")
            return None
        self._has_seen_document = True
        right = right_to_lead(read_header(found.body), self.address, has_just_bound=has_just_bound)
        return found if right is Right.LEAD else await self._watch(found)

    async def begin_term(self, found: StoredObject | None) -> Term | None:
        """Take over upon what was found; return None if somebody was faster.

        Raises as `take_over` does, and `StorageBackendError` if the store does not answer and it is not `standby`.
        """
        async with self._patiently("unknown"):
            end = await self.take_over(found)
        return end if isinstance(end, Term) else None

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
        self.epoch = header.stamp.epoch
        if not len(state.segments):
            state.positions_since = self.epoch
        sent_at = self._clock.monotonic()
        body = write_document(header, state)
        match await self._writer.replace(body, header.stamp, found.version if found else None):
            case Landed(version):
                self._has_seen_document = True
                logger.info("leadership_taken", extra={"address": self.address, "epoch": header.stamp.epoch})
                return Term(state, header, version, sent_at, body)
            case Superseded(now_there, _):
                return now_there
            case Gone():
                raise _deleted("while this broker took over")

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

    async def _watch(self, found: StoredObject) -> StoredObject:
        """Return the document to take over upon: when its leader has stepped down, or counts as dead."""
        watch = Watch(found, self._clock.monotonic(), address=self.address, settings=self._settings)
        if watch.leader == self.address:
            logger.warning(
                "the leader advertises the same address as this broker (%s): unless it is dead, give each its own "
                "--advertise (advertise=)",
                self.address,
            )
        logger.info("leadership_watching", extra={"leader": watch.leader})
        self._tell(watch.leader)
        pause = self._settings.watch_interval
        while not watch.is_over:
            await self._pause(watch, min(pause, watch.patience - watch.silent_for))
            leader = watch.leader
            began_at = self._clock.monotonic()
            async with self._patiently("not_applied"):
                seen = await self._writer.read(watch.found)
            if seen is None:
                raise _deleted("while its leader was watched")
            at = self._clock.monotonic()
            pause = self._settings.watch_interval
            if not watch.see(seen, at):
                continue
            if watch.leader is None:
                return seen  # it has just stepped down
            if not self._standby:
                raise _led_by(watch.leader)
            if watch.leader != leader:
                self._tell(watch.leader)
            # A large document is not to be fetched all the time.
            longest = self._settings.broker_heartbeat_interval / 2
            pause = max(pause, min(_REST * (at - began_at), longest))
        silence = {"silent_for": round(watch.silent_for, 3), "refused_connections": watch.refusals}
        logger.warning("leader_silent", extra={"leader": watch.leader, **silence})
        return watch.found

    async def _pause(self, watch: Watch, seconds: float) -> None:
        """Wait, and meanwhile try to connect to the leader, if that would tell anything."""
        ends_at = self._clock.monotonic() + seconds
        if watch.wants_to_connect and watch.leader is not None:
            try:
                async with asyncio.timeout(max(seconds, self._settings.watch_interval)):
                    watch.note(await self._connect(watch.leader))
            except TimeoutError:
                watch.note(Reached.UNCLEAR)
        await asyncio.sleep(max(ends_at - self._clock.monotonic(), 0.0))


def _led_by(leader: str) -> BrokerLeadershipError:
    return BrokerLeadershipError(
        f"the queue is led by {leader}, which is alive. Stop it first, start this broker with --standby "
        "(BrokerServer(standby=True)), or give it another storage",
        leader=leader,
    )


def _deleted(when: str) -> EngineStateError:
    return EngineStateError(f"the queue document was deleted {when}: it is never made anew")
