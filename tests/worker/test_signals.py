"""How a worker in a process of its own ends on signals, and what becomes of the jobs that run then."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from worker.support import answer, until

from osqueue_broker import BrokerServer
from osqueue_client import OsqueueClient
from osqueue_storage import MemoryBackend

PROGRAM = """
import asyncio, sys
import osqueue_worker.worker
from osqueue_client import OsqueueClient
from osqueue_worker import Worker

async def waits(payload):
    print("started", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

async def sleeps(payload):
    print("started", flush=True)
    await asyncio.sleep(3600)

async def lingers(payload):
    print("started", flush=True)
    try:
        await asyncio.sleep(3600)
    finally:
        print("lingering", flush=True)
        await asyncio.sleep(3600)

def blocks(payload):
    print("started", flush=True)
    sys.stdin.readline()

async def main():
    url, handler, patience = sys.argv[1:]
    osqueue_worker.worker._CANCEL_PATIENCE = float(patience)
    async with OsqueueClient(url) as client:
        await Worker(client=client, handlers={"a": globals()[handler]}, concurrency=1).run()
    print("returned", flush=True)

asyncio.run(main())
"""


class Program:
    """A worker in a process, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def prints(self, line: str) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            assert (await self.process.stdout.readline()).decode() == f"{line}\n"

    async def logs(self, event: str) -> str:
        """Return the next line about this event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while line := (await self.process.stderr.readline()).decode():
                if line.startswith(f"{event}: "):
                    return line.rstrip("\n")
        raise AssertionError(f"it ended without a line about {event}")

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def ends(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()


@pytest.fixture
async def client() -> AsyncIterator[OsqueueClient]:
    async with (
        BrokerServer(storage=MemoryBackend(), port=0) as server,
        OsqueueClient(f"http://{server.address}", timeout=10) as client,
    ):
        yield client


@asynccontextmanager
async def working(client: OsqueueClient, handler: str, patience: float = 3600) -> AsyncIterator[Program]:
    """Run a worker that has begun its only job."""
    await client.submit_job("a", 1)
    url = f"http://{(await client.get_stats()).broker_address}"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, url, handler, str(patience), stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        program = Program(process)
        await program.prints("started")
        yield program
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


STOPPING = "stopping: waiting for 1 job (signal again to cancel them)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_first_signal_waits_for_the_job_and_says_so(client: OsqueueClient, number: int) -> None:
    async with working(client, "waits") as program:
        program.signal(number)
        assert await program.logs("stopping") == STOPPING
        program.let_go()
        await program.prints("returned")
        assert await program.ends() == 0
    assert (await client.get_stats()).completed_total == 1


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
async def test_second_signal_cancels_the_job_and_makes_it_claimable_at_once(
    client: OsqueueClient, second: int
) -> None:
    async with working(client, "sleeps") as program:
        program.signal(signal.SIGINT)
        await program.logs("stopping")
        program.signal(second)
        assert await program.logs("cancelling") == "cancelling: 1 job"
        assert "CancelledError: the worker was stopped" in await program.logs("job_failed")
        await program.prints("returned")
        assert await program.ends() == 0
    job = await client.claim_job("another")
    assert job is not None
    assert job.attempt == 2


async def test_blocking_handler_that_runs_on_after_the_second_signal_is_not_given_to_another(
    client: OsqueueClient,
) -> None:
    async with working(client, "blocks") as program:
        program.signal(signal.SIGINT)
        await program.logs("stopping")
        program.signal(signal.SIGINT)
        assert "runs on in its thread" in await program.logs("job_left")
        await program.prints("returned")
        assert (await client.get_stats()).in_progress == 1
        program.let_go()
        assert await program.ends() == 0
    assert await client.claim_job("another") is None


async def test_third_signal_ends_it_at_once(client: OsqueueClient) -> None:
    async with working(client, "lingers") as program:
        for event in ("stopping", "cancelling"):
            program.signal(signal.SIGINT)
            await program.logs(event)
        await program.prints("lingering")
        program.signal(signal.SIGINT)
        assert "its lease runs out" in await program.logs("job_left")
        await program.prints("returned")
        assert await program.ends() == 0
    assert (await client.get_stats()).in_progress == 1


async def test_handler_that_will_not_end_holds_the_second_signal_up_for_a_bounded_time(
    client: OsqueueClient,
) -> None:
    async with working(client, "lingers", patience=0.2) as program:
        for event in ("stopping", "cancelling"):
            program.signal(signal.SIGTERM)
            await program.logs(event)
        await program.prints("lingering")
        await program.prints("returned")
        assert await program.ends() == 0


async def test_signal_while_a_claim_gets_no_answer_says_what_is_waited_for() -> None:
    silent: list[asyncio.StreamWriter] = []
    answering: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An old broker, whose stats have no features, and that says nothing more."""
        if b"/GetStats" in await reader.readuntil(b"\r\n\r\n"):
            answering.append(writer)
            writer.write(answer("200 OK", "", "application/proto"))
        else:
            silent.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    pipe = asyncio.subprocess.PIPE
    async with server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, url, "sleeps", "0.2", stdout=pipe, stderr=pipe
        )
        try:
            program = Program(process)
            await until(lambda: silent, 20)
            program.signal(signal.SIGINT)
            assert "the answer to a claim" in await program.logs("stopping")
            program.signal(signal.SIGINT)
            await program.prints("returned")
            assert await program.ends() == 0
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()
            for writer in silent + answering:
                writer.close()
