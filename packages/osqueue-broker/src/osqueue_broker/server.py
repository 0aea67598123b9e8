"""The broker with a port of its own: how it starts, serves and ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from osqueue_client.errors import BrokerLeadershipError, EngineStateError
from osqueue_storage import StorageBackend

from .addresses import checked_address, checked_port, default_address, is_bound_here, join
from .app import BrokerApp
from .broker import Broker, first
from .clock import Clock, SystemClock
from .listener import Listener, bind, http_protocol
from .origins import Origins
from .service import QueueService
from .settings import BrokerSettings

logger = logging.getLogger("osqueue.broker")

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class BrokerServer:
    """A broker on a port of its own.

        async with BrokerServer(storage=FileBackend("./data"), port=8080) as server:
            await server.wait()

    `start()` leads the queue before it returns. With `standby` it returns as soon as the store was found fit: while
    another broker leads, every operation is refused with `BrokerLeadershipError`, which names it; this one takes over
    when it may, and if it is deposed, it stands by again. `is_leading` and `wait_leading()` tell which it is.

    `stop()` answers what is under way, commits it, and hands the leadership over. A failure in between stops the
    server and is raised by `wait()` and `stop()`; so is a store that does not confirm the hand-over within
    `stop_timeout` (`StorageBackendError`): the broker has ended all the same, and nothing acknowledged is lost, but
    another one may lead only after `broker_heartbeat_timeout`.

    The storage belongs to the caller and stays open. `advertise` is the `host:port` at which others reach
    this broker, by default what is bound (the host's name for a wildcard address).

    `http2` serves HTTP/2, and with it gRPC, on the same port. Experimental; raises `ConfigError` without the extra
    `osqueue-broker[h2]`.
    """

    def __init__(
        self,
        *,
        storage: StorageBackend,
        host: str = "127.0.0.1",
        port: int = 8080,
        advertise: str | None = None,
        allow_origins: Sequence[str] | None = None,
        settings: BrokerSettings | None = None,
        standby: bool = False,
        http2: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._storage = storage
        self._host = host
        self._port = checked_port(port)
        self._advertise = None if advertise is None else checked_address(advertise)
        self._origins = Origins(allow_origins)
        self._settings = settings or BrokerSettings()
        self._settings.check_against(storage)
        self._clock = clock or SystemClock()
        self._standby = standby
        self._protocol = http_protocol(http2=http2)
        self._main: asyncio.Task[None] | None = None
        self._must_stop = asyncio.Event()
        self._broker: Broker | None = None
        self._has_started = asyncio.Event()
        self._address: tuple[str, int] | None = None

    @property
    def address(self) -> str:
        """The `host:port` that is bound, once started: the real port when 0 was asked for."""
        if self._address is None:
            raise EngineStateError("the server has no address before start()")
        return join(*self._address)

    @property
    def is_leading(self) -> bool:
        """Whether it leads the queue now."""
        return self._broker is not None and self._broker.leads.is_set()

    async def start(self) -> None:
        """Bind the port, lead the queue or stand by, and serve.

        Raises `OSError` if the port cannot be had, `ConfigError` if the store does not honour conditional
        writes, `StorageBackendError` if it does not answer or refuses, `BrokerLeadershipError` that names the
        leader if another broker leads and this one is no standby, and `EngineStateError` if the document cannot be
        read.
        """
        if self._main is not None:
            raise EngineStateError("the server was started already")
        # The server's one task, owned by this object: wait() and stop() raise what ends it.
        self._main = asyncio.get_running_loop().create_task(self._run(), name="osqueue-broker")
        try:
            await self._wait_for(self._has_started, "the server was stopped before it served")
        except asyncio.CancelledError:
            self._main.cancel()
            await asyncio.wait((self._main,))
            raise

    async def wait_leading(self) -> None:
        """Return when it leads the queue; at once if it does.

        Raises what made the server stop before, and `BrokerLeadershipError` if it was only told to.
        """
        if self._broker is None:
            raise EngineStateError("the server has not started")
        await self._wait_for(self._broker.leads, "the server was stopped before it led")

    async def wait(self) -> None:
        """Return when the server has stopped; raise what made it stop if that was a failure."""
        if self._main is not None:
            await asyncio.wait((self._main,))
            if not self._main.cancelled():
                self._main.result()

    async def stop(self) -> None:
        """Take no more requests, finish those under way, hand over, and end. Safe twice and before start.

        Raises what `wait()` raises.
        """
        self._ask_to_stop()
        await self.wait()

    def _ask_to_stop(self) -> None:
        self._must_stop.set()
        if self._broker is not None:
            self._broker.drain()
        elif self._main is not None:
            self._main.cancel()  # it asks a name server, which may take long

    async def run(self, *, on_started: Callable[[], object] | None = None) -> None:
        """Start, call `on_started`, serve until SIGINT or SIGTERM, and stop. When cancelled, it stops, too."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._ask_to_stop)
        try:
            await self.start()
            if on_started is not None:
                on_started()
            await self.wait()
        except BrokerLeadershipError:
            if self._has_started.is_set() or not self._must_stop.is_set():
                raise
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
            self._ask_to_stop()
            if self._main is not None:
                await asyncio.wait((self._main,))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def _run(self) -> None:
        try:
            sock = bind(self._host, self._port)
        except OSError as error:
            place = f"{join(self._host, self._port)}: {error.strerror or error}"
            raise OSError(
                error.errno, f"cannot listen on {place}. Free it, or choose another port"
            ) from error
        with sock:
            self._address = sock.getsockname()[:2]
            advertised = self._advertise or default_address(*self._address)
            has_bound = self._advertise is None or await asyncio.to_thread(
                is_bound_here, advertised, self._address[1]
            )
            service = QueueService(self._storage, advertised, self._clock)
            self._broker = broker = Broker(
                service, self._storage, advertised, settings=self._settings, clock=self._clock, has_bound=has_bound,
                standby=self._standby,
            )  # fmt: skip
            async with broker.running() as life:
                if await first(broker.has_tried_store if self._standby else broker.leads, life):
                    await self._serve(sock, broker, service, life)
        logger.info("broker_stopped", extra={"address": self.address})

    async def _serve(
        self, sock: socket.socket, broker: Broker, service: QueueService, life: asyncio.Task[None]
    ) -> None:
        settings = self._settings
        app = BrokerApp(service, origins=self._origins, max_request_bytes=settings.max_request_bytes)
        listener = Listener(app, sock, receive_timeout=settings.receive_timeout, protocol=self._protocol)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(listener.serve())
            await listener.wait_started()
            self._has_started.set()
            logger.info("broker_started", extra={"address": self.address, "advertised": broker.address})
            await first(self._must_stop, life)
            broker.drain()
            with broker.losing_patience():
                await app.drain(settings.stop_timeout / 3)
                listener.stop(settings.stop_timeout / 3)
                await serving

    async def _wait_for(self, fact: asyncio.Event, otherwise: str) -> None:
        """Return when `fact` is set; raise what ended the server before."""
        assert self._main is not None
        if await first(fact, self._main):
            return
        await self.wait()
        raise BrokerLeadershipError(otherwise)
