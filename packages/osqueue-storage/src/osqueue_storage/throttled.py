"""A storage backend that keeps to a budget of requests, for stores that charge or throttle by the request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from .backend import ConditionalReader, StorageBackend, StoredObject, is_remote
from .errors import ConfigError, StorageBackendError


@dataclass(frozen=True, slots=True)
class ThrottleStats:
    """What a throttled storage has counted since it was made. Delays are milliseconds.

    `daily_write_count` are the writes of this day, by UTC; `daily_budget_exceeded` says that they have used up
    `writes_per_day`.
    """

    total_reads: int = 0
    total_writes: int = 0
    throttled_reads: int = 0
    throttled_writes: int = 0
    total_read_delay_ms: int = 0
    total_write_delay_ms: int = 0
    daily_write_count: int = 0
    daily_budget_exceeded: bool = False


@runtime_checkable
class Throttled(Protocol):
    """A backend that counts what it has delayed."""

    @property
    def slowest_read_interval(self) -> float:
        """Seconds by which it may at the most space reads (0: it does not)."""
        ...

    def throttle_stats(self) -> ThrottleStats:
        """Return what was counted so far."""
        ...


class ThrottleClock(Protocol):
    """Time, as a throttled storage sees it."""

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps."""
        ...

    def today(self) -> date:
        """The day, by UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after that long."""
        ...


class _SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()  # noqa: TID251  # its one home

    def today(self) -> date:
        return datetime.now(UTC).date()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ThrottledStorageBackend:
    """Wraps a backend and delays its requests, never rejecting one, so that a budget is kept.

        storage = ThrottledStorageBackend(S3Backend("jobs"), writes_per_minute=60, reads_per_minute=600)

    Each limit is a token bucket that holds one second's worth of requests (at least one). A request waits in
    order of arrival for its token; one that is cancelled while it waits takes none and never reaches the store.
    `write`, `create` and `delete` are writes, also when they conflict; all else is a read. With `writes_per_day`,
    writes are free of delay until so many were sent since midnight UTC, and `writes_per_minute` holds from then on.

    Closing it closes the wrapped backend. Raises `ConfigError` for a limit that is not more than 0, for none at
    all, and for `writes_per_day` without `writes_per_minute`.
    """

    def __init__(
        self,
        storage: StorageBackend,
        *,
        reads_per_minute: float | None = None,
        writes_per_minute: float | None = None,
        writes_per_day: int | None = None,
        clock: ThrottleClock | None = None,
    ) -> None:
        for name, limit in (("reads_per_minute", reads_per_minute), ("writes_per_minute", writes_per_minute),
                            ("writes_per_day", writes_per_day)):  # fmt: skip
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise ConfigError(f"{name} must be more than 0, not {limit!r}")
        if writes_per_day is not None and writes_per_minute is None:
            raise ConfigError(
                "writes_per_day needs writes_per_minute, the limit that holds once it is used up"
            )
        if reads_per_minute is None and writes_per_minute is None:
            raise ConfigError("a throttled storage needs reads_per_minute, writes_per_minute, or both")
        self._storage = storage
        self._clock = clock or _SystemClock()
        self._writes_per_day = writes_per_day
        self._reads = _Meter(reads_per_minute, self._clock)
        self._writes = _Meter(writes_per_minute, self._clock)
        self._day = self._clock.today()
        self._written_today = 0
        slowest = 60 / writes_per_minute if writes_per_minute else 0.0
        self.max_object_bytes = storage.max_object_bytes
        self.is_remote = is_remote(storage)
        self.slowest_write_interval = max(storage.slowest_write_interval, slowest)
        self.slowest_read_interval = 60 / reads_per_minute if reads_per_minute else 0.0
        # Within a daily budget writes need not be spaced; else who spaces them here is never made to wait.
        self.min_write_interval = (
            storage.min_write_interval if writes_per_day else max(storage.min_write_interval, slowest)
        )

    def __repr__(self) -> str:
        return f"ThrottledStorageBackend({self._storage!r})"

    def throttle_stats(self) -> ThrottleStats:
        """Return what was counted so far."""
        self._turn_day()
        reads, writes = self._reads, self._writes
        return ThrottleStats(
            total_reads=reads.passed,
            total_writes=writes.passed,
            throttled_reads=reads.delayed,
            throttled_writes=writes.delayed,
            total_read_delay_ms=round(reads.delay * 1000),
            total_write_delay_ms=round(writes.delay * 1000),
            daily_write_count=self._written_today,
            daily_budget_exceeded=self._writes_per_day is not None and not self._has_daily_budget(),
        )

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`."""
        await self._reads.wait()
        return await self._storage.read(key)

    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        """See `ConditionalReader.read_if_changed`; the whole object is read where the store has no cheaper way."""
        await self._reads.wait()
        if isinstance(self._storage, ConditionalReader):
            return await self._storage.read_if_changed(key, version)
        found = await self._storage.read(key)
        if found is None:
            raise StorageBackendError(f"there is no object {key!r}", outcome="not_applied")
        return None if found.version == version else found

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`."""
        await self._may_write()
        return await self._storage.write(key, body, expected_version)

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`."""
        await self._may_write()
        return await self._storage.create(key, body)

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        await self._may_write()
        await self._storage.delete(key)

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`; one listing counts as one read, however long it is."""
        await self._reads.wait()
        async for key in self._storage.list(prefix):
            yield key

    async def aclose(self) -> None:
        """Close the wrapped backend."""
        await self._storage.aclose()

    async def __aenter__(self) -> Self:
        await self._storage.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._storage.__aexit__(exc_type, exc, tb)

    async def _may_write(self) -> None:
        await self._writes.wait(unless=self._has_daily_budget)
        self._turn_day()
        self._written_today += 1

    def _has_daily_budget(self) -> bool:
        self._turn_day()
        return self._writes_per_day is not None and self._written_today < self._writes_per_day

    def _turn_day(self) -> None:
        today = self._clock.today()
        if today != self._day:
            self._day = today
            self._written_today = 0


class _Meter:
    """One kind of request: its token bucket, and what was counted of it."""

    def __init__(self, per_minute: float | None, clock: ThrottleClock) -> None:
        self._rate = None if per_minute is None else per_minute / 60
        self._clock = clock
        self._room = max(self._rate or 0.0, 1.0)
        self._tokens = self._room
        self._filled_at = clock.monotonic()
        self._turn = asyncio.Lock()  # it is fair: who waits for a token is served in order
        self.passed = 0
        self.delayed = 0
        self.delay = 0.0

    async def wait(self, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Return when the request may be sent: at once if `unless` says so at its turn."""
        began_at = self._clock.monotonic()
        has_waited = False
        async with self._turn:
            while not unless() and (left := self._seconds_to_a_token()) > 0:
                has_waited = True
                await self._clock.sleep(left)
            # Nothing is taken before this point: until here the request may be cancelled without a trace.
            if not unless():
                self._tokens -= 1
            self.passed += 1
            if has_waited:
                self.delayed += 1
                self.delay += self._clock.monotonic() - began_at

    def _seconds_to_a_token(self) -> float:
        if self._rate is None:
            return 0.0
        now = self._clock.monotonic()
        self._tokens = min(self._tokens + (now - self._filled_at) * self._rate, self._room)
        self._filled_at = now
        # What rounding leaves of a token counts as a whole one, or the wait for it would be no wait at all.
        return 0.0 if self._tokens >= 1 - 1e-9 else (1 - self._tokens) / self._rate
