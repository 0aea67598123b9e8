"""A broker inside another ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.types import Receive, Scope, Send

from osqueue_client.errors import EngineStateError
from osqueue_storage import StorageBackend

from .addresses import checked_address
from .app import BrokerApp
from .clock import Clock, SystemClock
from .leading import leading
from .origins import Origins
from .service import NotRunning
from .settings import BrokerSettings
from .transport import Service


class MountedBroker:
    """A broker inside another ASGI application: mount it, and hold `running()` open while it serves.

    `wait()` tells when it no longer leads though `running()` is still open; from then on, and outside of
    `running()`, every request is refused with `BrokerLeadershipError`.
    `advertise` is the `host:port` at which others reach the application, with the path below which the broker
    is mounted: `10.0.0.7:8000/queue`.
    """

    def __init__(
        self,
        *,
        storage: StorageBackend,
        advertise: str,
        allow_origins: Sequence[str] | None = None,
        settings: BrokerSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._storage = storage
        self._advertise = checked_address(advertise)
        self._origins = Origins(allow_origins)
        self._settings = settings or BrokerSettings()
        self._settings.check_against(storage)
        self._clock = clock or SystemClock()
        self._app = self._application(NotRunning())
        self._is_running = False
        self._ended: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Lead the queue while the context is open; it may be opened again after it ended.

        Raises as `BrokerServer.start` does, and at its end as `BrokerServer.stop`. Whether this program has bound
        the port of `advertise` cannot be known here: after a crash, it may lead only when the dead leader, though
        it was itself, has given no sign of life for `broker_heartbeat_timeout`.
        """
        if self._is_running:
            raise EngineStateError("the broker runs already")
        self._is_running = True
        try:
            async with leading(
                self._storage, self._advertise, self._settings, self._clock, has_bound=False
            ) as leadership:
                self._ended = leadership.ended
                before, self._app = self._app, self._application(leadership.service)
                await leadership.drain(before)
                try:
                    yield
                finally:
                    served, self._app = self._app, self._application(NotRunning())
                    with leadership.losing_patience():
                        await leadership.drain(served)
        finally:
            self._is_running = False

    async def wait(self) -> None:
        """Return when `running()` has ended; raise what ended the leadership if that was a failure.

        To be called while `running()` is open; before, it returns at once.
        """
        if self._ended is not None:
            await asyncio.wait((self._ended,))
            if not self._ended.cancelled():
                self._ended.result()

    def _application(self, service: Service) -> BrokerApp:
        return BrokerApp(service, origins=self._origins, max_request_bytes=self._settings.max_request_bytes)


def create_app(
    *,
    storage: StorageBackend,
    advertise: str,
    allow_origins: Sequence[str] | None = None,
    settings: BrokerSettings | None = None,
) -> MountedBroker:
    """Return a broker to mount in an existing ASGI application; see `MountedBroker`."""
    return MountedBroker(storage=storage, advertise=advertise, allow_origins=allow_origins, settings=settings)
