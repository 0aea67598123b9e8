"""Stopping when something is in the way: a store that hangs, a leader that is still watched."""

from __future__ import annotations

import asyncio

import pytest
from broker.support import FaultyStore, Refused, opened, until

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client.errors import BrokerLeadershipError, StorageBackendError


async def test_waiting_requests_are_answered_when_the_broker_stops_on_a_store_that_hangs() -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0)
    await server.start()
    async with opened(server) as wire, asyncio.TaskGroup() as group:
        store.gate.clear()
        taken = group.create_task(_refusal(wire))
        await until(lambda: store.at_gate == 1)
        stopping = group.create_task(server.stop())
        assert (await taken).error["outcome"] == "unknown"
        await asyncio.wait_for(stopping, 3)  # stop_timeout is 1.5 s
    assert store.in_flight == 0


async def test_stop_ends_a_broker_that_still_watches_another_leader() -> None:
    store = FaultyStore()
    first = BrokerServer(storage=store, port=0)
    await first.start()
    second = BrokerServer(storage=store, port=0, settings=BrokerSettings(broker_heartbeat_timeout=600))
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(_failure_of_start(second))
        await asyncio.sleep(0)
        await asyncio.wait_for(second.stop(), 3)
        assert isinstance(await starting, BrokerLeadershipError)
    await first.stop()
    assert store.now()["epoch"] == 1


async def test_store_that_never_answers_fails_the_start() -> None:
    class Silent(FaultyStore):
        async def read(self, key: str) -> None:
            raise ConnectionError("nobody there")

    server = BrokerServer(storage=Silent(), port=0, settings=BrokerSettings(request_timeout=0.1))
    with pytest.raises(StorageBackendError, match="has not answered"):
        await asyncio.wait_for(server.start(), 5)


async def _refusal(wire: object) -> Refused:
    with pytest.raises(Refused) as refused:
        await wire.call("submitJob", payload="1")  # type: ignore[attr-defined]
    assert refused.value.tag == "StorageBackendError"
    return refused.value


async def _failure_of_start(server: BrokerServer) -> BaseException:
    with pytest.raises(BrokerLeadershipError) as failed:
        await server.start()
    return failed.value
