"""What a person reads in the log of a worker."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import BaseModel
from worker.support import Overridden, raising, until

from osqueue_broker import BrokerServer
from osqueue_client import OsqueueClient, OsqueueError, QueueFullError, TransportRequestError
from osqueue_storage import MemoryBackend
from osqueue_worker import Worker
from osqueue_worker.logs import ClaimLog

SECRET = "hunter2"


class Login(BaseModel):
    name: str
    attempts: int


@pytest.fixture
async def transport() -> AsyncIterator[Overridden]:
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        yield Overridden(f"http://{server.address}")


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "osqueue.worker")


def about(caplog: pytest.LogCaptureFixture, event: str) -> list[Any]:
    return [record for record in caplog.records if getattr(record, "event", None) == event]


async def run_one(transport: Overridden, handler: Callable[[Any], object], **settings: Any) -> str:
    """Run the only attempt of a job that holds a secret; return its id."""
    ended = asyncio.Event()
    async with OsqueueClient(transport=transport) as client:
        job_id = await client.submit_job("login", {"name": SECRET, "attempts": 1}, max_attempts=1)
        hooks = {
            "on_job_failed": lambda job, error: ended.set(),
            "on_job_completed": lambda job: ended.set(),
        }
        worker = Worker(
            client=client,
            handlers={"login": handler},
            poll_interval=0.02,
            concurrency=1,
            **(hooks | settings),
        )
        async with worker:
            await asyncio.wait_for(ended.wait(), 10)
    return job_id


async def test_failed_job_is_named_with_its_exception_and_traceback_but_without_its_payload(
    transport: Overridden, caplog: pytest.LogCaptureFixture
) -> None:
    def open_the_door(payload: object) -> None:
        raise ValueError("the door\nis shut")

    job_id = await run_one(transport, open_the_door)
    [record] = about(caplog, "job_failed")
    assert record.getMessage() == (
        f"job_failed: login {job_id} (attempt 1) failed: it is tried again, or dead if that was its last attempt: "
        "ValueError: the door is shut"
    )
    assert (record.job_id, record.job_type, record.attempt) == (job_id, "login", 1)
    assert (record.error, record.error_message, record.retry) == ("ValueError", "the door\nis shut", True)
    assert 'raise ValueError("the door\\nis shut")' in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in repr([vars(record) for record in caplog.records if record.name == "osqueue.worker"])


async def test_payload_that_does_not_fit_is_named_without_its_value(
    transport: Overridden, caplog: pytest.LogCaptureFixture
) -> None:
    class Strict(BaseModel):
        name: int

    ended = asyncio.Event()
    async with OsqueueClient(transport=transport) as producer:
        await producer.submit_job("login", {"name": SECRET})
        async with OsqueueClient(transport=transport, registry={"login": Strict}) as client:
            handlers = {"login": print}
            async with Worker(client=client, handlers=handlers, on_job_failed=lambda job, error: ended.set()):
                await asyncio.wait_for(ended.wait(), 10)
    [record] = about(caplog, "job_failed")
    assert "is dead: PayloadValidationError: " in record.getMessage()
    assert "valid integer" in record.getMessage()
    assert record.exc_info is None
    assert SECRET not in caplog.text


async def test_error_of_a_hook_names_the_hook_and_the_job(
    transport: Overridden, caplog: pytest.LogCaptureFixture
) -> None:
    def note_it(job: object) -> None:
        raise LookupError("no notebook")

    job_id = await run_one(transport, lambda payload: None, on_job_claimed=note_it)
    [record] = about(caplog, "hook_failed")
    assert job_id in record.getMessage()
    assert "note_it" in record.getMessage()
    assert "LookupError: no notebook" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("operation", ["completeJob", "heartbeat"])
async def test_one_line_tells_of_all_failures_of_one_report(
    transport: Overridden, caplog: pytest.LogCaptureFixture, operation: str
) -> None:
    error = QueueFullError(f"{operation}: too much waits at http://a:1")
    transport.before[operation] = raising(error, error, error)

    async def handle(payload: object) -> None:
        if operation == "heartbeat":
            await until(lambda: transport.called["heartbeat"] >= 4)

    job_id = await run_one(transport, handle, heartbeat_interval=0.02)
    event = "heartbeat_failed" if operation == "heartbeat" else "report_failed"
    [record] = about(caplog, event)
    assert transport.called[operation] >= 4
    assert job_id in record.getMessage()
    assert "too much waits at http://a:1" in record.getMessage()


async def test_broker_that_is_away_is_logged_once_with_its_address_and_once_when_it_is_back(
    transport: Overridden, caplog: pytest.LogCaptureFixture
) -> None:
    error = QueueFullError("claimJob: too much waits at http://a:1")
    transport.before["claimJob"] = raising(*[error] * 5)
    await run_one(transport, lambda payload: None)
    assert transport.called["claimJob"] >= 6
    assert [event for record in caplog.records if "claim" in (event := getattr(record, "event", ""))] == [
        "claim_failed",
        "claims_work_again",
    ]
    [record] = about(caplog, "claim_failed")
    assert "QueueFullError: claimJob: too much waits at http://a:1" in record.getMessage()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_repeats_are_logged_at_growing_intervals(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    claims = ClaimLog(clock)
    at: list[float] = []
    for second in range(2000):
        clock.now = 1000.0 + second
        claims.failed(logging.WARNING, "claim_failed", OsqueueError("no"))
        if len(caplog.records) > len(at):
            at.append(float(second))
    assert at == [0, 10, 30, 70, 150, 310, 610, 910, 1210, 1510, 1810]
    assert "71 times in 70 s" in caplog.messages[3]
    claims.worked()
    claims.worked()
    assert caplog.messages[len(at) :] == ["claims_work_again: after 2000 that failed in 1999 s"]
    claims.failed(logging.WARNING, "claim_failed", OsqueueError("no"))
    assert len(caplog.messages) == len(at) + 2


def test_refusal_is_logged_at_once_after_failures_of_lower_level(caplog: pytest.LogCaptureFixture) -> None:
    claims = ClaimLog(Clock())
    claims.failed(logging.WARNING, "claim_failed", OsqueueError("no"))
    for _ in range(2):
        claims.failed(logging.ERROR, "claim_refused", TransportRequestError("what path?", status=404))
        claims.failed(logging.WARNING, "claim_failed", OsqueueError("no"))
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


WITHOUT_LOGGING = """
import asyncio
from osqueue_broker import BrokerServer
from osqueue_client import OsqueueClient
from osqueue_storage import MemoryBackend
from osqueue_worker import Worker

async def open_the_door(payload):
    raise ValueError("the door is shut")

async def main():
    ended = asyncio.Event()
    async with BrokerServer(storage=MemoryBackend(), port=0) as server, OsqueueClient(server.address) as client:
        await client.submit_job("door:open", 1, max_attempts=1)
        handlers = {"door:open": open_the_door}
        async with Worker(client=client, handlers=handlers, on_job_failed=lambda job, error: ended.set()):
            await ended.wait()

asyncio.run(main())
"""


def test_program_without_logging_shows_what_failed_and_where() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOGGING], timeout=30, capture_output=True, check=True, text=True
    )
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("job_failed: door:open ")
    assert lines[0].endswith("ValueError: the door is shut")
    assert lines[-1] == "ValueError: the door is shut"
    assert any("in open_the_door" in line for line in lines)
