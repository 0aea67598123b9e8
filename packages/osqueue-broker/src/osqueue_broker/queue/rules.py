"""The settings that decide what the queue does, and the moment at which it does it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """How long leases last, how often a job is tried, and how much fits in."""

    heartbeat_timeout: float = 30.0
    """Seconds after which a lease without a heartbeat expires."""

    max_attempts: int = 3
    """Attempts of a job that does not set its own number."""

    max_document_bytes: int | None = None
    """The largest document that the store takes; beyond it submits are refused. None: no limit."""

    segment_threshold: int = 1024 * 1024
    """Bytes of the document up to which all jobs stand in it; of a longer queue, the middle is put into segments."""

    @property
    def segment_bytes(self) -> int:
        """About how many bytes of jobs a segment holds when it is made: the document holds half as many on average."""
        return self.segment_threshold // 8

    @property
    def merged_bytes(self) -> int:
        """Bytes of segments that are merged into one."""
        return 2 * self.segment_threshold

    @property
    def head_bytes(self) -> int:
        """Bytes of the oldest jobs that stay in the document when its first segment is made."""
        return self.segment_threshold // 16


@dataclass(frozen=True, slots=True)
class Now:
    """The moment of a batch, on two clocks."""

    wall_ms: int
    """Milliseconds since the epoch, for the document only: never compared with another broker's."""

    served: float
    """Seconds that this leader has served. Leases are measured on it: it stands while nobody can be served."""
