"""Broker processes of the real code, which are started again after they ended."""

from __future__ import annotations

import asyncio

from osqueue_broker import BrokerSettings
from osqueue_broker.broker import Broker, first
from osqueue_broker.service import QueueService
from osqueue_client import OsqueueError

from .loop import Node
from .network import Network
from .store import SimStore, StoreView
from .world import Clock, World


class BrokerProcess:
    """One broker at one address, in one process after the other."""

    def __init__(
        self,
        world: World,
        network: Network,
        store: SimStore,
        name: str,
        settings: BrokerSettings,
        *,
        standby: bool,
    ) -> None:
        self.world = world
        self.name = name
        self.address = f"{name}:8080"
        self._network = network
        self._store = store
        self._settings = settings
        self._standby = standby
        self._lives = 0
        self.node: Node | None = None
        self.clock: Clock | None = None
        self._must_stop = asyncio.Event()
        self._is_ended = True

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self.node is not None and not self.node.is_dead and not self._is_ended

    def start(self) -> None:
        """Start a new process, unless there is one."""
        if self.is_running:
            return
        self._lives += 1
        self.node = self.world.new_node(f"{self.name}.{self._lives}")
        self.clock = Clock(self.world, self.node)
        self._must_stop = asyncio.Event()
        self._is_ended = False
        self.world.trace(self.node.name, "starts")
        self.node.spawn(self._live(self.node, self.clock, self._must_stop), "broker")

    def kill(self) -> None:
        """End the process as kill -9 does."""
        if self.node is not None and self.is_running:
            self.world.trace(self.node.name, "is killed")
            self.node.kill()
            self._network.killed(self.node)

    def stop(self) -> None:
        """Ask it to end, as SIGTERM does."""
        if self.node is not None and self.is_running:
            self.world.trace(self.node.name, "is asked to stop")
            self._must_stop.set()

    async def _live(self, node: Node, clock: Clock, must_stop: asyncio.Event) -> None:
        """Do what `BrokerServer` does around a `Broker`, over the simulated network."""
        view = StoreView(self._store, node.name)
        service = QueueService(view, self.address, clock)
        broker = Broker(
            service, view, self.address, settings=self._settings, clock=clock, has_bound=True,
            standby=self._standby, connect=lambda address: self._network.connect(node, address),
        )  # fmt: skip
        try:
            async with broker.running() as life:
                if await first(broker.has_tried_store if self._standby else broker.leads, life):
                    listener = self._network.listen(self.address, node, service)
                    try:
                        await first(must_stop, life)
                        broker.drain()
                        with broker.losing_patience():
                            await self._network.drain(listener, self._settings.stop_timeout / 3)
                    finally:
                        self._network.close(self.address, node)
        except OsqueueError as error:
            self.world.trace(node.name, f"ended: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  # a fault of the product: the checker reports it
            self.world.loop.faults.append(f"{node.name} ended in {error!r}")
        self._is_ended = True
        self.world.trace(node.name, "has ended")
        self._network.killed(node)
        node.kill()
