"""No read is answered by a broker that may have been deposed without knowing it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from broker.support import FaultyStore, Refused, opened

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_broker.clock import SystemClock
from osqueue_client.errors import BrokerLeadershipError

INTERVAL, TIMEOUT = 3.0, 10.0
SETTINGS = BrokerSettings(
    broker_heartbeat_interval=INTERVAL, broker_heartbeat_timeout=TIMEOUT, request_timeout=0.2
)
ELSEWHERE = "198.51.100.7:8080"


class PausableClock(SystemClock):
    """The machine's clock, and the time by which the process was stopped, as it finds out afterwards."""

    paused = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + PausableClock.paused


@pytest.fixture
def clock() -> PausableClock:
    PausableClock.paused = 0.0
    return PausableClock()


@asynccontextmanager
async def leading(store: FaultyStore, clock: PausableClock) -> AsyncIterator[Any]:
    """A broker on that store, and its client over REST."""
    async with (
        BrokerServer(storage=store, port=0, settings=SETTINGS, clock=clock) as server,
        opened(server) as wire,
    ):
        yield wire


async def get_state(wire: Any) -> dict[str, Any]:
    answer: httpx.Response = await wire.http.get("/state")
    if answer.status_code != 200:
        raise Refused(answer.json(), answer.status_code)
    document: dict[str, Any] = answer.json()
    return document


READS: dict[str, Callable[[Any], Awaitable[dict[str, Any]]]] = {
    "getStats": lambda wire: wire.call("getStats"),
    "listJobs": lambda wire: wire.call("listJobs"),
    "listDead": lambda wire: wire.call("listDead"),
    "state": get_state,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_a_read_is_answered_without_a_write_while_nobody_can_have_taken_over(
    read: Any, clock: PausableClock
) -> None:
    store = FaultyStore()
    async with leading(store, clock) as wire:
        store.gate.clear()
        await asyncio.wait_for(read(wire), 5)
        assert len(store.attempts) == 0
        store.gate.set()


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_a_read_after_a_pause_waits_for_a_write_and_fails_where_the_store_does_not_answer(
    read: Any, clock: PausableClock
) -> None:
    store = FaultyStore()
    async with leading(store, clock) as wire:
        await wire.call("submitJob", payload="1")
        store.gate.clear()
        PausableClock.paused = TIMEOUT - INTERVAL
        with pytest.raises(Refused) as refused:
            await asyncio.wait_for(read(wire), 5)
        assert (refused.value.status, refused.value.tag) == (503, "StorageBackendError")
        assert store.at_gate == 1
        store.gate.set()
        await asyncio.wait_for(read(wire), 5)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_a_broker_deposed_in_a_pause_names_the_leader_and_shows_nothing(
    read: Any, clock: PausableClock
) -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0, settings=SETTINGS, clock=clock)
    await server.start()
    async with opened(server) as wire:
        await wire.call("submitJob", payload="1")
        store.put_now(store.now() | {"broker": ELSEWHERE, "jobs": []})
        PausableClock.paused = 2 * TIMEOUT
        with pytest.raises(Refused) as refused:
            await asyncio.wait_for(read(wire), 5)
        assert (refused.value.tag, refused.value.error["leader"]) == ("BrokerLeadershipError", ELSEWHERE)
    with pytest.raises(BrokerLeadershipError, match=ELSEWHERE):
        await server.stop()


async def test_state_shows_what_was_acknowledged_before_it_was_asked_for() -> None:
    store = FaultyStore()
    async with BrokerServer(storage=store, port=0) as server, opened(server) as wire:
        for n in range(1, 4):
            await wire.call("submitJob", payload=str(n))
            assert [job["payload"] for job in (await get_state(wire))["jobs"]] == list(range(1, n + 1))
        answer = await wire.http.get("/state")
        assert answer.content == store._objects["queue.json"].body
