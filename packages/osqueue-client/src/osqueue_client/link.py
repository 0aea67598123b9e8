"""A transport in use: given back only when the last call on it has ended."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from .models import Empty, Model, QueueStats
from .operations import GET_STATS, Operation
from .shared import Shared
from .transports import Transport

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)


class Link:
    """A transport, the calls on it, and what the broker at its other end knows.

    One call may learn that another broker leads while others still wait for answers that are on their way:
    to close the transport under them would turn these into calls of unknown outcome.
    """

    def __init__(self, transport: Transport, address: str) -> None:
        self.address = address
        self.features: frozenset[str] | None = None
        """What this very broker adds to the old protocol; None until it has told its stats."""
        self._transport = transport
        self._learning = Shared(self._learn, "osqueue-features")
        self._calls = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def call(self, operation: Operation[Req, Res], request: Req) -> Res:
        """See `Transport.call`."""
        self._calls += 1
        self._is_idle.clear()
        try:
            answer = await self._transport.call(operation, request)
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._is_idle.set()
        if isinstance(answer, QueueStats):
            self.features = frozenset(answer.features)
        return answer

    async def learn(self) -> None:
        """Ask for the stats, and so for the features: once for all who need them at a time."""
        await self._learning.result()

    async def _learn(self) -> None:
        self.features = frozenset((await self.call(GET_STATS, Empty())).features)

    async def retire(self) -> None:
        """Close the transport after the last call on it. No new call is made on it."""
        await self._is_idle.wait()
        await self._transport.aclose()
