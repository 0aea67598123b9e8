"""How a worker ends, and what the user's own code may do to it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator
from worker.support import Overridden, until

from osqueue_broker import BrokerServer
from osqueue_client import Job, OsqueueClient
from osqueue_storage import MemoryBackend
from osqueue_worker import Worker


@pytest.fixture
async def server() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        yield server


@pytest.fixture
async def client(server: BrokerServer) -> AsyncIterator[OsqueueClient]:
    async with OsqueueClient(server.address, timeout=10) as client:
        yield client


def worker(client: OsqueueClient, handler: Any, **settings: Any) -> Worker:
    return Worker(client=client, handlers={"a": handler}, **({"poll_interval": 0.02} | settings))


def workers_tasks() -> list[str]:
    """The tasks that run beside the test and the broker."""
    ours = ("Worker.", "Runs.", "Run.", "Claims.", "Heartbeats.")
    return [
        name for task in asyncio.all_tasks() if any(part in (name := repr(task.get_coro())) for part in ours)
    ]


class Blocked:
    """A handler that runs until it is let go."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = False

    async def __call__(self, payload: object) -> None:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_job_that_is_claimed_while_stopping_is_run(server: BrokerServer) -> None:
    transport = Overridden(f"http://{server.address}")
    leased, go = asyncio.Event(), asyncio.Event()

    async def hold_the_answer() -> None:
        leased.set()
        await go.wait()

    transport.after["claimJob"] = hold_the_answer
    ran: list[object] = []
    async with OsqueueClient(transport=transport) as client:
        await client.submit_job("a", 1)
        working = worker(client, ran.append)
        working.start()
        await asyncio.wait_for(leased.wait(), 5)
        stopping = asyncio.create_task(working.stop())
        await until(lambda: working._is_stopping)
        go.set()
        await asyncio.wait_for(stopping, 10)
        assert ran == [1]
        assert (await client.get_stats()).completed_total == 1
    assert transport.called["claimJob"] == 1


async def test_cancelled_wait_leaves_the_worker_running(client: OsqueueClient) -> None:
    handle = Blocked()
    await client.submit_job("a", 1)
    async with worker(client, handle) as working:
        await asyncio.wait_for(handle.started.wait(), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(working.wait(), 0.05)
        handle.go.set()
    assert not handle.cancelled
    assert (await client.get_stats()).completed_total == 1


@pytest.mark.parametrize("end", ["stop", "run", "async with"])
async def test_cancelled_end_of_a_worker_leaves_no_task(client: OsqueueClient, end: str) -> None:
    handle = Blocked()
    await client.submit_job("a", 1)
    working = worker(client, handle)

    async def ended() -> None:
        if end == "run":
            await working.run()
        elif end == "stop":
            working.start()
            await handle.started.wait()
            await working.stop()
        else:
            async with working:
                await handle.started.wait()

    ending = asyncio.create_task(ended())
    await asyncio.wait_for(handle.started.wait(), 5)
    if end != "run":
        await until(lambda: working._is_stopping)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(ending, 5)
    assert handle.cancelled
    assert workers_tasks() == []
    # Also for those who ask later: nothing cancels them.
    await asyncio.wait_for(working.wait(), 5)
    await asyncio.wait_for(working.stop(), 5)
    stats = await client.get_stats()
    assert (stats.in_progress, stats.dead, stats.completed_total) == (1, 0, 0)


class OddError(Exception):
    def __str__(self) -> str:
        raise LookupError("no text")


def raises(error: BaseException) -> Callable[[object], None]:
    def handle(payload: object) -> None:
        raise error

    return handle


def raises_async(error: BaseException) -> Callable[[object], Any]:
    async def handle(payload: object) -> None:
        raise error

    return handle


@pytest.mark.parametrize("make", [raises, raises_async])
@pytest.mark.parametrize(
    ("error", "name"),
    [
        (SystemExit(3), "SystemExit"),
        (BaseException("odd"), "BaseException"),
        (StopIteration(), "RuntimeError"),  # as Python has it for whatever is awaited
        (OddError(), "OddError"),
        (asyncio.CancelledError(), "RuntimeError"),
    ],
)
async def test_whatever_a_handler_raises_fails_its_job_only(
    client: OsqueueClient, make: Callable[[BaseException], Any], error: BaseException, name: str
) -> None:
    failed: list[str] = []
    await client.submit_job("a", 1, max_attempts=1)
    async with worker(
        client, make(error), on_job_failed=lambda job, error: failed.append(type(error).__name__)
    ):
        await until(lambda: failed)
    assert failed == [name]
    [dead] = (await client.list_dead()).jobs
    assert dead.error.type == name


async def test_validator_that_breaks_fails_its_job_only(server: BrokerServer) -> None:
    def validate(value: int) -> int:
        raise KeyError(value)

    failed: list[str] = []
    async with OsqueueClient(server.address) as producer:
        await producer.submit_job("a", 1, max_attempts=1)
    async with (
        OsqueueClient(server.address, registry={"a": Annotated[int, AfterValidator(validate)]}) as client,
        worker(client, print, on_job_failed=lambda job, error: failed.append(type(error).__name__)),
    ):
        await until(lambda: failed)
    assert failed == ["KeyError"]


@pytest.mark.parametrize("fault", [SystemExit(3), asyncio.CancelledError(), BaseException("odd")])
async def test_whatever_a_hook_raises_changes_nothing(client: OsqueueClient, fault: BaseException) -> None:
    await client.submit_job("a", 1)
    seen: list[str] = []

    def claimed(job: Job) -> None:
        seen.append("claimed")
        raise fault

    def completed(job: Job) -> None:
        seen.append("completed")
        raise fault

    async with worker(client, lambda payload: None, on_job_claimed=claimed, on_job_completed=completed):
        await until(lambda: "completed" in seen)
    assert seen == ["claimed", "completed"]


async def test_lease_is_kept_while_a_hook_takes_its_time(server: BrokerServer) -> None:
    transport = Overridden(f"http://{server.address}")
    done = asyncio.Event()

    async def claimed(job: Job) -> None:
        await until(lambda: transport.called["heartbeat"] >= 2)

    async with OsqueueClient(transport=transport) as client:
        await client.submit_job("a", 1)
        async with worker(
            client,
            lambda payload: None,
            heartbeat_interval=0.02,
            on_job_claimed=claimed,
            on_job_completed=lambda job: done.set(),
        ):
            await asyncio.wait_for(done.wait(), 5)
    assert transport.called["heartbeat"] >= 2


async def test_blocking_handler_that_lost_its_lease_runs_on_and_is_not_reported(
    client: OsqueueClient,
) -> None:
    started, go, ended = threading.Event(), threading.Event(), threading.Event()
    reported: list[str] = []

    def handle(payload: object) -> None:
        started.set()
        go.wait(10)
        ended.set()

    job_id = await client.submit_job("a", 1)
    working = worker(
        client,
        handle,
        worker_id="w1",
        heartbeat_interval=0.02,
        on_job_completed=lambda job: reported.append("completed"),
        on_job_failed=lambda job, error: reported.append("failed"),
    )
    working.start()
    try:
        await until(started.is_set)
        await client.complete_job(job_id, "w1")
        await until(lambda: working._runs.running == 0)
        assert not ended.is_set()
        await asyncio.wait_for(working.stop(), 5)
    finally:
        go.set()
    await until(ended.is_set)
    assert reported == []


INTERRUPTED = """
import asyncio
from osqueue_broker import BrokerServer
from osqueue_client import OsqueueClient
from osqueue_storage import MemoryBackend
from osqueue_worker import Worker

async def handle(payload):
    raise KeyboardInterrupt

async def main():
    async with BrokerServer(storage=MemoryBackend(), port=0) as server, OsqueueClient(server.address) as client:
        await client.submit_job("a", 1)
        await Worker(client=client, handlers={"a": handle}, poll_interval=0.02).run()

asyncio.run(main())
"""


def test_interrupt_in_a_handler_ends_the_program() -> None:
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED], timeout=30, capture_output=True, check=False)
    assert ended.returncode != 0
    assert b"KeyboardInterrupt" in ended.stderr
