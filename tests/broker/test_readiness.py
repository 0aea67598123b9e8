"""`/healthz` and `/readyz` tell the truth, also when the store is down or another broker leads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from broker.support import FaultyStore, opened, until
from broker.test_freshness import SETTINGS, TIMEOUT, PausableClock
from broker_front.support import serving

from osqueue_broker import BrokerServer, BrokerSettings, MemoryBackend, ThrottledStorageBackend, create_app
from osqueue_client.errors import BrokerLeadershipError, EngineStateError
from osqueue_storage import AzureBackend, FileBackend, GCSBackend, S3Backend, StorageBackend, is_remote

ELSEWHERE = "198.51.100.7:8080"
FAST = BrokerSettings(broker_heartbeat_interval=0.06, broker_heartbeat_timeout=0.6)


async def ready(http: httpx.AsyncClient) -> tuple[int, dict[str, Any]]:
    """What `/readyz` says; `/healthz` says the same as ever."""
    alive = await http.get("/healthz")
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    answer = await http.get("/readyz")
    return answer.status_code, answer.json()


@asynccontextmanager
async def standing_by(
    store: FaultyStore, **options: Any
) -> AsyncIterator[tuple[BrokerServer, httpx.AsyncClient]]:
    async with BrokerServer(storage=store, port=0, standby=True, **options) as server, opened(server) as wire:
        yield server, wire.http


async def test_a_leader_whose_last_commit_is_fresh_is_ready(http: httpx.AsyncClient) -> None:
    assert await ready(http) == (200, {"status": "ready"})


async def test_a_leader_that_could_not_write_for_long_is_not_until_it_can() -> None:
    store, clock = FaultyStore(), PausableClock()
    PausableClock.paused = 0.0
    async with (
        BrokerServer(storage=store, port=0, settings=SETTINGS, clock=clock) as server,
        opened(server) as wire,
    ):
        store.gate.clear()
        PausableClock.paused = TIMEOUT
        assert await ready(wire.http) == (503, {"status": "stale"})
        store.gate.set()
        await wire.call("submitJob", payload="1")
        assert await ready(wire.http) == (200, {"status": "ready"})


async def test_a_standby_is_alive_and_not_ready_and_refuses_every_operation_with_the_leader() -> None:
    store = FaultyStore()
    async with (
        BrokerServer(storage=store, port=0) as leader,
        standing_by(store) as (server, http),
    ):
        async with asyncio.timeout(5):
            while await ready(http) != (503, {"status": "standby", "leader": leader.address}):
                await asyncio.sleep(0)
        assert (leader.is_leading, server.is_leading) == (True, False)
        for method, path, body in (
            ("POST", "/v1/jobs", {"payload": 1}), ("POST", "/v1/jobs/claim", {"workerId": "w"}),
            ("GET", "/v1/stats", None), ("GET", "/state", None),
        ):  # fmt: skip
            answer = await http.request(method, path, json=body)
            assert answer.status_code == 503
            assert (answer.json()["_tag"], answer.json()["leader"]) == (
                "BrokerLeadershipError",
                leader.address,
            )


async def test_a_server_that_stands_by_leads_when_the_leader_stops_and_says_when() -> None:
    store = FaultyStore()
    leader = BrokerServer(storage=store, port=0, settings=FAST)
    await leader.start()
    async with standing_by(store, settings=FAST) as (server, http):
        leading = asyncio.create_task(server.wait_leading())
        await asyncio.sleep(0)
        assert not leading.done()
        await leader.stop()
        await asyncio.wait_for(leading, 5)
        assert server.is_leading
        await asyncio.wait_for(server.wait_leading(), 5)
        assert await ready(http) == (200, {"status": "ready"})
        store.put_now(store.now() | {"broker": ELSEWHERE})
        await until(lambda: not server.is_leading)
        await asyncio.wait_for(server.wait_leading(), 5)  # that one says nothing more
        assert store.now()["broker"] == server.address


async def test_a_standby_that_is_stopped_ends_at_once_and_well() -> None:
    store = FaultyStore()
    store.put_now({"broker": ELSEWHERE, "jobs": []})
    before = store.object()
    async with standing_by(store) as (server, _):
        leading = asyncio.create_task(server.wait_leading())
        await asyncio.wait_for(server.stop(), 3)
        with pytest.raises(BrokerLeadershipError, match="stopped"):
            await leading
    assert store.object() is before


async def test_only_a_server_that_was_started_can_be_waited_for() -> None:
    with pytest.raises(EngineStateError):
        await BrokerServer(storage=MemoryBackend(), port=0).wait_leading()


async def test_a_mounted_broker_says_where_it_is_in_its_life() -> None:
    store = FaultyStore()
    broker = create_app(storage=store, advertise="10.0.0.1:80", settings=FAST, standby=True)
    async with serving(broker) as front, httpx.AsyncClient(base_url=front.http, trust_env=False) as http:
        assert await ready(http) == (503, {"status": "starting"})
        with pytest.raises(BrokerLeadershipError):
            await broker.wait_leading()
        async with broker.running():
            await asyncio.wait_for(broker.wait_leading(), 5)
            assert broker.is_leading
            assert await ready(http) == (200, {"status": "ready"})
            store.put_now(store.now() | {"broker": ELSEWHERE})
            await until(lambda: not broker.is_leading)
            assert await ready(http) == (503, {"status": "standby", "leader": ELSEWHERE})
            await asyncio.wait_for(broker.wait_leading(), 5)
        assert await ready(http) == (503, {"status": "stopped"})
    assert store.now()["broker"] is None


# The warning about an address that others cannot reach


REMOTE = {
    "s3": (lambda: S3Backend("bucket"), True),
    "s3 here": (lambda: S3Backend("bucket", endpoint_url="http://127.0.0.1:9000"), False),
    "gcs": (lambda: GCSBackend("bucket"), True),
    "gcs here": (lambda: GCSBackend("bucket", endpoint_url="http://localhost:4443", anonymous=True), False),
    "azure": (lambda: AzureBackend("c1c", account="account", sas_token="sig=x"), True),
    "azure here": (
        lambda: AzureBackend(
            "c1c", account="account", account_key="a2V5", endpoint_url="http://[::1]:1/account"
        ),
        False,
    ),
    "memory": (MemoryBackend, False),
    "file": (lambda: FileBackend("/nowhere"), False),
    "throttled s3": (lambda: ThrottledStorageBackend(S3Backend("bucket"), writes_per_minute=60), True),
    "throttled memory": (lambda: ThrottledStorageBackend(MemoryBackend(), writes_per_minute=60), False),
}


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(("make", "expected"), REMOTE.values(), ids=REMOTE)
async def test_which_stores_other_machines_can_reach(make: Any, expected: bool) -> None:
    storage: StorageBackend = make()
    async with storage:
        assert is_remote(storage) is expected


class Shared(FaultyStore):
    is_remote = True


@pytest.mark.parametrize(
    ("advertise", "make", "is_warned"),
    [
        (None, Shared, True),
        ("localhost:80", Shared, True),
        ("10.0.0.1:80", Shared, False),
        (None, FaultyStore, False),
    ],
)
async def test_a_loopback_address_on_a_store_that_others_reach_is_warned_about(
    advertise: str | None, make: Any, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with BrokerServer(storage=make(), port=0, advertise=advertise):
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("which other machines cannot reach" in warning for warning in warnings) is is_warned
