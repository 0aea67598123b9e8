"""A broker inside another application: served below any path, and plain about whether it leads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from broker.support import FaultyStore, until
from broker_front.support import Front, serving
from client.support import TRANSPORTS, transport_to
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect

from osqueue_broker import BrokerSettings, MountedBroker, create_app
from osqueue_client import OsqueueClient
from osqueue_client.errors import (
    BrokerLeadershipError,
    EngineStateError,
    OsqueueError,
    StorageBackendError,
    TransportConnectionError,
)

ADVERTISED = "127.0.0.1:8000"
ELSEWHERE = "198.51.100.7:8080"
FAST = BrokerSettings(broker_heartbeat_interval=0.05, broker_heartbeat_timeout=0.3)


def mounted(store: FaultyStore, settings: BrokerSettings | None = None) -> MountedBroker:
    return create_app(storage=store, advertise=ADVERTISED, settings=settings)


@contextlib.asynccontextmanager
async def client_of(front: Front, path: str, transport: str) -> AsyncIterator[OsqueueClient]:
    async with OsqueueClient(transport=transport_to(transport, front.http + path), timeout=10) as client:
        yield client


async def through(call: Callable[[], Awaitable[object]]) -> None:
    """Call, again where the connection had been closed."""
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(TransportConnectionError):
                await call()
                return
            await asyncio.sleep(0.002)  # bounded; the client has yet to see that


async def refusals(front: Front) -> list[dict[str, object]]:
    """What a mounted broker answers to a request on each transport, as `{"_tag": ..., ...}`."""
    async with httpx.AsyncClient(base_url=front.http, trust_env=False, timeout=10) as http:
        rest = await http.post("/v1/jobs", json={"payload": 1})
        state = await http.get("/state")
        rpc = await http.post("/osqueue.v1.QueueService/GetStats", json={})
        assert (await http.get("/healthz")).status_code == 200
    assert (rest.status_code, state.status_code) == (503, 503)
    assert (rpc.status_code, rpc.json()["code"]) == (503, "unavailable")
    async with connect(front.ws, proxy=None) as socket:
        await socket.send('{"id":1,"method":"getStats"}')
        async with asyncio.timeout(10):
            frame = json.loads(await socket.recv())
    assert frame["ok"] is False
    connect_error = {"_tag": rpc.headers["osqueue-error"], "message": rpc.json()["message"]}
    return [rest.json(), state.json(), connect_error, frame["error"]]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("path", ["", "/queue"])
async def test_every_transport_works_through_a_mount_below_any_path(path: str, transport: str) -> None:
    store = FaultyStore()
    broker = mounted(store)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with broker.running():
            yield

    app = Starlette(routes=[Mount(path or "/", app=broker)], lifespan=lifespan)
    async with (
        app.router.lifespan_context(app),
        serving(app) as front,
        client_of(front, path, transport) as client,
    ):
        job_id = await client.submit_job("t", {"a": 1})
        job = await client.claim_job("w", ["t"])
        assert job is not None
        assert (job.id, job.payload) == (job_id, {"a": 1})
        await client.complete_job(job_id, "w")
        stats = await client.get_stats()
        assert (stats.total, stats.completed_total, stats.broker_address) == (0, 1, ADVERTISED)
    assert (store.now()["broker"], store.now()["completedTotal"]) == (None, 1)


async def test_requests_before_and_after_running_are_refused_with_what_to_do() -> None:
    broker = mounted(FaultyStore())
    async with serving(broker) as front:
        for _ in range(2):
            for error in await refusals(front):
                assert error["_tag"] == "BrokerLeadershipError"
                assert "running() open" in str(error["message"])
            async with broker.running(), client_of(front, "", "rest") as client:
                await client.submit_job("t", 1)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_connections_from_before_running_find_the_broker_once_it_runs(transport: str) -> None:
    broker = mounted(FaultyStore())
    async with serving(broker) as front, client_of(front, "", transport) as client:
        with pytest.raises(BrokerLeadershipError):
            await client.submit_job("t", 1, timeout=0.2)  # for so long the client asks again
        async with broker.running():
            await through(client.get_stats)
            await client.submit_job("t", 1)
        with pytest.raises(BrokerLeadershipError):
            await through(lambda: client.get_stats(timeout=0.2))


async def test_wait_raises_what_ended_the_leadership_and_requests_meanwhile_name_the_leader() -> None:
    store = FaultyStore()
    broker = mounted(store, FAST)
    async with serving(broker) as front:
        running = broker.running()
        await running.__aenter__()
        waiting = asyncio.create_task(broker.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        store.put_now(store.now() | {"broker": ELSEWHERE})
        with pytest.raises(BrokerLeadershipError, match=ELSEWHERE) as told:
            await asyncio.wait_for(waiting, 5)
        assert told.value.leader == ELSEWHERE
        found = await refusals(front)
        assert {str(error["_tag"]) for error in found} == {"BrokerLeadershipError"}
        assert found[0]["leader"] == ELSEWHERE
        with pytest.raises(BrokerLeadershipError, match=ELSEWHERE):
            await running.__aexit__(None, None, None)
    assert store.now()["broker"] == ELSEWHERE


async def test_wait_raises_when_the_document_has_gone() -> None:
    store = FaultyStore()
    broker = mounted(store, FAST)
    running = broker.running()
    await running.__aenter__()
    await store.delete("queue.json")
    with pytest.raises(EngineStateError, match="deleted"):
        await asyncio.wait_for(broker.wait(), 5)
    with pytest.raises(EngineStateError, match="deleted"):
        await running.__aexit__(None, None, None)
    assert store.object() is None


async def test_an_application_that_fails_when_the_leadership_is_lost_sees_its_own_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def application() -> None:
        store = FaultyStore()
        broker = mounted(store, FAST)
        async with broker.running():
            store.put_now(store.now() | {"broker": ELSEWHERE})
            await until(lambda: broker._ended is not None and broker._ended.done())
            raise RuntimeError("of the application")

    with contextlib.suppress(RuntimeError):  # pytest.raises would keep all that the exception refers to
        await application()
        pytest.fail("its own failure is lost")
    gc.collect()
    assert "never retrieved" not in caplog.text  # what asyncio logs of an exception that nobody has looked at


async def test_wait_returns_at_once_before_running_and_when_it_has_ended_well() -> None:
    broker = mounted(FaultyStore())
    await asyncio.wait_for(broker.wait(), 5)
    async with broker.running():
        waiting = asyncio.create_task(broker.wait())
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(broker.wait(), 5)


async def test_running_twice_at_a_time_is_refused_and_leaves_the_first_alone() -> None:
    store = FaultyStore()
    broker = mounted(store)
    async with serving(broker) as front, broker.running(), client_of(front, "", "rest") as client:
        with pytest.raises(EngineStateError, match="already"):
            async with broker.running():
                raise AssertionError("unreachable")
        await client.submit_job("t", 1)
    assert store.now()["epoch"] == 1


async def test_a_second_process_of_the_same_application_is_refused_the_leadership() -> None:
    # Both have the same address: without a port of its own, a broker must not take that for a sign that it was
    # itself the leader.
    store = FaultyStore()
    async with mounted(store, FAST).running():
        with pytest.raises(BrokerLeadershipError, match=ADVERTISED):
            async with mounted(store, FAST).running():
                raise AssertionError("unreachable")
        assert store.now()["epoch"] == 1


async def test_a_mounted_broker_leads_again_after_its_crash_once_the_old_term_is_over() -> None:
    store = FaultyStore()
    store.put_now({"broker": ADVERTISED, "brokerHeartbeat": 1, "jobs": [], "completedTotal": 7})
    async with asyncio.timeout(5), mounted(store, FAST).running():
        assert (store.now()["broker"], store.now()["completedTotal"]) == (ADVERTISED, 7)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_running_ends_in_time_on_a_store_that_hangs_and_answers_what_waits(transport: str) -> None:
    store = FaultyStore()
    broker = mounted(store)
    async with serving(broker) as front, client_of(front, "", transport) as client:
        running = broker.running()
        await running.__aenter__()
        store.gate.clear()
        asking = asyncio.create_task(client.submit_job("t", 1, timeout=2))
        await until(lambda: store.at_gate == 1)
        async with asyncio.timeout(3):  # stop_timeout is 1.5 s
            with pytest.raises(StorageBackendError, match="not handed over"):
                await running.__aexit__(None, None, None)
            with pytest.raises(OsqueueError) as refused:
                await asking
        assert refused.value.outcome == "unknown"
