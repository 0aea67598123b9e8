"""The broker's settings: frozen, checked when made, each default in this one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from osqueue_client.errors import ConfigError
from osqueue_storage import StorageBackend, Throttled

from .queue.rules import Rules

DOCUMENT_KEY: Final = "queue.json"
SEGMENTS_PREFIX: Final = "segments/"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Durations are seconds. Raises `ConfigError` when the values cannot work together."""

    heartbeat_timeout: float = 30.0
    """A job's lease expires after this long without a heartbeat of its worker."""

    max_attempts: int = 3
    """Attempts of a job that was submitted without a number of its own."""

    broker_heartbeat_interval: float = 3.0
    """The leader gives a sign of life at least this often: the only write of an idle queue."""

    broker_heartbeat_timeout: float = 10.0
    """A leader is declared dead when the document has not moved for this long."""

    group_commit_interval: float = 0.0
    """Least time from one commit to the next; the store's own `min_write_interval` counts, too."""

    storage_timeout: float | None = None
    """How long one read or write of the store may take, and one second more for each MiB, before it counts as
    unanswered and is tried again; by default 0.3 of `broker_heartbeat_timeout`."""

    probe_storage: bool = True
    """Whether the store is tried at start for whether it honours conditional writes."""

    request_timeout: float = 10.0
    """How long a request waits for the store before it is answered with an error."""

    max_pending: int = 10_000
    """Requests that may wait for the store; one more is answered 429."""

    max_pending_bytes: int = 64 * 1024 * 1024
    """Bytes of requests that may wait for the store."""

    max_request_bytes: int = 1024 * 1024
    """The largest request."""

    receive_timeout: float = 30.0
    """How long a request may take to arrive, from its first byte to its last; then its connection is closed."""

    segment_threshold: int = 1024 * 1024
    """Bytes of the document up to which all jobs stand in it. Of a longer queue, all but the oldest jobs and those that
    were added last are kept in objects below `segments/`, made of an eighth as many bytes each, or more, and merged to
    twice as many."""

    segment_retention: float = 3600.0
    """How long such an object is kept after the document has ceased to refer to it."""

    stop_timeout: float = 1.5
    """How long `stop()` takes at most: a third each for what is under way, for connections, for the hand-over."""

    def __post_init__(self) -> None:
        for name in ("heartbeat_timeout", "broker_heartbeat_interval", "broker_heartbeat_timeout",
                     "request_timeout", "receive_timeout", "stop_timeout", "segment_retention"):  # fmt: skip
            _require(getattr(self, name) > 0, f"{name} must be more than 0 s")
        _require(self.attempt_timeout > 0, "storage_timeout must be more than 0 s")
        _require(self.group_commit_interval >= 0, "group_commit_interval must not be negative")
        for name in (
            "max_attempts",
            "max_pending",
            "max_pending_bytes",
            "max_request_bytes",
            "segment_threshold",
        ):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")

    def check_against(self, storage: StorageBackend) -> None:
        """Raise `ConfigError` if the leader's sign of life could not get through to this store in time."""
        spacing = self.slowest_spacing(storage)
        slowest = max(self.broker_heartbeat_interval, spacing)
        _require(
            self.broker_heartbeat_timeout >= 3 * slowest * (1 - 1e-9),  # 0.3 is a little less than 3 × 0.1
            f"broker_heartbeat_timeout is {self.broker_heartbeat_timeout:g} s, but must be at least {3 * slowest:g} s, "
            f"3 × the larger of broker_heartbeat_interval ({self.broker_heartbeat_interval:g} s) and the time between "
            f"two writes ({spacing:g} s). Raise the timeout, lower the interval, or allow more writes",
        )
        _require(
            slowest + spacing + self.attempt_timeout < self.broker_heartbeat_timeout,
            f"{slowest:g} s from one sign of life to the next, {spacing:g} s for which the next write may be held back "
            f"and storage_timeout ({self.attempt_timeout:g} s) must be less than broker_heartbeat_timeout "
            f"({self.broker_heartbeat_timeout:g} s) together, or one write that the store does not answer costs the "
            "leadership. Lower storage_timeout, raise the timeout, or allow more writes",
        )
        _require(
            self.request_timeout > spacing,
            f"request_timeout is {self.request_timeout:g} s, but a request may have to wait for {spacing:g} s until "
            "the store may be written again. Raise it, or allow more writes",
        )
        reading = self.slowest_read(storage)
        _require(
            reading <= self.broker_heartbeat_interval,
            f"the store may be read only every {reading:g} s, but a broker that stands by, or finds out what became of "
            f"a write, must read it every {self.broker_heartbeat_interval:g} s (broker_heartbeat_interval). Allow more "
            "reads, or raise the interval with the timeout",
        )

    @property
    def attempt_timeout(self) -> float:
        """Seconds that one request to the store may take."""
        return 0.3 * self.broker_heartbeat_timeout if self.storage_timeout is None else self.storage_timeout

    @property
    def watch_interval(self) -> float:
        """Seconds from one look at a leader to the next."""
        return self.broker_heartbeat_interval / 6

    @property
    def refused_timeout(self) -> float:
        """Seconds after which a leader that gave no sign of life, and whose port refuses, is declared dead."""
        return 0.4 * self.broker_heartbeat_timeout

    def fresh_for(self, *, has_bound: bool) -> float:
        """Seconds from the sending of a landed write in which nobody can have taken over.

        Where others may find the leader's port closed though this program has not closed it (`has_bound` is
        False), they may do so sooner.
        """
        fresh = self.broker_heartbeat_timeout - self.broker_heartbeat_interval
        return fresh if has_bound else min(fresh, 0.95 * self.refused_timeout)

    def write_spacing(self, storage: StorageBackend) -> float:
        """Seconds that must pass from one write to the next on this store."""
        return max(self.group_commit_interval, storage.min_write_interval)

    def slowest_spacing(self, storage: StorageBackend) -> float:
        """Seconds from one write to the next when a budget on the store is used up."""
        return max(self.group_commit_interval, storage.slowest_write_interval)

    def longest_delay(self, storage: StorageBackend) -> float:
        """Seconds for which a budget on the store may hold a write back: a segment's may have come just before it."""
        spacing = self.slowest_spacing(storage)
        return 2 * spacing if isinstance(storage, Throttled) else spacing

    def slowest_read(self, storage: StorageBackend) -> float:
        """Seconds for which a budget on the store may hold a read back."""
        return storage.slowest_read_interval if isinstance(storage, Throttled) else 0.0

    def rules(self, storage: StorageBackend) -> Rules:
        """What the state machine needs to know of all this."""
        limit = storage.max_object_bytes
        return Rules(
            heartbeat_timeout=self.heartbeat_timeout,
            max_attempts=self.max_attempts,
            max_document_bytes=limit,
            # The document may be twice as large for a while, and so are segments that are made of others.
            segment_threshold=min(self.segment_threshold, limit // 4 if limit else self.segment_threshold),
        )


def _require(is_fine: bool, mend: str) -> None:
    if not is_fine:
        raise ConfigError(mend)
