"""What a term has written: how much, how often, and how long the store took."""

from __future__ import annotations

from collections import deque
from typing import Final

from osqueue_client.models import CommitStats

_LATENCIES: Final = 1000


class Written:
    """Counts commits since a moment on a monotonic clock."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._writes = 0
        self._bytes = 0
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self.requests = 0
        """Requests whose changes were committed, each entry of a batch counted."""

    def note(self, size: int, latency: float) -> None:
        """Count a commit of so many bytes that has landed after so many seconds."""
        self._writes += 1
        self._bytes += size
        self._latencies.append(latency)

    def stats(self, now: float) -> CommitStats:
        """Return the counts."""
        ordered = sorted(self._latencies) or [0.0]
        return CommitStats(
            seconds=now - self._since,
            writes=self._writes,
            bytes=self._bytes,
            requests=self.requests,
            latency_p50=ordered[len(ordered) // 2],
            latency_p99=ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)],
        )
