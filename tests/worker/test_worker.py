"""The worker against a real broker."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import BaseModel
from worker.support import SINGLE

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import (
    ConfigError,
    Job,
    JobType,
    OsqueueClient,
    TransportRequestError,
)
from osqueue_client.transports import open_transport
from osqueue_storage import MemoryBackend
from osqueue_worker import Worker, WorkerExecutionError


class Note(BaseModel):
    n: int


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def server() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        yield server


@pytest.fixture
async def client(server: BrokerServer) -> AsyncIterator[OsqueueClient]:
    async with OsqueueClient(f"http://{server.address}", registry={"note": Note}, timeout=10) as client:
        yield client


def worker(client: OsqueueClient, handlers: Any, **settings: Any) -> Worker:
    return Worker(client=client, handlers=handlers, **({"poll_interval": 0.02} | settings))


async def test_all_slots_are_filled_at_once_and_no_more(client: OsqueueClient) -> None:
    for n in range(7):
        await client.submit_job("note", {"n": n})
    running: list[int] = []
    go = asyncio.Event()

    async def handle(note: Note) -> None:
        running.append(note.n)
        await go.wait()

    async with worker(client, {"note": handle}, concurrency=5, poll_interval=30.0):
        await until(lambda: len(running) == 5)
        stats = await client.get_stats()
        ran_first = sorted(running)  # claims sent at once may arrive in any order
        go.set()
        assert (stats.in_progress, stats.unclaimed) == (5, 2)
        assert ran_first == [0, 1, 2, 3, 4]
        await until(lambda: len(running) == 7)
    assert (await client.get_stats()).completed_total == 7


async def test_only_types_with_a_handler_are_claimed(client: OsqueueClient) -> None:
    await client.submit_job(None, 1)
    async with OsqueueClient((await client.get_stats()).broker_address) as loose:
        await loose.submit_job("other", 1)
    await client.submit_job("note", {"n": 1})
    done = asyncio.Event()

    async with worker(client, {"note": lambda note: None}, on_job_completed=lambda job: done.set()):
        await asyncio.wait_for(done.wait(), 5)
    assert [(job.type or None, job.status) for job in (await client.list_jobs()).jobs] == [
        (None, "unclaimed"),
        ("other", "unclaimed"),
    ]


async def test_raising_handler_is_tried_again_until_the_job_is_dead(client: OsqueueClient) -> None:
    job_id = await client.submit_job("note", {"n": 1}, max_attempts=3)
    attempts: list[int | None] = []
    failures: list[str] = []

    async def handle(note: Note) -> None:
        raise RuntimeError(f"no {len(attempts)}")

    async with worker(
        client,
        {"note": handle},
        on_job_claimed=lambda job: attempts.append(job.attempt),
        on_job_failed=lambda job, error: failures.append(str(error)),
    ):
        await until(lambda: len(failures) == 3)
    assert attempts == [1, 2, 3]
    assert failures == ["no 1", "no 2", "no 3"]
    [dead] = (await client.list_dead()).jobs
    assert (dead.id, dead.attempts, dead.error.type, dead.error.message) == (
        job_id,
        3,
        "RuntimeError",
        "no 3",
    )


async def test_second_attempt_may_succeed(client: OsqueueClient) -> None:
    await client.submit_job("note", {"n": 1})
    seen: list[int] = []

    def handle(note: Note) -> None:
        seen.append(note.n)
        if len(seen) == 1:
            raise ValueError("once")

    done = asyncio.Event()
    async with worker(client, {"note": handle}, on_job_completed=lambda job: done.set()):
        await asyncio.wait_for(done.wait(), 5)
    stats = await client.get_stats()
    assert (seen, stats.total, stats.dead, stats.completed_total) == ([1, 1], 0, 0, 1)


async def test_payload_that_does_not_fit_is_dead_at_once(client: OsqueueClient) -> None:
    async with OsqueueClient((await client.get_stats()).broker_address) as loose:
        job_id = await loose.submit_job("note", {"n": "many"})
    failed = asyncio.Event()
    ran: list[object] = []

    async with worker(client, {"note": ran.append}, on_job_failed=lambda job, error: failed.set()):
        await asyncio.wait_for(failed.wait(), 5)
    [dead] = (await client.list_dead()).jobs
    assert (dead.id, dead.attempts, dead.error.type) == (job_id, 1, "PayloadValidationError")
    assert ran == []


async def test_job_types_carry_their_model_to_the_handler(server: BrokerServer) -> None:
    note = JobType("note", Note)
    got: list[Note] = []

    async def handle(payload: Note) -> None:
        got.append(payload)

    async with OsqueueClient(f"http://{server.address}") as client:
        await client.submit_job(note, Note(n=4))
        async with worker(client, [note.handled_by(handle)]):
            await until(lambda: got == [Note(n=4)])


async def test_blocking_handler_runs_in_a_thread(client: OsqueueClient) -> None:
    await client.submit_job("note", {"n": 1})
    names: list[str] = []
    async with worker(client, {"note": lambda note: names.append(threading.current_thread().name)}):
        await until(lambda: names)
    assert names != [threading.main_thread().name]


async def test_heartbeats_keep_the_lease_of_a_long_job() -> None:
    settings = BrokerSettings(heartbeat_timeout=0.4)
    async with (
        BrokerServer(storage=MemoryBackend(), port=0, settings=settings) as server,
        OsqueueClient(f"http://{server.address}") as client,
    ):
        await client.submit_job("long", 1)
        started: list[object] = []

        async def handle(payload: object) -> None:
            started.append(payload)
            await asyncio.sleep(1.0)

        done = asyncio.Event()
        async with worker(
            client, {"long": handle}, heartbeat_interval=0.1, on_job_completed=lambda job: done.set()
        ):
            await asyncio.wait_for(done.wait(), 5)
        assert started == [1]


async def test_handler_is_cancelled_when_its_lease_is_lost(client: OsqueueClient) -> None:
    job_id = await client.submit_job("note", {"n": 1})
    started, cancelled = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def handle(note: Note) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    working = worker(
        client,
        {"note": handle},
        heartbeat_interval=0.05,
        worker_id="w1",
        on_job_completed=lambda job: ended.append("completed"),
        on_job_failed=lambda job, error: ended.append("failed"),
    )
    async with working:
        await asyncio.wait_for(started.wait(), 5)
        await client.complete_job(job_id, "w1")
        await asyncio.wait_for(cancelled.wait(), 5)
    assert ended == []


# httpcore leaves a socket to the garbage collector when the server goes while it connects: not ours to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("transport", ["rest", "ws", "connect"])
async def test_broker_restart_is_survived(transport: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = MemoryBackend()
    got: list[object] = []
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(payload: object) -> None:
        if payload == "across":
            started.set()
            await go.wait()
        got.append(payload)

    async with OsqueueClient(f"http://127.0.0.1:{port}", transport=transport, timeout=5) as client:
        async with BrokerServer(storage=storage, port=port):
            await client.submit_job("a", "across")
            working = worker(client, {"a": handle}, heartbeat_interval=0.05)
            working.start()
            await asyncio.wait_for(started.wait(), 5)
        await asyncio.sleep(0.15)  # heartbeats and claims fail meanwhile
        go.set()
        await until(lambda: got == ["across"])
        async with BrokerServer(storage=storage, port=port):
            await client.reconnect()
            await client.submit_job("a", "after")
            await until(lambda: got == ["across", "after"])
            await asyncio.wait_for(working.stop(), 10)
            stats = await client.get_stats()
    gc.collect()
    assert (stats.total, stats.completed_total) == (0, 2)


async def test_stop_waits_for_running_jobs_and_claims_no_more(client: OsqueueClient) -> None:
    await client.submit_job("note", {"n": 1})
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(note: Note) -> None:
        started.set()
        await go.wait()

    working = worker(client, {"note": handle}, concurrency=1)
    working.start()
    await asyncio.wait_for(started.wait(), 5)
    stopping = asyncio.create_task(working.stop())
    await asyncio.sleep(0.1)  # a claim that is under way still counts
    await client.submit_job("note", {"n": 2})
    await asyncio.sleep(0.1)
    assert not stopping.done()
    go.set()
    await asyncio.wait_for(stopping, 5)
    stats = await client.get_stats()
    assert (stats.unclaimed, stats.in_progress, stats.completed_total) == (1, 0, 1)
    await working.stop()


async def test_stop_before_start_and_start_twice(client: OsqueueClient) -> None:
    await worker(client, {"note": print}).stop()
    async with worker(client, {"note": print}) as working:
        with pytest.raises(ConfigError, match="started"):
            working.start()


async def test_hooks_may_be_async_and_their_faults_change_nothing(
    client: OsqueueClient, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = await client.submit_job("note", {"n": 1})
    seen: list[tuple[str, str]] = []

    async def claimed(job: Job) -> None:
        seen.append(("claimed", job.id))
        raise RuntimeError("a hook's fault")

    async def completed(job: Job) -> None:
        seen.append(("completed", job.id))

    with caplog.at_level(logging.ERROR, "osqueue.worker"):
        async with worker(
            client, {"note": lambda note: None}, on_job_claimed=claimed, on_job_completed=completed
        ):
            await until(lambda: len(seen) == 2)
    assert seen == [("claimed", job_id), ("completed", job_id)]
    [line] = [line for line in caplog.messages if line.startswith("hook_failed:")]
    assert job_id in line
    assert "a hook's fault" in line


class Overridden:
    """A transport whose answers to some operations are replaced by errors."""

    def __init__(self, url: str, errors: dict[str, Exception]) -> None:
        self.inner = open_transport("rest", url)
        self.errors = errors
        self.called: list[str] = []

    async def call(self, operation: Any, request: Any, /) -> Any:
        name = SINGLE.get(operation.name, operation.name)
        self.called.append(name)
        if name in self.errors:
            raise self.errors[name]
        return await self.inner.call(operation, request)

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.mark.parametrize("error", [ConfigError("no"), ValueError("a fault of the worker's own")])
async def test_failure_of_the_worker_is_raised_by_wait_and_stop(
    server: BrokerServer, error: Exception
) -> None:
    transport = Overridden(f"http://{server.address}", {"claimJob": error})
    async with OsqueueClient(transport=transport) as client:
        working = worker(client, {"note": print})
        working.start()
        for end in (working.wait, working.stop, working.stop):
            with pytest.raises(WorkerExecutionError):
                await asyncio.wait_for(end(), 5)


async def test_old_broker_that_knows_no_fail_job_lets_the_lease_run_out() -> None:
    settings = BrokerSettings(heartbeat_timeout=0.3)
    async with BrokerServer(storage=MemoryBackend(), port=0, settings=settings) as server:
        refused = TransportRequestError("no such path", status=404)
        transport = Overridden(f"http://{server.address}", {"failJob": refused})
        async with OsqueueClient(transport=transport) as client:
            await client.submit_job("a", 1)
            seen: list[object] = []

            async def handle(payload: object) -> None:
                seen.append(payload)
                if len(seen) == 1:
                    raise ValueError("once")

            done = asyncio.Event()
            async with worker(client, {"a": handle}, on_job_completed=lambda job: done.set()):
                await asyncio.wait_for(done.wait(), 10)
            assert seen == [1, 1]
            assert transport.called.count("failJob") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_ends_on_a_signal(client: OsqueueClient, number: int) -> None:
    await client.submit_job("note", {"n": 1})

    async def handle(note: Note) -> None:
        os.kill(os.getpid(), number)

    await asyncio.wait_for(worker(client, {"note": handle}).run(), 10)
    assert (await client.get_stats()).completed_total == 1
