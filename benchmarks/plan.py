"""How much `bench.py` measures, in full and quickly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Row: TypeAlias = Sequence[object]
"""The cells of a table's row."""


@dataclass(frozen=True)
class Plan:
    """Durations are seconds."""

    window: float
    clients: tuple[int, ...]
    pairs: int
    """Windows for each backlog, in turn with as many on an empty queue."""
    backlogs: tuple[int, ...]
    live: int
    """Jobs that are all kept in the document."""
    latencies: tuple[float, ...]
    slow_clients: tuple[int, ...]
    pickups: int


FULL = Plan(
    window=1.0, clients=(1, 16, 64, 256), pairs=2, backlogs=(0, 10_000, 100_000, 1_000_000), live=100_000,
    latencies=(0.02, 0.06), slow_clients=(16, 64, 256), pickups=300,
)  # fmt: skip
QUICK = Plan(
    window=0.4, clients=(64,), pairs=1, backlogs=(0, 10_000, 100_000), live=20_000,
    latencies=(0.02,), slow_clients=(16, 64), pickups=60,
)  # fmt: skip
