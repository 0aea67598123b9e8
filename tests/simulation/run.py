"""One run: a plan drawn from the seed, the faults, and the calm after them in which all work must end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from osqueue_broker import BrokerSettings
from osqueue_client import OsqueueClient
from osqueue_client import operations as ops

from .brokers import BrokerProcess
from .checker import UNAVAILABLE, check
from .foreign import ForeignBroker
from .history import History
from .loop import Node
from .network import Network
from .programs import (
    TYPES,
    Marks,
    OldClient,
    OwnClient,
    administer,
    check_files,
    client_of,
    produce,
    work,
    work_in_batches,
    work_without_ids,
)
from .store import SimStore, StoreView
from .world import Rates, World


@dataclass(frozen=True, slots=True)
class Plan:
    """What kind of run a seed stands for."""

    brokers: int
    producers: int
    workers: int
    seconds: float
    has_foreign: bool
    has_faults_of_store: bool
    has_faults_of_network: bool
    harshness: float
    is_sparse: bool
    """Whether the clients ask so seldom that their sessions are given up meanwhile."""
    ends_in_deletion: bool
    is_deep: bool
    """Whether segments are made of a few jobs already."""


class Run:
    """One simulated cluster."""

    def __init__(self, seed: int) -> None:
        random.seed(seed)  # what the packages' own jitter draws from
        self.world = world = World(seed)
        chance = world.random
        self.plan = Plan(
            brokers=chance.choice((1, 2, 2, 3)),
            producers=chance.choice((1, 2, 2, 3)),
            workers=chance.choice((1, 2, 3)),
            has_foreign=chance.random() < 0.3,
            has_faults_of_store=chance.random() < 0.75,
            has_faults_of_network=chance.random() < 0.75,
            harshness=chance.choice((0.3, 1.0, 2.0)),
            is_sparse=(is_sparse := chance.random() < 0.03),
            ends_in_deletion=chance.random() < 0.1,
            is_deep=(is_deep := chance.random() < 0.5),
            seconds=250.0 if is_sparse else chance.choice((15.0, 25.0, 40.0)),
        )
        interval = chance.choice((0.5, 1.0, 3.0))
        self.settings = settings = BrokerSettings(
            heartbeat_timeout=chance.choice((4.0, 6.0, 10.0)),
            max_attempts=3,
            broker_heartbeat_interval=interval,
            broker_heartbeat_timeout=interval * 10 / 3,
            group_commit_interval=chance.choice((0.0, 0.0, 0.1)),
            request_timeout=chance.choice((2.0, 10.0, 10.0)),
            max_pending=3 if chance.random() < 0.1 else 10_000,
            probe_storage=False,
            segment_threshold=chance.randint(1500, 6000) if is_deep else 1024 * 1024,
            segment_retention=chance.choice((0.5, 3.0, 15.0, 15.0)),
        )
        history = world.history
        history.retention = settings.segment_retention
        history.taken_within = 8 if is_deep else 2  # a batch holds no more than segments can be made of
        history.heartbeat_timeout = settings.heartbeat_timeout
        history.max_attempts = settings.max_attempts
        history.broker_timeout = settings.broker_heartbeat_timeout
        history.refused_timeout = settings.refused_timeout
        history.longest_step = min(interval, settings.heartbeat_timeout / 3)
        world.store_latency = chance.choice((0.002, 0.02, 0.05)) * chance.uniform(0.5, 2)
        world.network_latency = chance.choice((0.0005, 0.002, 0.02))
        has_content_versions = chance.random() < 0.3
        # Not longer than a request may wait.
        spacing = (
            min(interval * chance.choice((0.2, 0.8)), settings.request_timeout / 4)
            if chance.random() < 0.15
            else 0.0
        )
        self.store = SimStore(
            world,
            has_content_versions=has_content_versions,
            # A batch is no larger than segments can be made of: here a request or two, and many would wait too long.
            min_write_interval=0.0 if is_deep else spacing,
            max_object_bytes=chance.choice((8_000, 16_000)) if chance.random() < 0.1 else None,
        )
        self.network = Network(world)
        self.brokers = [
            BrokerProcess(
                world, self.network, self.store, f"b{number}", settings, standby=chance.random() < 0.8
            )
            for number in range(1, self.plan.brokers + 1)
        ]
        self.urls = [f"http://{broker.address}" for broker in self.brokers]
        self.marks = Marks()
        self.workers: dict[str, Node] = {}
        self.lives = 0
        world.trace("", f"seed {seed}: {self.plan}")

    def run(self) -> History:
        """Live through it all, and return what was left behind."""
        loop = self.world.loop
        asyncio.set_event_loop(None)
        loop.run_until_complete(self._main())
        history = self.world.history
        for node in self.world.nodes:
            if node.is_paused:
                node.resume()
            history.pauses[node.name] = node.pauses
        history.extra["faults"] = loop.faults
        return history

    async def _main(self) -> None:
        world, plan = self.world, self.plan
        for broker in self.brokers:
            broker.start()
        for number in range(plan.producers):
            self._start_producer(f"p{number + 1}")
        for number in range(plan.workers):
            self._start_worker(f"w{number + 1}", TYPES if number == 0 else self._some_types())
        self._start_old("o1", keeps_token=world.chance(0.5))
        if world.chance(0.6):
            self._start_batches()
        for name in world.random.choice((("o2",), ("o2", "o2'"))):  # two that have one id, by mistake
            self._start_old(name, worker_id="o2", keeps_token=True)
        if plan.has_foreign:
            self._start_foreign()
        if plan.is_deep and world.chance(0.3):
            self._start_fsck()
        self._set_rates()
        while world.loop.now < plan.seconds:
            await asyncio.sleep(world.between(0.5, 5) * (6 if plan.is_sparse else 1))
            self._misfortune()
        await self._calm()

    # Programs

    def _start_producer(self, name: str) -> None:
        world = self.world
        node = world.new_node(name)
        client = self._client(node)
        pause = world.between(10, 70) if self.plan.is_sparse else world.between(0.3, 2.5)
        node.spawn(
            produce(
                world,
                client,
                self.marks,
                until=self.plan.seconds,
                pause=pause,
                most=15 if self.plan.is_deep else 5,
            ),
            name,
        )
        if name == "p1":
            boss = world.new_node("admin")
            node.spawn(administer(world, self._client(boss), until=self.plan.seconds, pause=1.5), "admin")

    def _client(self, node: Node) -> OsqueueClient:
        world = self.world
        return client_of(
            world,
            self.network,
            node,
            urls=self.urls if world.chance(0.7) else None,
            store=self.store,
            timeout=world.between(4, 30),
        )

    def _some_types(self) -> tuple[str, ...]:
        return self.world.random.choice((("a",), ("b",), TYPES))

    def _start_worker(self, worker_id: str, types: tuple[str, ...]) -> None:
        world = self.world
        self.lives += 1
        node = world.new_node(f"{worker_id}.{self.lives}")
        world.history.worker_types[worker_id] = types
        self.workers[worker_id] = node
        node.spawn(work(world, self._client(node), worker_id, types), worker_id)

    def _start_old(self, name: str, *, worker_id: str = "", keeps_token: bool) -> None:
        world = self.world
        worker_id = worker_id or name
        node = world.new_node(name)
        world.history.worker_types[worker_id] = ()
        client = OldClient(world, self.network, node, self.urls)
        node.spawn(work_without_ids(world, client, worker_id, keeps_token=keeps_token), name)

    def _start_batches(self) -> None:
        world = self.world
        name = world.random.choice(("o3", "x3"))
        node = world.new_node(name)
        world.history.worker_types[name] = ()
        client = (
            OldClient(world, self.network, node, self.urls) if name == "o3" else OwnClient(self._client(node))
        )
        node.spawn(work_in_batches(world, client, name), name)

    def _start_fsck(self) -> None:
        node = self.world.new_node("fsck")
        timeout = self.settings.broker_heartbeat_timeout
        until, pause = self.plan.seconds, self.world.between(2, 8)
        node.spawn(check_files(self.world, node, self.store, timeout, until=until, pause=pause), "fsck")

    def _start_foreign(self) -> None:
        world = self.world
        node = world.new_node("foreign")
        address = "foreign:8080"
        world.history.foreign = frozenset({address})
        view = StoreView(self.store, node.name, is_foreign=True)
        workers = ("fw", *self.workers)
        broker = ForeignBroker(world, node, view, address, workers)
        node.spawn(broker.run(self.plan.seconds, world.between(1, 6)), "foreign")

    # Faults

    def _set_rates(self) -> None:
        world, plan = self.world, self.plan

        def rate(highest: float) -> float:
            return world.between(0, highest * plan.harshness) if world.chance(0.6) else 0.0

        if plan.has_faults_of_store:
            world.store_rates = Rates(
                lost_request=rate(0.05), lost_answer=rate(0.08), late=rate(0.06), doubled=rate(0.08),
                refused=rate(0.08), unclear=rate(0.06), slow=rate(0.03),
            )  # fmt: skip
        if plan.has_faults_of_network:
            world.network_rates = Rates(
                lost_request=rate(0.05), lost_answer=rate(0.1), late=rate(0.05), doubled=rate(0.06),
                refused=rate(0.05), slow=rate(0.03),
            )  # fmt: skip

    def _misfortune(self) -> None:
        world, chance = self.world, self.world.random
        if world.loop.now >= self.plan.seconds:
            return
        leader = self._leader()
        broker = leader if leader is not None and chance.random() < 0.7 else chance.choice(self.brokers)
        match chance.randrange(15):
            case 0 | 1:
                broker.kill()
                world.loop.after(world.between(0, 8), broker.start)
            case 2 | 3:
                if broker.node is not None:
                    self._pause(broker.node, chance.choice((1, 6, 15)))
            case 4:
                broker.stop()
                world.loop.after(world.between(1, 6), broker.start)
            case 5:
                self._cut_broker(broker)
            case 6:
                world.trace("store", "is down")
                self.store.is_down = True
                world.loop.after(world.between(0.2, 8), self._store_up)
            case 7:
                self._kill_worker()
            case 8:
                programs = [node for node in world.nodes if node.name[0] in "apwo" and not node.is_dead]
                self._pause(
                    chance.choice(programs), chance.choice((3, 20, 90 if self.plan.is_sparse else 20))
                )
            case 9:
                for other in self.brokers:
                    if other.clock is not None:
                        other.clock.wall_offset += world.between(-1e5, 1e5)
            case 10:
                self._set_rates()
            case 11:
                self._cut_clients(broker)
            case 12 | 13:
                self._ambush(broker)
            case 14:
                self._isolate(broker)

    def _leader(self) -> BrokerProcess | None:
        found = self.store.document
        if found is None:
            return None
        address = json.loads(found.body).get("broker")
        return next((broker for broker in self.brokers if broker.address == address), None)

    def _pause(self, node: Node, longest: float) -> None:
        world = self.world
        world.trace(node.name, "is paused")
        node.pause()
        world.loop.after(world.between(0.1, longest), self._resume, node)

    def _resume(self, node: Node) -> None:
        if node.is_paused:
            self.world.trace(node.name, "goes on")
            node.resume()

    def _cut_broker(self, broker: BrokerProcess) -> None:
        if broker.node is not None:
            self.store.cut_off(broker.node.name, self.world.between(0.5, 15))

    def _ambush(self, broker: BrokerProcess) -> None:
        """Let the next write of a broker land unseen, and another broker lead before it can look."""
        if broker.node is not None:
            timeout = self.settings.broker_heartbeat_timeout
            self.store.ambushes[broker.node.name] = timeout * self.world.between(0.5, 3)

    def _cut_clients(self, broker: BrokerProcess) -> None:
        world = self.world
        for node in world.nodes:
            pair = (node.name, broker.address)
            if world.chance(0.4):
                self.network.cut.add(pair)
                world.loop.after(world.between(0.5, 10), self.network.cut.discard, pair)

    def _isolate(self, broker: BrokerProcess) -> None:
        """Cut a broker off from the store and from the other brokers, about as long as they wait for it."""
        if broker.node is None:
            return
        world = self.world
        seconds = self.settings.broker_heartbeat_timeout * world.between(0.4, 1.3)
        self.store.cut_off(broker.node.name, seconds)
        for other in self.brokers:
            if other.node is not None and other is not broker:
                pair = (other.node.name, broker.address)
                self.network.cut.add(pair)
                world.loop.after(2 * seconds, self.network.cut.discard, pair)

    def _store_up(self) -> None:
        self.world.trace("store", "is up")
        self.store.is_down = False

    def _kill_worker(self) -> None:
        world = self.world
        worker_id = world.random.choice([*self.workers])
        node = self.workers[worker_id]
        if node.is_dead:
            return
        world.trace(node.name, "is killed")
        node.kill()
        self.network.client_killed(node)
        types = world.history.worker_types[worker_id]
        world.loop.after(world.between(0, 10), self._start_worker, worker_id, types)

    # The end

    async def _calm(self) -> None:
        """Let everything heal, and wait until all work is done."""
        world, plan = self.world, self.plan
        world.is_calm = True
        world.trace("", "calm")
        world.history.calm_at = world.loop.now
        world.store_rates, world.network_rates = Rates(), Rates()
        self.store.is_down = False
        self.store.cut.clear()
        self.store.ambushes.clear()
        self.network.cut.clear()
        for node in world.nodes:
            self._resume(node)
        for broker in self.brokers:
            broker.start()
        until = world.loop.now + 200
        while world.loop.now < until:
            await asyncio.sleep(1)
            for broker in self.brokers:
                broker.start()
            if self._is_done():
                break
        world.history.must_be_empty = True
        world.history.ended_at = world.loop.now
        if plan.ends_in_deletion and self.store.document is not None:
            await asyncio.sleep(3)  # a broker that starts just now may have seen none
            self.store.delete_document()
            await asyncio.sleep(3 * self.settings.broker_heartbeat_timeout)
            if self.store.document is not None:
                world.loop.faults.append("a deleted document was made anew from memory")
        world.trace("", "end")

    def _is_done(self) -> bool:
        living = {node.name for node in self.world.nodes if not node.is_dead}
        changing = (ops.SUBMIT_JOB.name, ops.REQUEUE_DEAD.name)
        if self.network.on_their_way or any(
            call.ended_at is None and call.operation in changing and call.node in living
            for call in self.world.history.calls
        ):
            return False
        found = self.store.document
        if found is None:
            return False
        document = json.loads(found.body)
        leads = any(broker.address == document["broker"] for broker in self.brokers)
        return leads and not document["jobs"] and not document.get("segments")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one seed."""

    seed: int
    violations: list[str]
    trace: list[tuple[float, str, str]]
    landings: int
    calls: int
    errors: int
    """Calls of our own clients that ended in an error other than a refusal."""
    seconds: float

    def lines(self) -> list[str]:
        """Return the whole history, one thing a line."""
        return [f"{at:10.4f}  {who:10}  {what}" for at, who, what in self.trace]

    def around(self) -> list[str]:
        """Return what came before the first violation, and a little of what came after."""
        lines = self.lines()
        places = [
            place
            for place, (_, _, what) in enumerate(self.trace)
            for found in [re.match(r"#(\d+) ", self.violations[0])]
            if found and what.startswith(f"landed #{found[1]} ")
        ]
        end = places[0] + 10 if places else len(lines)
        return lines[max(end - 60, 0) : end]


@contextlib.contextmanager
def _failures_noted(world: World) -> Iterator[None]:
    """Take it for a fault if a task beside the commit loop ends in an error, of which only the log tells."""

    def note(record: logging.LogRecord) -> bool:
        if record.getMessage() == "segments_failed":
            world.loop.faults.append(f"segments_failed: {record.exc_info and record.exc_info[1]!r}")
        return False

    logger = logging.getLogger("osqueue.broker.segments")
    logger.addFilter(note)
    try:
        yield
    finally:
        logger.removeFilter(note)


_KEPT: list[Run] = []
"""What was run: coroutines that are collected run their `finally` blocks, in a loop that is no more."""


def run_seed(seed: int, *, distrust: bool = False) -> Verdict:
    """Run one seed and check it. What it was made of stays in memory until the process ends, by `os._exit`.

    `distrust` takes the third commit for a violation.
    """
    logging.disable(logging.WARNING)
    logging.getLogger().addHandler(logging.NullHandler())
    gc.disable()
    run = Run(seed)
    _KEPT.append(run)
    with _failures_noted(run.world):
        history = run.run()
    violations = check(history)
    if distrust:
        violations.append(f"#3 at {history.landings[3].at:.4f}: not trusted")
    return Verdict(
        seed,
        violations,
        history.trace,
        len(history.landings),
        len(history.calls),
        sum(isinstance(call.error, UNAVAILABLE) for call in history.calls if not call.node.startswith("o")),
        run.world.loop.now,
    )
