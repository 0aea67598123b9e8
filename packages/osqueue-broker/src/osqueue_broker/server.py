"""The broker as a whole: storage, leadership, commit loop, transports, and how they start and end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Final, Self

from starlette.types import ASGIApp, Receive, Scope, Send

from osqueue_client.errors import BrokerLeadershipError, EngineStateError
from osqueue_storage import StorageBackend

from .app import BrokerApp
from .clock import Clock, SystemClock
from .commit_loop import CommitLoop
from .document_writer import DocumentWriter
from .leadership import Candidate
from .listener import Listener, bind
from .origins import Origins
from .service import QueueService
from .settings import DOCUMENT_KEY, BrokerSettings

logger = logging.getLogger("osqueue.broker")

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class BrokerServer:
    """A broker on a port of its own.

        async with BrokerServer(storage=FileBackend("./data"), port=8080) as server:
            await server.wait()

    `start()` leads the queue before it returns; `stop()` answers what is under way, commits it, and hands the
    leadership over. A failure in between stops the server and is raised by `wait()` and `stop()`.
    The storage belongs to the caller and stays open. `advertise` is the `host:port` at which others reach
    this broker, by default what is bound (the host's name for a wildcard address).
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
        clock: Clock | None = None,
    ) -> None:
        self._storage = storage
        self._host = host
        self._port = port
        self._advertise = advertise
        self._origins = Origins(allow_origins)
        self._settings = settings or BrokerSettings()
        self._settings.check_against(storage)
        self._clock = clock or SystemClock()
        self._main: asyncio.Task[None] | None = None
        self._must_stop = asyncio.Event()
        self._is_leading = False
        self._address: tuple[str, int] | None = None

    @property
    def address(self) -> str:
        """The `host:port` that is bound, once started: the real port when 0 was asked for."""
        if self._address is None:
            raise EngineStateError("the server has no address before start()")
        return _join(*self._address)

    async def start(self) -> None:
        """Bind the port, lead the queue, and serve.

        Raises `OSError` if the port cannot be had, `BrokerLeadershipError` that names the leader if another
        broker leads, `EngineStateError` if the document cannot be read, and `StorageBackendError` if the
        store does not answer.
        """
        if self._main is not None:
            raise EngineStateError("the server was started already")
        loop = asyncio.get_running_loop()
        has_started: asyncio.Future[None] = loop.create_future()
        # The server's one task, owned by this object: wait() and stop() raise what ends it.
        self._main = loop.create_task(self._run(has_started), name="osqueue-broker")
        try:
            await asyncio.wait((self._main, has_started), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._main.cancel()
            raise
        if self._main.done():
            has_started.cancel()
            if self._main.cancelled():
                raise BrokerLeadershipError("the server was stopped before it led")
            await self._main
        self._is_leading = True

    async def wait(self) -> None:
        """Return when the server has stopped; raise what made it stop if that was a failure."""
        if self._main is not None:
            await asyncio.wait((self._main,))
            if not self._main.cancelled():
                self._main.result()

    async def stop(self) -> None:
        """Take no more requests, finish those under way, hand over, and end. Safe twice and before start."""
        self._ask_to_stop()
        await self.wait()

    def _ask_to_stop(self) -> None:
        self._must_stop.set()
        if self._main is not None and not self._is_leading:
            self._main.cancel()  # it still watches another leader, or asks a store that does not answer

    async def run(self, *, on_started: Callable[[], object] | None = None) -> None:
        """Start, call `on_started`, serve until SIGINT or SIGTERM, and stop."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._ask_to_stop)
        try:
            await self.start()
            if on_started is not None:
                on_started()
            await self.wait()
        except BrokerLeadershipError:
            if not (self._must_stop.is_set() and not self._is_leading):
                raise
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def _run(self, has_started: asyncio.Future[None]) -> None:
        sock = bind(self._host, self._port)
        with sock:
            self._address = sock.getsockname()[:2]
            advertised = self._advertise or _advertised(*self._address)
            async with _leading(self._storage, advertised, self._settings, self._clock) as (commits, service):
                app = BrokerApp(
                    service, origins=self._origins, max_request_bytes=self._settings.max_request_bytes
                )
                listener = Listener(app, sock)
                async with asyncio.TaskGroup() as group:
                    group.create_task(listener.serve())
                    await listener.wait_started()
                    has_started.set_result(None)
                    logger.info("broker_started", extra={"address": self.address, "advertised": advertised})
                    await _first(commits.has_ended, self._must_stop)
                    third = self._settings.stop_timeout / 3
                    # What the store has not confirmed by then is answered all the same, with what is known of it.
                    impatience = asyncio.get_running_loop().call_later(0.8 * third, commits.give_up)
                    await app.drain()
                    listener.stop(third)
                impatience.cancel()
        logger.info("broker_stopped", extra={"address": self.address})


class MountedBroker:
    """A broker inside another ASGI application: mount `app`, and hold `running()` open while it serves.

    `advertise` is the `host:port` at which others reach the application.
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
        self._advertise = advertise
        self._origins = Origins(allow_origins)
        self._settings = settings or BrokerSettings()
        self._settings.check_against(storage)
        self._clock = clock or SystemClock()
        self._app: BrokerApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            raise EngineStateError("the broker is not running: hold its running() open in the lifespan")
        app: ASGIApp = self._app
        await app(scope, receive, send)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Lead the queue while the context is open. Raises as `BrokerServer.start` does."""
        async with _leading(self._storage, self._advertise, self._settings, self._clock) as (_, service):
            self._app = BrokerApp(
                service, origins=self._origins, max_request_bytes=self._settings.max_request_bytes
            )
            try:
                yield
            finally:
                await self._app.drain()
                self._app = None


def create_app(
    *,
    storage: StorageBackend,
    advertise: str,
    allow_origins: Sequence[str] | None = None,
    settings: BrokerSettings | None = None,
) -> MountedBroker:
    """Return a broker to mount in an existing ASGI application; see `MountedBroker`."""
    return MountedBroker(storage=storage, advertise=advertise, allow_origins=allow_origins, settings=settings)


@contextlib.asynccontextmanager
async def _leading(
    storage: StorageBackend, address: str, settings: BrokerSettings, clock: Clock
) -> AsyncIterator[tuple[CommitLoop, QueueService]]:
    """Lead the queue at `address` while the context is open; raise what ends the term before that."""
    writer = DocumentWriter(storage, DOCUMENT_KEY, attempt_timeout=settings.storage_timeout)
    candidate = Candidate(writer, address, settings=settings, rules=settings.rules(storage), clock=clock)
    term = await candidate.run()
    commits = CommitLoop(
        term,
        writer=writer,
        candidate=candidate,
        settings=settings,
        write_spacing=settings.write_spacing(storage),
        clock=clock,
    )
    running = asyncio.get_running_loop().create_task(commits.run(), name="osqueue-commits")  # owned here
    try:
        yield commits, QueueService(commits, address, clock)
    finally:
        commits.stop()
        done, _ = await asyncio.wait((running,), timeout=settings.stop_timeout / 3)
        if not done:
            logger.error("hand_over_timed_out", extra={"address": address})
            running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def _first(*events: asyncio.Event) -> None:
    """Return when one of the events is set."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


def _advertised(host: str, port: int) -> str:
    is_wildcard = ipaddress.ip_address(host).is_unspecified
    return _join(socket.gethostname() if is_wildcard else host, port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
