"""A throttled storage keeps to its budget by delaying, loses nothing, and counts what it did."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta

import pytest

from osqueue_storage import (
    CASConflictError,
    ConfigError,
    MemoryBackend,
    StorageBackend,
    StorageBackendError,
    Throttled,
    ThrottledStorageBackend,
    ThrottleStats,
)
from osqueue_storage.contract import CONTRACT, Check


class FakeClock:
    """Sleeping takes no time, and is remembered."""

    def __init__(self) -> None:
        self.at = 100.0
        self.day = date(2026, 3, 1)
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.at

    def today(self) -> date:
        return self.day

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(round(seconds, 6))
        self.at += seconds
        await asyncio.sleep(0)


class Stopped(FakeClock):
    """Sleeping never ends."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


def throttled(
    *,
    reads: float | None = None,
    writes: float | None = None,
    day: int | None = None,
    clock: FakeClock | None = None,
) -> tuple[ThrottledStorageBackend, FakeClock]:
    clock = clock or FakeClock()
    storage = ThrottledStorageBackend(
        MemoryBackend(), reads_per_minute=reads, writes_per_minute=writes, writes_per_day=day, clock=clock
    )
    return storage, clock


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_a_throttled_backend_keeps_the_contract(check: Check) -> None:
    storage = ThrottledStorageBackend(MemoryBackend(), reads_per_minute=6e6, writes_per_minute=6e6)
    await check(lambda: storage)


async def test_writes_beyond_one_second_s_worth_wait_for_their_tokens() -> None:
    storage, clock = throttled(writes=120)  # two a second
    for number in range(5):
        await storage.create(f"k{number}", b"")
    assert clock.sleeps == [0.5, 0.5, 0.5]
    stats = storage.throttle_stats()
    assert (stats.total_writes, stats.throttled_writes, stats.total_write_delay_ms) == (5, 3, 1500)
    assert (stats.total_reads, stats.daily_write_count, stats.daily_budget_exceeded) == (0, 5, False)


async def test_a_limit_under_one_a_second_lets_one_through_at_once() -> None:
    storage, clock = throttled(writes=20)
    await storage.create("a", b"")
    assert clock.sleeps == []
    await storage.create("b", b"")
    assert clock.sleeps == [3.0]


async def test_a_pause_saves_up_no_more_than_one_second_s_worth() -> None:
    storage, clock = throttled(writes=120)
    clock.at += 3600
    for number in range(3):
        await storage.create(f"k{number}", b"")
    assert clock.sleeps == [0.5]


async def test_reads_have_a_limit_of_their_own_and_a_listing_is_one_read() -> None:
    storage, clock = throttled(reads=60)
    await storage.create("k", b"x")
    version = await storage.write("k", b"y", "1")
    assert clock.sleeps == []
    assert await storage.read("k") is not None
    assert [key async for key in storage.list("")] == ["k"]
    assert await storage.read_if_changed("k", version) is None
    found = await storage.read_if_changed("k", "0")
    assert found is not None
    assert found.body == b"y"
    assert clock.sleeps == [1.0, 1.0, 1.0]
    with pytest.raises(StorageBackendError, match="no object"):
        await storage.read_if_changed("missing", "0")
    stats = storage.throttle_stats()
    assert (stats.total_reads, stats.throttled_reads, stats.total_read_delay_ms) == (5, 4, 4000)


async def test_a_conflict_is_a_write_and_a_delete_is_one_too() -> None:
    storage, _ = throttled(writes=60)
    await storage.create("k", b"")
    with pytest.raises(CASConflictError):
        await storage.create("k", b"")
    await storage.delete("k")
    assert storage.throttle_stats().total_writes == 3


async def test_within_the_daily_budget_nothing_waits_and_beyond_it_the_limit_per_minute_holds() -> None:
    storage, clock = throttled(writes=60, day=3)
    for number in range(3):
        await storage.create(f"k{number}", b"")
    assert clock.sleeps == []
    assert storage.throttle_stats().daily_budget_exceeded
    await storage.create("k3", b"")  # the token of the first second
    await storage.create("k4", b"")
    assert clock.sleeps == [1.0]
    clock.day += timedelta(days=1)
    stats = storage.throttle_stats()
    assert (stats.daily_write_count, stats.daily_budget_exceeded, stats.total_writes) == (0, False, 5)
    for number in range(3):
        await storage.create(f"m{number}", b"")
    assert clock.sleeps == [1.0]


async def test_the_daily_budget_holds_for_writes_at_once() -> None:
    storage, clock = throttled(writes=60, day=4)
    await asyncio.gather(*(storage.create(f"k{number}", b"") for number in range(8)))
    assert clock.sleeps == [1.0, 1.0, 1.0]  # four are free, one has the token of the first second
    assert storage.throttle_stats().throttled_writes == 3


async def test_writes_that_wait_keep_their_order() -> None:
    storage, _ = throttled(writes=60)
    done: list[int] = []

    async def create(number: int) -> None:
        await storage.create(f"k{number}", b"")
        done.append(number)

    await asyncio.gather(*(create(number) for number in range(6)))
    assert done == [0, 1, 2, 3, 4, 5]


async def test_a_write_that_is_cancelled_while_it_waits_takes_no_token_and_never_reaches_the_store() -> None:
    clock = Stopped()
    storage, _ = throttled(writes=60, clock=clock)
    await storage.create("a", b"")
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(storage.create(key, b"")) for key in "bc"]
        for _ in range(3):
            await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
    assert storage.throttle_stats() == ThrottleStats(total_writes=1, daily_write_count=1)
    clock.at += 1
    await asyncio.wait_for(storage.create("d", b""), 1)
    assert [key async for key in storage.list("")] == ["a", "d"]


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"writes_per_day": 5},
        {"writes_per_minute": 0},
        {"reads_per_minute": -1},
        {"writes_per_minute": float("nan")},
        {"writes_per_minute": 1, "writes_per_day": 0},
    ],
)
def test_a_limit_that_cannot_be_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ThrottledStorageBackend(MemoryBackend(), **limits)  # type: ignore[arg-type]  # wrong on purpose


def test_daily_budget_alone_is_told_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="writes_per_day needs writes_per_minute"):
        ThrottledStorageBackend(MemoryBackend(), writes_per_day=5)


def test_what_the_store_can_do_passes_through_and_the_spacing_follows_from_the_limit() -> None:
    class Small(MemoryBackend):
        min_write_interval = 1.0
        slowest_write_interval = 1.0
        max_object_bytes = 7

    def wrapped(**limits: int) -> StorageBackend:
        return ThrottledStorageBackend(Small(), **limits)  # type: ignore[arg-type]  # mypy: a dict of limits

    fast, slow, daily = (wrapped(writes_per_minute=600), wrapped(writes_per_minute=20),
                         wrapped(writes_per_minute=20, writes_per_day=5))  # fmt: skip
    assert (fast.min_write_interval, fast.slowest_write_interval, fast.max_object_bytes) == (1.0, 1.0, 7)
    assert (slow.min_write_interval, slow.slowest_write_interval) == (3.0, 3.0)
    assert (daily.min_write_interval, daily.slowest_write_interval) == (1.0, 3.0)
    assert isinstance(fast, Throttled)
    assert not isinstance(Small(), Throttled)
    assert repr(fast) == "ThrottledStorageBackend(MemoryBackend(latency=0.0))"
