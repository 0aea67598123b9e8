"""What all parts of a simulation share: the loop, chance, the faults of the moment, and the history."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from .history import History
from .loop import NODE, Node, SimLoop


@dataclass(slots=True)
class Rates:
    """How likely a request meets each fault; nothing but latency where all are 0."""

    lost_request: float = 0.0
    """It has no effect, and no answer."""
    lost_answer: float = 0.0
    """It has its effect, and no answer."""
    late: float = 0.0
    """It has its effect long after its sender was told that the connection broke."""
    doubled: float = 0.0
    """It arrives twice. The sender of a write hears of the second: a conflict with itself."""
    refused: float = 0.0
    """An error, and surely no effect."""
    unclear: float = 0.0
    """An error, with or without an effect."""
    slow: float = 0.0
    """It takes many times as long."""


class World:
    """The shared parts. Chance is drawn in the order of events, so one seed gives one run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.loop = SimLoop()
        self.history = History()
        self.store_rates = Rates()
        self.network_rates = Rates()
        self.store_latency = 0.02
        self.network_latency = 0.002
        self.is_calm = False
        """Whether all faults are over."""
        self.nodes: list[Node] = []
        self._ids = 0

    def chance(self, likelihood: float) -> bool:
        """Return True about that often."""
        return likelihood > 0 and self.random.random() < likelihood

    def between(self, low: float, high: float) -> float:
        """Return any number of that range."""
        return low + (high - low) * self.random.random()

    def latency(self, typical: float, rates: Rates) -> float:
        """Return the seconds that one way takes."""
        slow = self.between(5, 100) if self.chance(rates.slow) else 1.0
        return typical * slow * (0.5 + self.random.random())

    def new_id(self) -> str:
        """Return an id in the form of a UUID that nobody has used before in this run."""
        self._ids += 1
        text = hashlib.blake2b(b"%d:%d" % (self.seed, self._ids), digest_size=16).hexdigest()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def new_node(self, name: str) -> Node:
        """Return a process whose clock is set and goes as no other's."""
        node = Node(
            self.loop,
            name,
            offset=self.between(0, 10_000),
            rate=1 + self.between(-1, 1) * self.history.clock_error,
        )
        self.nodes.append(node)
        return node

    def trace(self, who: str, what: str) -> None:
        """Note what happened."""
        self.history.trace.append((self.loop.now, who, what))


class Clock:
    """A broker's clocks: its process's own, and a wall clock that jumps."""

    def __init__(self, world: World, node: Node) -> None:
        self._world = world
        self._node = node
        self.wall_offset = world.between(-1e6, 1e6)

    def wall_ms(self) -> int:
        """See `osqueue_broker.clock.Clock`."""
        return int(1_700_000_000_000 + 1000 * (self._world.loop.now + self.wall_offset))

    def monotonic(self) -> float:
        """See `osqueue_broker.clock.Clock`."""
        assert NODE.get() is self._node
        return self._world.loop.time()

    def new_id(self) -> str:
        """See `osqueue_broker.clock.Clock`."""
        return self._world.new_id()
