"""The commit loop: many requests, one conditional write, and no answer before it has landed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import Final

from msgspec.structs import replace

from osqueue_client.errors import BrokerLeadershipError, EngineStateError, OsqueueError
from osqueue_client.models import CommitStats, Model
from osqueue_storage import StoredObject

from .clock import Clock
from .document_writer import DocumentWriter, Gone, Landed, Superseded
from .inbox import Inbox
from .leadership import Candidate, Term
from .queue.apply import Applied, answer_without_commit, apply, requests_done
from .queue.document import read_header, write_document
from .queue.mutation import Mutation
from .queue.rules import Now
from .queue.terms import Header
from .readiness import Readiness
from .segment_keeper import SegmentKeeper
from .segment_store import SegmentStore
from .settings import BrokerSettings
from .written import Written

logger = logging.getLogger("osqueue.broker.commit")

_LONGEST_GATHERING: Final = 0.05

_SHORTEST_TIMER: Final = 0.002
"""Event loops keep time in milliseconds: what is shorter is waited for by turns of the loop."""


class CommitLoop:
    """One task that applies what has arrived, writes what has changed, and answers.

    While a write is in flight, the next batch gathers. Without a change nothing is written, save the sign of
    life. The loop sleeps until a request arrives, a lease expires, or a sign of life is due. Where writes must
    be spaced, only what has to be written waits for that.

    For `fresh_for` seconds from the sending of its last landed write, nobody can have taken over.
    """

    def __init__(
        self,
        term: Term,
        *,
        writer: DocumentWriter,
        candidate: Candidate,
        settings: BrokerSettings,
        clock: Clock,
        segments: SegmentStore,
        fresh_for: float,
    ) -> None:
        self._term = term
        self._writer = writer
        self._candidate = candidate
        self._settings = settings
        self._clock = clock
        self._inbox = Inbox(settings)
        self._segments = SegmentKeeper(
            segments, settings=settings, clock=clock, put=self._inbox.put_own, resume=self._inbox.resume
        )
        self._written = Written(clock.monotonic())
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._fresh_for = fresh_for
        self._is_draining = False
        self._stopping = False
        self._served = 0.0
        self._longest_step = min(settings.broker_heartbeat_interval, settings.heartbeat_timeout / 3)
        self._seen_at = clock.monotonic()
        self._patience = 0.0
        self._commit_takes = 0.0

    @property
    def document(self) -> bytes:
        """The document as it was last committed."""
        return self._term.body

    def written(self) -> CommitStats:
        """Return what this term has written so far."""
        stats = self._written.stats(self._clock.monotonic())
        return replace(stats, segment_writes=self._segments.made, segment_bytes=self._segments.made_bytes)

    def put(self, mutation: Mutation, size: int = 0) -> asyncio.Future[Model]:
        """Queue a request for the next batch; see `Inbox.put`."""
        return self._inbox.put(mutation, size)

    def readiness(self) -> Readiness:
        """Return whether the leader may answer by itself."""
        if self._is_draining:
            return Readiness("stopping")
        return Readiness("ready" if self._is_fresh() else "stale")

    def drain(self) -> None:
        """Answer nothing without a commit from now on: who finds the port closed may take over at any moment.

        Claims that wait for a job are turned away: they would hold up the end.
        """
        self._is_draining = True
        self._inbox.refuse_waits(BrokerLeadershipError("this broker stops", outcome="not_applied"))

    def stop(self) -> None:
        """Have `run` commit what waits, hand the leadership over, and return."""
        self.drain()
        self._segments.stop()  # a budget on the store is for the hand-over now
        self._stopping = True
        self._inbox.wake()

    def give_up(self) -> None:
        """Answer what waits for the store with `StorageBackendError`: it is not answering, and time is up."""
        self._inbox.give_up()

    async def run(self) -> None:
        """Lead until `stop`, or until the term is over.

        Raises `BrokerLeadershipError` when another broker leads, and `EngineStateError` when the document
        has gone or cannot be read. What was under way is answered with the same error, and what only waited, too,
        as surely not applied.
        """
        try:
            self._segments.begin(self._term.state, self._term.header)
            while not self._stopping:
                await self._wait()
                if not self._stopping:
                    await self._run_batch(leader=self._candidate.address)
            await self._hand_over()
            self._inbox.close(BrokerLeadershipError("this broker has stopped"))
        except OsqueueError as error:
            self._inbox.close(error)
            raise
        except BaseException:
            self._inbox.close(EngineStateError("the broker ended before it could answer", outcome="unknown"))
            raise
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
            self._segments.stop()

    async def aclose(self) -> None:
        """Wait for what `run` has left behind when it ended."""
        await self._segments.aclose()

    # One batch

    async def _run_batch(self, *, leader: str | None) -> bool:
        """Apply what waits, write what has changed, and answer; return whether a commit has landed."""
        now = self._now()
        state = self._term.state
        for new_id in self._inbox.take_withdrawn():
            state.waiting_claims.remove(new_id)
        room = math.inf if leader is None else self._room()  # the last batch is of all that waits
        batch = [waiting.mutation for waiting in self._inbox.take(room)]
        applied = apply(state, batch, now)
        self._inbox.take_late(claim for claim, _ in applied.late)
        owes_commit = applied.has_changed or leader is None or self._sign_of_life_in() <= 0
        for segment in applied.needed:
            self._segments.need(segment)
        if not owes_commit and (not batch or self._is_fresh()):
            self._answer(applied)
            return False
        superseded_by = await self._write(broker=leader)
        has_landed = superseded_by is None or superseded_by.holds_ours
        if has_landed:
            self._written.requests += requests_done(batch, applied)
            self._answer(applied)
        if superseded_by is not None and not (has_landed and leader is None):
            await self._end_term(superseded_by.found)
        return has_landed

    def _room(self) -> int:
        """Return how many bytes of requests the next batch may hold.

        It is bounded so that no batch holds up the event loop for long, and that the document does not grow faster
        than segments are made of it; but where commits take long, what waits must not wait for many of them.
        """
        threshold = self._term.state.rules.segment_threshold
        room = max(min(threshold // 2, 2 * threshold - len(self._term.body)), threshold // 8)
        commits = self._settings.request_timeout / 4 / max(self._commit_takes, self._writer.spacing, 1e-6)
        return max(room, math.ceil(self._inbox.bytes / commits))

    def _answer(self, applied: Applied) -> None:
        self._inbox.answer(applied.answers)
        if applied.late:
            self._inbox.answer_late(applied)
        for segment in applied.needed:  # once more: they may have been read, and given up again, meanwhile
            self._segments.need(segment)

    def _answer_quiet(self) -> None:
        """Answer what never needs a write, from the committed state."""
        mutations = [waiting.mutation for waiting in self._inbox.take_quiet()]
        self._answer(answer_without_commit(self._term.state, mutations, self._now()))

    async def _write(self, *, broker: str | None) -> Superseded | None:
        """Write the state; return None when it has landed, else by what it was superseded."""
        term = self._term
        header = term.header.next_commit(
            commit_id=self._clock.new_id(), wall_ms=self._clock.wall_ms(), broker=broker
        )
        assert header.stamp is not None
        began_at = self._clock.monotonic()
        body = write_document(header, term.state)
        sent_at = self._clock.monotonic()
        match await self._writer.replace(body, header.stamp, term.version):
            case Landed(version):
                landed_at = self._clock.monotonic()
                self._commit_takes = landed_at - began_at
                self._patience = min(sent_at - began_at + (landed_at - sent_at) / 4, _LONGEST_GATHERING)
                self._term = Term(term.state, header, version, sent_at, body)
                self._written.note(len(body), landed_at - sent_at)
                if not self._stopping:
                    self._segments.after_commit(header, len(body))
                return None
            case Superseded() as superseded:
                return superseded
            case Gone():
                raise EngineStateError(
                    "the queue document was deleted while this broker led: it is never made anew from memory",
                    outcome="unknown",
                )

    async def _end_term(self, found: StoredObject) -> None:
        """Never write from this memory again: begin a new term upon what was found if it is still ours to lead."""
        lost = _lost_to(read_header(found.body).broker)
        self._inbox.refuse_taken(lost)
        self._inbox.end_waits(lost)
        end: Term | StoredObject = found
        while not isinstance(end, Term):
            header = read_header(end.body)
            if header.broker != self._candidate.address or self._is_succeeded_by(header):
                epoch = None if header.stamp is None else header.stamp.epoch
                logger.warning("leadership_lost", extra={"leader": header.broker, "epoch": epoch})
                raise _lost_to(header.broker)
            logger.warning("document_rewritten", extra={"leader": header.broker})
            end = await self._candidate.take_over(end)
        self._term = end
        self._segments.begin(end.state, end.header)
        self._inbox.resume()  # the segments that were waited for are those of the old state
        self._written = Written(self._clock.monotonic())
        self._served = 0.0
        self._seen_at = self._clock.monotonic()

    def _is_succeeded_by(self, header: Header) -> bool:
        """Whether the document is of a term that was not begun here: then another broker has our address."""
        return header.stamp is not None and header.stamp.epoch > self._candidate.epoch

    async def _hand_over(self) -> None:
        """Commit what still waits, and say in the document that nobody leads: the next broker may at once."""
        has_landed = False
        while not has_landed:  # if somebody else rewrites the document just now, once more
            has_landed = await self._run_batch(leader=None)
        logger.info("leadership_released", extra={"address": self._candidate.address})

    # Time

    def _now(self) -> Now:
        """Return the moment of this batch. Time in which nobody was served does not count against leases:

        while a lease runs the loop looks at the clock at least that often, unless it was paused or a write took
        longer.
        """
        at = self._clock.monotonic()
        self._served += min(at - self._seen_at, self._longest_step)
        self._seen_at = at
        return Now(self._clock.wall_ms(), self._served)

    def _is_fresh(self) -> bool:
        """Whether nobody can have taken over yet, so that an answer may be given without a write."""
        return not self._is_draining and self._clock.monotonic() - self._term.sent_at < self._fresh_for

    def _sign_of_life_in(self) -> float:
        """Seconds until the next sign of life is due."""
        interval = self._settings.broker_heartbeat_interval
        return self._term.sent_at + interval - self._clock.monotonic()

    def _lease_expires_in(self) -> float | None:
        deadline = self._term.state.next_lease_deadline()
        if deadline is None:
            return None
        left = deadline - self._served - (self._clock.monotonic() - self._seen_at)
        return min(left, self._longest_step)

    async def _wait(self) -> None:
        """Return when there is something to do, and the store may be written again."""
        if not len(self._inbox) and not self._stopping:
            due = self._sign_of_life_in()
            for other in (self._lease_expires_in(), self._inbox.next_wait_ends_in()):
                due = due if other is None else min(due, other)
            self._set_alarm(due)
            await self._inbox.wait()
        while (spacing := self._writer.due_in()) and not self._stopping:
            if not self._is_fresh():
                await asyncio.sleep(spacing)
                break
            self._answer_quiet()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(spacing, self._longest_step)):
                    await self._inbox.wait()
        await self._gather()

    async def _gather(self) -> None:
        """Give those who were answered just now, and most likely ask again, the time to join this batch.

        Otherwise two groups of callers alternate, and each commit serves half of them. It takes at most what
        the last commit took to encode and a quarter of what it took to write; and no time when as many wait
        as there were callers, as with a single one.
        """
        end = self._clock.monotonic() + self._patience
        while self._inbox.lacks_callers and not self._stopping:
            left = end - self._clock.monotonic()
            if left <= 0:
                return
            if left < _SHORTEST_TIMER:
                await asyncio.sleep(0)
            else:
                await self._inbox.wait_for_callers(left)

    def _set_alarm(self, delay: float) -> None:
        """Be woken after `delay` seconds at the latest. An alarm that rings too early does no harm."""
        at = self._loop.time() + max(delay, 0.0)
        if self._alarm is not None:
            if self._alarm.when() <= at and not self._alarm.cancelled():
                return
            self._alarm.cancel()
        self._alarm = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._inbox.wake()


def _lost_to(leader: str | None) -> BrokerLeadershipError:
    return BrokerLeadershipError(f"the queue is led by {leader or 'nobody'} now", leader=leader)
