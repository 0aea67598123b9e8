"""A transport in use: given back only when the last call on it has ended."""

from __future__ import annotations

from typing import TypeVar

from .models import Model
from .operations import Operation
from .transports import Transport

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)


class Link:
    """A transport and the number of calls on it.

    One call may learn that another broker leads while others still wait for answers that are on their way:
    to close the transport under them would turn these into calls of unknown outcome.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._calls = 0
        self._is_retired = False

    async def call(self, operation: Operation[Req, Res], request: Req) -> Res:
        """See `Transport.call`."""
        self._calls += 1
        try:
            return await self.transport.call(operation, request)
        finally:
            self._calls -= 1
            await self._close_when_done()

    async def retire(self) -> None:
        """Close the transport, now or after the last call on it. No new call is made on it."""
        self._is_retired = True
        await self._close_when_done()

    async def _close_when_done(self) -> None:
        if self._is_retired and self._calls == 0:
            await self.transport.aclose()
