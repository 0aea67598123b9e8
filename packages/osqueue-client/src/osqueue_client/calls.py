"""How a call goes: it finds the broker that leads, keeps to its time limit, and tells what may have happened."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from . import models, operations
from .discovery import Discovery
from .errors import (
    BrokerLeadershipError,
    BrokerProtocolError,
    ConfigError,
    DiscoveryError,
    OsqueueError,
    TransportConnectionError,
)
from .link import Link
from .models import Model
from .operations import Operation
from .transports import Transport, TransportFactory
from .transports.connection_errors import shown
from .wire_json import checked_request

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

_CAPITAL: Final = re.compile("[A-Z]")


@dataclass(slots=True)
class _Attempt:
    """How far a call has come: what its time limit means hangs on it."""

    link: Link | None = None
    is_sent: bool = False


class Calls:
    """The calls of one client, on one event loop, over one link at a time.

    `route` is a transport of the user's, which is never dropped, or where brokers may be and what makes a transport
    to one. `timeout`: seconds, for a call that has none of its own.
    """

    def __init__(self, route: Transport | tuple[Discovery, TransportFactory], timeout: float) -> None:
        self._timeout = _checked_timeout(timeout)
        self._link: Link | None = None
        self._discovery: Discovery | None = None
        if isinstance(route, tuple):
            self._discovery, self._make_transport = route
        else:
            self._link = Link(route, "the broker")
        self._next_leader: str | None = None
        self._has_learnt = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._limits: set[asyncio.Timeout] = set()
        # Owned here, ended by aclose(): to close an old connection takes none of a caller's time.
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def features(self) -> frozenset[str]:
        """What the broker adds to the old protocol; see `OsqueueClient.features`."""
        return (self._link.features if self._link else None) or frozenset()

    async def connect(self) -> None:
        """Find the broker and learn its features, and from now on those of each new one."""
        await self.call(operations.GET_STATS, models.Empty())
        self._has_learnt = True

    async def reconnect(self) -> None:
        """Drop the link (calls under way keep it to their end), and connect."""
        self._require_loop()
        self._drop(self._link)
        await self.connect()

    async def aclose(self) -> None:
        """End calls under way, and give back the link. Safe to call twice."""
        self._require_loop()
        self._is_closed = True
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        link, self._link = self._link, None
        if link is not None:
            self._retire(link)
        await asyncio.gather(*self._retiring)

    async def call(self, operation: Operation[Req, Res], request: Req, timeout: float | None = None) -> Res:
        """Return the broker's answer; see `OsqueueClient` for what is raised."""
        request = _checked(operation, request)
        seconds = self._timeout if timeout is None else _checked_timeout(timeout)
        self._require_loop()
        attempt = _Attempt()
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                self._limits.add(limit)
                return await self._ask(operation, request, seconds, attempt)
        except TimeoutError as error:
            if not limit.expired():
                raise
            # A leader that is silent for good is not asked for ever: the next call looks again.
            self._drop(attempt.link)
            raise TransportConnectionError(
                f"{operation.name}: {self._why_ended(attempt, seconds)}",
                outcome="unknown" if attempt.is_sent else "not_applied",
            ) from error
        finally:
            self._limits.discard(limit)

    def _why_ended(self, attempt: _Attempt, seconds: float) -> str:
        if self._is_closed:
            return "the client was closed during the call"
        if attempt.link is None:
            return f"no broker was found within {seconds:g} s"
        return f"no answer from {attempt.link.address} within {seconds:g} s"

    async def _ask(
        self, operation: Operation[Req, Res], request: Req, seconds: float, attempt: _Attempt
    ) -> Res:
        """Ask the broker; where the request surely had no effect, look for the leader again, once."""
        try:
            return await self._ask_once(operation, request, seconds, attempt)
        except (BrokerLeadershipError, TransportConnectionError) as error:
            if error.outcome != "not_applied" or self._discovery is None:
                raise
            return await self._ask_once(operation, request, seconds, attempt, after=error)

    async def _ask_once(
        self,
        operation: Operation[Req, Res],
        request: Req,
        seconds: float,
        attempt: _Attempt,
        *,
        after: Exception | None = None,
    ) -> Res:
        attempt.link, attempt.is_sent = None, False
        link = attempt.link = await self._open(seconds, after)
        try:
            if self._has_learnt and link.features is None:
                await link.call(operations.GET_STATS, models.Empty())
            attempt.is_sent = True
            return await link.call(operation, request)
        except (BrokerLeadershipError, TransportConnectionError) as error:
            self._drop(link, error.leader if isinstance(error, BrokerLeadershipError) else None)
            if not attempt.is_sent:
                error.outcome = "not_applied"
            raise

    async def _open(self, seconds: float, after: Exception | None) -> Link:
        async with self._opening:
            self._require_open()
            if self._link is not None:
                return self._link
            # A transport of the user's is never dropped: without a link there is a discovery.
            assert self._discovery is not None
            leader, self._next_leader = self._next_leader, None
            urls = (self._discovery.url_of(leader),) if leader else await self._discovery.candidates()
            link = await self._first_that_answers(urls, seconds, after)
            if self._is_closed:  # while it was opened
                self._retire(link)
            self._require_open()
            self._link = link
            return link

    def _require_open(self) -> None:
        if self._is_closed:
            raise ConfigError("the client is closed", outcome="not_applied")

    def _require_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigError(
                "the client was used on another event loop: make one in each asyncio.run(), or a SyncOsqueueClient",
                outcome="not_applied",
            )

    async def _first_that_answers(self, urls: Sequence[str], seconds: float, after: Exception | None) -> Link:
        if len(urls) == 1:
            return self._link_to(urls[0])
        failures = []
        for url in urls:
            link = self._link_to(url)
            has_answered = False
            try:
                # A part of the call's time for each, so that a silent one leaves some for those after it.
                async with asyncio.timeout(seconds / (len(urls) + 1)):
                    await link.call(operations.GET_STATS, models.Empty())
                has_answered = True
                return link
            except TimeoutError:
                failures.append(f"{link.address} (no answer in time)")
            except OsqueueError as error:  # another may lead
                failures.append(f"{link.address} ({error.message})")
            finally:
                if not has_answered:
                    self._retire(link)
        raise DiscoveryError(
            f"none of the {len(urls)} brokers leads the queue or can be reached: {', '.join(failures)}"
        ) from after

    def _link_to(self, url: str) -> Link:
        return Link(self._make_transport(url), shown(url))

    def _drop(self, link: Link | None, leader: str | None = None) -> None:
        """Use a link no more: the next call finds another, at the `leader` where that is known."""
        if self._discovery is not None and link is not None and link is self._link:
            self._link, self._next_leader = None, leader
            self._retire(link)

    def _retire(self, link: Link) -> None:
        task = asyncio.get_running_loop().create_task(link.retire(), name="osqueue-retire")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


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
