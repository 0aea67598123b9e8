"""A broker's whole life, without a port: it tries the store, stands by, leads, and may stand by again."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from osqueue_client.errors import BrokerLeadershipError, OsqueueError, StorageBackendError
from osqueue_storage import StorageBackend, is_remote

from .addresses import is_loopback
from .clock import Clock
from .commit_loop import CommitLoop
from .document_writer import DocumentWriter
from .leadership import Candidate, Term
from .reaching import Connect, connect
from .readiness import Readiness
from .segment_store import SegmentStore
from .service import QueueService
from .settings import DOCUMENT_KEY, BrokerSettings
from .trial import try_store

logger = logging.getLogger("osqueue.broker")

T = TypeVar("T")


class Broker:
    """One broker at its advertised address, which serves through `service` while it leads.

    `has_bound`: this program has bound the port of that address, and closes it itself, so that no other broker can be
    there. `standby`: it waits while another broker leads, and again when it was deposed; else both end it.
    `run` is all of its life. Apart from `probe_storage` it has its time from `clock` and the event loop's timers alone,
    and its ids from `clock`.
    """

    def __init__(
        self,
        service: QueueService,
        storage: StorageBackend,
        address: str,
        *,
        settings: BrokerSettings,
        clock: Clock,
        has_bound: bool,
        standby: bool = False,
        connect: Connect = connect,
    ) -> None:
        self._service = service
        self._storage = storage
        self.address = address
        self._settings = settings
        self._clock = clock
        self._has_bound = has_bound
        self._standby = standby
        self._writer = DocumentWriter(storage, DOCUMENT_KEY, settings=settings, clock=clock)
        self._candidate = Candidate(
            self._writer, address, storage=storage, settings=settings, clock=clock, connect=connect,
            standby=standby, tell=self._stand_by,
        )  # fmt: skip
        self._commits: CommitLoop | None = None
        self._is_draining = asyncio.Event()
        self._is_stopping = False
        self.has_tried_store = asyncio.Event()
        """Set once the store was found fit for a queue."""
        self.leads = asyncio.Event()
        """Set while it leads the queue."""

    async def run(self) -> None:
        """Try the store, then stand by and lead in turns, until `stop` has the leadership handed over.

        Raises `ConfigError` if the store does not honour conditional writes; `StorageBackendError` if that cannot be
        told, and if not `standby`, also if the store does not answer before it leads; `EngineStateError` if the
        document has gone or cannot be read; and if not `standby`, `BrokerLeadershipError` if another broker leads.
        """
        end: OsqueueError = BrokerLeadershipError("this broker has stopped")
        try:
            await self._until_draining(self._start())
            has_just_bound = self._has_bound
            while True:
                turn = self._candidate.wait_for_turn(has_just_bound=has_just_bound)
                found = await self._until_draining(turn)
                has_just_bound = False
                self._stand_by(None)  # whoever led does no more, and this broker not yet
                term = await self._candidate.begin_term(found)  # left alone: what it writes may land
                if term is not None:
                    await self._lead(term)
        except _Stopped:
            pass
        except OsqueueError as error:
            end = copy.copy(error)
            end.outcome = "not_applied"
            raise
        finally:
            self._service.end(end, Readiness("stopped", getattr(end, "leader", None)))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Live while the context is open, which gives the task of its life.

        Raises at its end what ended that, and `StorageBackendError` if the hand-over is not confirmed in time.
        """
        life = asyncio.get_running_loop().create_task(self.run(), name="osqueue-broker-life")  # owned here
        try:
            yield life
        finally:
            self.stop()
            # The write before it may have used up the budget just now, and the one under way may wait for it.
            patience = self._settings.stop_timeout / 3 + 2 * self._settings.slowest_spacing(self._storage)
            has_handed_over = False
            try:
                await asyncio.wait((life,), timeout=patience)
                has_handed_over = life.done()
            finally:  # also if this is cancelled once more
                life.cancel()
            if not has_handed_over:
                logger.error("hand_over_timed_out", extra={"address": self.address})
                await asyncio.wait((life,))
            failure = None if life.cancelled() else life.exception()
        if failure is not None:
            raise failure
        if not has_handed_over:
            raise StorageBackendError(
                "stopped, but the leadership was not handed over, as the store does not answer: another broker may "
                f"lead after {self._settings.broker_heartbeat_timeout:g} s. Nothing that was acknowledged is lost",
                outcome="unknown",
            )

    @contextlib.contextmanager
    def losing_patience(self) -> Iterator[None]:
        """While requests under way are waited for, answer in time what the store does not confirm."""
        delay = 0.8 * self._settings.stop_timeout / 3
        impatience = asyncio.get_running_loop().call_later(delay, self.give_up)
        try:
            yield
        finally:
            impatience.cancel()

    def drain(self) -> None:
        """Begin no more terms, and answer nothing without a commit: the port is about to be closed."""
        self._is_draining.set()
        if self._commits is not None:
            self._commits.drain()

    def give_up(self) -> None:
        """Answer what waits for the store with `StorageBackendError`: it is not answering, and time is up."""
        if self._commits is not None:
            self._commits.give_up()

    def stop(self) -> None:
        """Have `run` commit what waits, hand the leadership over if it has it, and return."""
        self.drain()
        self._is_stopping = True
        if self._commits is not None:
            self._commits.stop()

    async def _start(self) -> None:
        if is_loopback(self.address) and is_remote(self._storage):
            logger.warning(
                "advertised as %s, which other machines cannot reach, to a store that they can: clients and standbys "
                "there will not find this broker, and one of their own at that address could be taken for it. Say with "
                "--advertise (advertise=) at which host:port others reach it",
                self.address,
            )
        if self._settings.probe_storage:
            await try_store(self._storage, self._settings)
        self.has_tried_store.set()

    def _stand_by(self, leader: str | None) -> None:
        """Refuse everything from now on, and say who leads."""
        told = f"the queue is led by {leader}" if leader else "nobody leads the queue just now"
        refusal = BrokerLeadershipError(f"this broker stands by: {told}", leader=leader)
        self._service.end(refusal, Readiness("standby", leader))

    async def _lead(self, term: Term) -> None:
        """Serve a term to its end. Raises `_Stopped` after the hand-over, and what ends the life of this broker."""
        self._commits = CommitLoop(
            term, writer=self._writer, candidate=self._candidate, settings=self._settings, clock=self._clock,
            segments=SegmentStore(self._storage, self._settings),
            fresh_for=self._settings.fresh_for(has_bound=self._has_bound),
        )  # fmt: skip
        if self._is_draining.is_set():
            self.drain()
        if self._is_stopping:
            self.stop()
        self._service.begin(self._commits)
        self.leads.set()
        try:
            await self._commits.run()
        except BrokerLeadershipError as lost:
            if not self._standby:
                raise
            self._stand_by(lost.leader)
        else:
            raise _Stopped
        finally:
            commits, self._commits = self._commits, None
            self.leads.clear()
            await commits.aclose()

    async def _until_draining(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns; cancel it and raise `_Stopped` when nothing is to be begun any more."""
        loop = asyncio.get_running_loop()
        working = loop.create_task(work, name="osqueue-standby")  # both are owned here
        draining = loop.create_task(self._is_draining.wait(), name="osqueue-draining")
        try:
            await asyncio.wait((working, draining), return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            draining.cancel()
            await asyncio.wait((working, draining))
        if working.cancelled():
            raise _Stopped
        result = working.result()
        if self._is_draining.is_set():
            raise _Stopped
        return result


class _Stopped(Exception):
    """The broker was asked to stop, and there is nothing left to hand over."""


async def first(fact: asyncio.Event, task: asyncio.Task[None]) -> bool:
    """Return when the event is set or the task has ended, and whether the event was set."""
    waiting = asyncio.get_running_loop().create_task(fact.wait())  # owned here
    try:
        await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
        return waiting.done()
    finally:
        waiting.cancel()
        await asyncio.wait((waiting,))
