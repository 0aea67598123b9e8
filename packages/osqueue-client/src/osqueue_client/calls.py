"""How a call goes: it is checked, sent, and repeated until an answer is clear or its time is up."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import msgspec

from . import models, operations
from .chance import Chance
from .discovery import Discovery
from .errors import BrokerLeadershipError, BrokerProtocolError, ConfigError, OsqueueError
from .features import REQUEST_IDS, WAIT
from .link import Link
from .links import Links
from .models import Model
from .operations import Operation
from .repeats import NotAgain, NotKnown, TimeIsUp, Tries
from .session import Sessions, SingleSessions
from .transports import Transport, TransportFactory
from .wire_json import checked_request

T = TypeVar("T")
Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

_logger: Final = logging.getLogger("osqueue.client")
_SILENCE: Final = 1.0
"""Seconds for which a call fails before the log says so: a leader that hands over is no news."""
_CAPITAL: Final = re.compile("[A-Z]")


class Calls:
    """The calls of one client, on one event loop, over one link at a time.

    `timeout`: seconds, for a call that has none of its own.
    """

    def __init__(
        self, route: Transport | tuple[Discovery, TransportFactory], timeout: float, chance: Chance
    ) -> None:
        self._timeout = _checked_timeout(timeout)
        self._links = Links(route)
        self._sessions = Sessions(chance.session_id)
        # A session's `lowest` stands while a claim waits, and would have the broker remember the answers of everything
        # that follows it.
        self._waiting_sessions = SingleSessions(chance.session_id)
        self._jitter = chance.jitter
        self._slept = chance.slept
        self._has_learnt = False
        self._features: frozenset[str] = frozenset()
        """As they were last known."""
        self._has_warned = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # A dict for its order: in a simulation they end in the same one each time.
        self._limits: dict[asyncio.Timeout, None] = {}
        self._is_closed = False

    @property
    def features(self) -> frozenset[str]:
        """What the broker adds to the old protocol; see `OsqueueClient.features`."""
        link = self._links.current
        if link is not None and link.features is not None:
            self._features = link.features
        return self._features

    async def connect(self) -> None:
        """Find the broker and learn its features, and from now on those of each new one."""
        await self.call(operations.GET_STATS, models.Empty())
        self._has_learnt = True

    async def reconnect(self) -> None:
        """Drop the link (calls under way keep it to their end), and connect."""
        self._running_loop()
        self._links.drop(self._links.current)
        await self.connect()

    async def aclose(self) -> None:
        """End calls under way, and give back the link. Safe to call twice."""
        loop = self._running_loop()
        self._is_closed = True
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(loop.time())
        await self._links.aclose()

    async def call(
        self,
        operation: Operation[Req, Res],
        request: Req,
        timeout: float | None = None,
        *,
        needs: str | None = None,
        wait_until: float | None = None,
    ) -> Res:
        """Return the broker's answer; see `OsqueueClient` for what is raised.

        `needs` is the feature without which the request would mean nothing: raises `NotKnown` if the broker lacks it. A
        claim may wait at the broker until `wait_until` (as by `now`), but no longer than one request can; its timeout
        begins then.
        """
        request = _checked(operation, request)
        now = self.now()
        seconds = self._timeout if timeout is None else _checked_timeout(timeout)
        if wait_until is not None:
            seconds += max(0.0, wait_until - now)
        tries = Tries(operation, operation.may_be_repeated, now, seconds, wait_until)
        try:
            while True:
                try:
                    answer = await self._ask(operation, request, tries, needs)
                    break
                except TimeIsUp:
                    failure = self._silence(tries)
                except OsqueueError as error:
                    failure = error
                except NotAgain:
                    raise tries.conclusion(self.now()) from None
                await self._before_next(tries, failure)
        finally:
            if tries.place is not None:
                tries.place.give_back()
        self._has_warned = False
        return answer

    async def _ask(
        self, operation: Operation[Req, Res], request: Req, tries: Tries, needs: str | None
    ) -> Res:
        """Make one attempt. Raises `TimeIsUp`, and whatever the broker answers."""
        tries.begin(self.now())
        must_know = tries.is_change or needs is not None or self._has_learnt
        link = tries.link = self._links.current
        if link is None or (link.features is None and must_know):
            link = await self._within(tries.limit(self.now()), self._ready(tries, must_know))
        features = link.features or frozenset()
        tries.knows_ids = REQUEST_IDS in features
        if tries.is_change:
            tries.begin_anew(self.now())
            tries.require_may_send(self.now())
        if needs is not None and needs not in features:
            if tries.is_change and tries.doubtful_since is not None:
                raise NotAgain
            raise NotKnown
        tries.begin_wait(self.now(), is_known=WAIT in features)
        if tries.wait:
            request = msgspec.structs.replace(request, wait=tries.wait)
        if tries.knows_ids and tries.is_change:
            request = self._numbered(request, tries)
        tries.sent_at = self.now()
        return await self._within(tries.limit(tries.sent_at), link.call(operation, request))

    async def _ready(self, tries: Tries, must_know: bool) -> Link:
        """Find a broker, and learn of it what must be known before it is asked."""
        while True:
            link = tries.link = await self._links.open()
            if link.features is not None or not must_know:
                return link
            await link.learn()  # and look again: another may have dropped it meanwhile

    def _numbered(self, request: Req, tries: Tries) -> Req:
        """Return a change with an id, so that it may be repeated."""
        now = self.now()
        if tries.place is None:
            sessions = self._sessions if tries.wait_until is None else self._waiting_sessions
            tries.place = sessions.take(now)
        request_id = tries.place.request_id(now, tries.first_sent_at(now))
        return msgspec.structs.replace(request, request_id=request_id)

    def _silence(self, tries: Tries) -> OsqueueError:
        """Return how an attempt failed whose time was up."""
        if self._is_closed:
            raise tries.closed()
        return tries.no_answer(self.now())

    async def _before_next(self, tries: Tries, failure: OsqueueError) -> None:
        """Wait as long as is due after a failure, or raise what the caller gets."""
        if self._is_closed and not isinstance(failure, ConfigError):  # else it was closed before the call
            raise tries.closed() from failure
        now = self.now()
        leader = failure.leader if isinstance(failure, BrokerLeadershipError) else None
        if tries.may_pass(failure):
            # A leader that is silent for good is not asked for ever, either.
            self._links.drop(tries.link, leader)
        if not tries.failed(failure, now):
            raise tries.conclusion(now)
        named = self._links.address_of(leader) if leader else None
        delay = tries.next_delay(named, self._jitter())
        if now + delay >= tries.deadline:
            raise tries.conclusion(now)
        self._warn(tries, now)
        try:
            await self._within(tries.deadline, asyncio.sleep(delay))
        except TimeIsUp:
            if self._is_closed:
                raise tries.closed() from failure
            raise tries.conclusion(self.now()) from None  # the event loop stood still until the time was up

    async def _within(self, moment: float, work: Coroutine[Any, Any, T]) -> T:
        """Do some work, at most until then and until the client is closed. Raises `TimeIsUp`."""
        limit = asyncio.timeout_at(moment - self._slept())
        try:
            async with limit:
                self._limits[limit] = None
                return await work
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeIsUp from error
        finally:
            self._limits.pop(limit, None)

    def _warn(self, tries: Tries, now: float) -> None:
        """Say once for all calls that they are repeated, until one has been answered."""
        if self._has_warned or now - tries.begun_at < _SILENCE:
            return
        self._has_warned = True
        left = tries.deadline - now
        _logger.warning("%s; it is tried again for up to %.0f s", tries.failure_text, left)

    def now(self) -> float:
        """Return the time on a clock that goes on while the machine sleeps."""
        return self._running_loop().time() + self._slept()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigError(
                "the client was used on another event loop: make one in each asyncio.run(), or a SyncOsqueueClient",
                outcome="not_applied",
            )
        return loop


def _checked_timeout(timeout: float) -> float:
    if not timeout > 0:  # so that NaN is refused, too
        raise ConfigError(f"timeout must be more than 0 s, not {timeout!r}", outcome="not_applied")
    return timeout


def _checked(operation: Operation[Req, Model], request: Req) -> Req:
    try:
        return checked_request(operation, request)
    except BrokerProtocolError as error:
        argument = _CAPITAL.sub(lambda found: f"_{found[0].lower()}", error.field or "")
        if argument != (error.field or ""):
            error.args = (f"{error.message} (argument {argument!r})",)
        raise
