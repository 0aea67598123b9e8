"""The link in use: how a broker that leads is found, and how what is no longer used is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .discovery import Discovery
from .errors import BrokerLeadershipError, ConfigError, DiscoveryError, OsqueueError, TransportConnectionError
from .link import Link
from .shared import Shared
from .transports import CONNECT_TIMEOUT, Transport, TransportFactory
from .transports.connection_errors import shown


class Links:
    """One link at a time. `route` is a transport of the user's, which is never dropped, or where brokers may be and
    what makes a transport to one.
    """

    def __init__(self, route: Transport | tuple[Discovery, TransportFactory]) -> None:
        self.current: Link | None = None
        self._discovery: Discovery | None = None
        if isinstance(route, tuple):
            self._discovery, self._make_transport = route
        else:
            self.current = Link(route, "the broker")
        self._next_leader: str | None = None
        self._search = Shared(self._find, "osqueue-search")
        # Owned here, ended by aclose(): to close an old connection takes none of a caller's time. A dict for its order.
        self._retiring: dict[asyncio.Task[None], None] = {}
        self._is_closed = False

    async def open(self) -> Link:
        """Return the link in use, or look for a broker: once for all who need one at a time."""
        while not self._is_closed:
            if self.current is not None:
                return self.current
            await self._search.result()  # and look again: another may have dropped what was found
        raise _closed()

    def drop(self, link: Link | None, leader: str | None = None) -> None:
        """Use a link no more: the next call finds another, at the `leader` where that is known.

        A transport of the user's is kept, but who is at its other end now has to say anew what it knows.
        """
        if link is None or link is not self.current:
            return
        if self._discovery is None:
            link.features = None
            return
        self.current, self._next_leader = None, leader
        self._retire(link)

    def address_of(self, leader: str) -> str | None:
        """Return the address of the link to a leader; None where no link can be made to it."""
        try:
            return shown(self._discovery.url_of(leader)) if self._discovery is not None else None
        except DiscoveryError:
            return None

    async def aclose(self) -> None:
        """Give back the link. The calls on it must have been ended."""
        self._is_closed = True
        link, self.current = self.current, None
        if link is not None:
            self._retire(link)
        await self._search.ended()
        await asyncio.gather(*self._retiring)

    async def _find(self) -> Link:
        # A transport of the user's is never dropped: without a link there is a discovery.
        assert self._discovery is not None
        leader, self._next_leader = self._next_leader, None
        urls = (self._discovery.url_of(leader),) if leader else await self._discovery.candidates()
        link = self._link_to(urls[0]) if len(urls) == 1 else await self._first_that_answers(urls)
        if self._is_closed:  # while it was opened
            self._retire(link)
            raise _closed()
        self.current = link
        return link

    async def _first_that_answers(self, urls: Sequence[str]) -> Link:
        """Ask all at once: who leads does not wait for one that is silent."""
        links = [self._link_to(url) for url in urls]
        probes: list[asyncio.Task[OsqueueError | None]] = []
        found: Link | None = None
        try:
            async with asyncio.TaskGroup() as group:
                probes += [group.create_task(_probe(link)) for link in links]
                pending = list(probes)
                while pending and found is None:
                    await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    pending = [probe for probe in probes if not probe.done()]
                    answered = (
                        link for link, probe in zip(links, probes, strict=True) if _has_answered(probe)
                    )
                    found = next(answered, None)
                for probe in pending:
                    probe.cancel()
        finally:
            for link in links:
                if link is not found:
                    self._retire(link)
        if found is not None:
            return found
        errors = [error for probe in probes if (error := probe.result()) is not None]
        self._next_leader = next(filter(None, map(_leader_in, errors)), None)
        reasons = ", ".join(
            f"{link.address} ({error.message})" for link, error in zip(links, errors, strict=True)
        )
        raise DiscoveryError(f"none of the {len(urls)} brokers leads the queue or can be reached: {reasons}")

    def _link_to(self, url: str) -> Link:
        return Link(self._make_transport(url), shown(url))

    def _retire(self, link: Link) -> None:
        task = asyncio.get_running_loop().create_task(link.retire(), name="osqueue-retire")
        self._retiring[task] = None
        task.add_done_callback(lambda _: self._retiring.pop(task, None))


def _closed() -> ConfigError:
    return ConfigError("the client is closed", outcome="not_applied")


async def _probe(link: Link) -> OsqueueError | None:
    """Ask a broker whether it leads; return why it does not."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await link.learn()
    except TimeoutError:
        return TransportConnectionError("no answer in time", outcome="not_applied")
    except OsqueueError as error:
        return error
    return None


def _has_answered(probe: asyncio.Task[OsqueueError | None]) -> bool:
    return probe.done() and not probe.cancelled() and probe.exception() is None and probe.result() is None


def _leader_in(error: OsqueueError) -> str | None:
    return error.leader if isinstance(error, BrokerLeadershipError) else None
