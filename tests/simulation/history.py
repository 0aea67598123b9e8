"""What a run leaves behind: every document that landed, and every request, with the true times of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from osqueue_client.errors import OsqueueError
from osqueue_client.models import Model


@dataclass(slots=True)
class Landing:
    """One body that the store took."""

    at: float
    version: str
    body: bytes
    writer: str
    """The process that sent it."""
    sent_at: float
    """When this very body was sent first, by whoever sent it."""
    is_foreign: bool = False
    """Written by a broker that knows no terms."""
    missing: tuple[str, ...] = ()
    """Segments that it refers to, of which there was no object at that moment."""


@dataclass(slots=True)
class Deletion:
    """An object of a segment that the store deleted."""

    at: float
    name: str
    by: str
    """The process that asked for it, perhaps long ago."""
    is_referred_to: bool
    """By the document that stood at that moment."""


@dataclass(slots=True)
class Call:
    """One thing that a program wanted, however often it was sent."""

    number: int
    node: str
    operation: str
    request: Model
    began_at: float
    entry: int = 0
    """Which entry of a batch."""
    mark: int | None = None
    """Of a submit: the number in its payload. Of no other."""
    ended_at: float | None = None
    answer: Model | None = None
    error: Exception | None = None
    deliveries: list[Delivery] = field(default_factory=list)
    was_doubled: bool = False
    """Whether something on the way sent a request of it twice. Its client, which hears of one, may have been told that
    nothing happened, and truly of that one."""

    @property
    def outcome(self) -> str:
        """What the program was told: `done`, `not_applied`, `unknown`; or `open` if nothing (yet)."""
        if self.ended_at is None:
            return "open"
        if self.error is None:
            return "done"
        return (self.error.outcome if isinstance(self.error, OsqueueError) else None) or "unknown"


@dataclass(slots=True)
class Delivery:
    """One arrival of a request at a broker."""

    call: Call
    operation: str
    request: Model
    broker: str
    sent_at: float
    arrived_at: float | None = None
    """When the broker began with it."""
    answered_at: float | None = None
    """When the broker gave its answer out of its hands."""
    answer: Model | None = None
    error: OsqueueError | None = None
    undelivered_at: float | None = None
    """When the broker learnt that its answer has reached nobody."""
    hung_up_at: float | None = None
    """When the broker learnt, before it had answered, that nobody waits for it."""
    address: str = ""
    """The advertised address of the broker."""


@dataclass(slots=True)
class History:
    """All of a run that a checker needs to know."""

    heartbeat_timeout: float = 10.0
    max_attempts: int = 3
    clock_error: float = 0.01
    """By how much a clock may go wrong: the part of a second in a second."""
    longest_step: float = 3.0
    """Seconds that the longest pause of a leader may count against a lease."""
    broker_timeout: float = 10.0
    """Seconds without a sign of life after which a leader counts as dead."""
    refused_timeout: float = 4.0
    """The same for one whose port refuses."""
    ports: dict[str, list[list[float]]] = field(default_factory=dict)
    """By address, from when to when its port was open."""
    retention: float = 3600.0
    """Seconds for which the object of a segment is kept after the document has ceased to refer to it."""
    taken_within: int = 2
    """Commits with which a request is taken at the latest."""
    landings: list[Landing] = field(default_factory=list)
    segments: dict[str, bytes] = field(default_factory=dict)
    """The object of each segment that there ever was, by its name."""
    reused: list[str] = field(default_factory=list)
    """Names of segments that were given to a second object, with other jobs."""
    deletions: list[Deletion] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    pauses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By process, from when to when it was paused."""
    foreign: frozenset[str] = frozenset()
    """Addresses of brokers that know no terms."""
    worker_types: dict[str, tuple[str, ...]] = field(default_factory=dict)
    trace: list[tuple[float, str, str]] = field(default_factory=list)
    """What happened, in words: when, to whom, what."""
    calm_at: float = math.inf
    """When the last fault was over."""
    ended_at: float = math.inf
    """When all that was to be looked at was over."""
    must_be_empty: bool = False
    """Whether all work should be done at the end."""
    extra: dict[str, Any] = field(default_factory=dict)
