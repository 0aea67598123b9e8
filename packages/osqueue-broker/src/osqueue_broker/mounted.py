"""A broker inside another ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.types import Receive, Scope, Send

from osqueue_client.errors import BrokerLeadershipError, EngineStateError
from osqueue_storage import StorageBackend

from .addresses import checked_address
from .app import BrokerApp
from .broker import Broker, first
from .clock import Clock, SystemClock
from .origins import Origins
from .readiness import Readiness
from .service import QueueService
from .settings import BrokerSettings


class MountedBroker:
    """A broker inside another ASGI application: mount it, and hold `running()` open while it serves.

    `wait()` tells when it no longer leads though `running()` is still open; from then on, and outside of
    `running()`, every request is refused with `BrokerLeadershipError`. With `standby` it stands by instead, while
    another broker leads and when it was deposed, as a `BrokerServer` does.
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
        standby: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._storage = storage
        self._advertise = checked_address(advertise)
        self._origins = Origins(allow_origins)
        self._settings = settings or BrokerSettings()
        self._settings.check_against(storage)
        self._clock = clock or SystemClock()
        self._standby = standby
        self._service = QueueService(storage, advertise, self._clock)
        self._service.end(_not_running(), Readiness("starting"))
        self._app = self._application()
        self._broker: Broker | None = None
        self._ended: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    @property
    def is_leading(self) -> bool:
        """Whether it leads the queue now."""
        return self._broker is not None and self._broker.leads.is_set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Lead the queue, or stand by, while the context is open; it may be opened again after it ended.

        Raises as `BrokerServer.start` does, and at its end as `BrokerServer.stop`. Whether this program has bound
        the port of `advertise` cannot be known here: after a crash, it may lead only when the dead leader, though
        it was itself, has given no sign of life for `broker_heartbeat_timeout`.
        """
        if self._broker is not None:
            raise EngineStateError("the broker runs already")
        self._broker = broker = Broker(
            self._service, self._storage, self._advertise, settings=self._settings, clock=self._clock, has_bound=False,
            standby=self._standby,
        )  # fmt: skip
        try:
            async with broker.running() as life:
                self._ended = life
                if await first(broker.has_tried_store if self._standby else broker.leads, life):
                    try:
                        yield
                    finally:
                        broker.drain()
                        served, self._app = self._app, self._application()
                        with broker.losing_patience():
                            await served.drain(self._settings.stop_timeout / 3)
        finally:
            self._broker = None
            self._service.end(_not_running(), Readiness("stopped"))

    async def wait(self) -> None:
        """Return when `running()` has ended; raise what ended the leadership if that was a failure.

        To be called while `running()` is open; before, it returns at once.
        """
        if self._ended is not None:
            await asyncio.wait((self._ended,))
            if not self._ended.cancelled():
                self._ended.result()

    async def wait_leading(self) -> None:
        """Return when it leads the queue; at once if it does. To be called while `running()` is open.

        Raises what ended it before, and `BrokerLeadershipError` if `running()` has ended or is not open.
        """
        broker, ended = self._broker, self._ended
        if broker is None or ended is None:
            raise _not_running()
        if not await first(broker.leads, ended):
            await self.wait()
            raise _not_running()

    def _application(self) -> BrokerApp:
        return BrokerApp(
            self._service, origins=self._origins, max_request_bytes=self._settings.max_request_bytes
        )


def create_app(
    *,
    storage: StorageBackend,
    advertise: str,
    allow_origins: Sequence[str] | None = None,
    settings: BrokerSettings | None = None,
    standby: bool = False,
) -> MountedBroker:
    """Return a broker to mount in an existing ASGI application; see `MountedBroker`."""
    return MountedBroker(
        storage=storage, advertise=advertise, allow_origins=allow_origins, settings=settings, standby=standby
    )


def _not_running() -> BrokerLeadershipError:
    return BrokerLeadershipError(
        "this broker is not running: its application has to hold running() open while it serves"
    )
