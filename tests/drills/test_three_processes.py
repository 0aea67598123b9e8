"""The quickstart in three processes, a broker that is killed in between, and how the command ends."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from osqueue_client import OsqueueClient

EXAMPLES = Path(__file__).parents[2] / "examples"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


class Program:
    """A Python program that runs, and the lines that it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def end(self, number: int, seconds: float = 20.0) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        async with asyncio.timeout(seconds):
            return await self.process.wait()


@asynccontextmanager
async def running(*arguments: str, cwd: Path) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=cwd,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def port(tmp_path: Path) -> int:
    """A free port, and the examples in the temporary folder made to use it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    for example in EXAMPLES.glob("*.py"):
        text = example.read_text().replace("8080", str(found)).replace("0.0.0.0", "127.0.0.1")
        (tmp_path / example.name).write_text(text)
    return found


async def produce(tmp_path: Path) -> list[str]:
    """Run the producer; return the ids that it printed."""
    async with running("producer.py", cwd=tmp_path) as producer:
        lines = [await producer.line(), await producer.line(), await producer.line()]
        assert await producer.process.wait() == 0
    found = [
        re.fullmatch(rf"Submitted (email:send|report:generate) job ({UUID})", line) for line in lines[:2]
    ]
    assert [match and match[1] for match in found] == ["email:send", "report:generate"]
    assert lines[2] == ""
    return [match[2] for match in found if match]


async def test_acknowledged_jobs_survive_a_killed_broker_and_run(tmp_path: Path, port: int) -> None:
    storage = f"file:{tmp_path / 'store'}"
    url = f"http://127.0.0.1:{port}"
    ids: list[str] = []
    for _ in range(2):
        async with running("broker.py", storage, cwd=tmp_path) as broker:
            assert await broker.line() == f"Broker listening on 127.0.0.1:{port}"
            ids += await produce(tmp_path)
            assert await broker.end(signal.SIGKILL) == -signal.SIGKILL
    async with running("broker.py", storage, cwd=tmp_path) as broker:
        assert await broker.line() == f"Broker listening on 127.0.0.1:{port}"
        async with OsqueueClient(url, timeout=10) as client:
            assert [job.id for job in (await client.list_jobs()).jobs] == ids
            async with running("worker.py", cwd=tmp_path) as worker:
                assert await worker.line() == "Worker started, polling for jobs..."
                assert sorted([await worker.line() for _ in range(4)]) == [
                    "Generating pdf report rpt-1",
                    "Generating pdf report rpt-1",
                    'Sending email to user@example.com: "Hello!"',
                    'Sending email to user@example.com: "Hello!"',
                ]
                # The worker lives through a kill of the broker, too.
                assert await broker.end(signal.SIGKILL) == -signal.SIGKILL
                async with running("broker.py", storage, cwd=tmp_path) as again:
                    await again.line()
                    await client.reconnect()
                    await produce(tmp_path)
                    assert len({await worker.line(), await worker.line()}) == 2
                    assert await worker.end(signal.SIGTERM) == 0
                    stats = await client.get_stats()
                    assert (stats.total, stats.dead) == (0, 0)
                    assert await again.end(signal.SIGINT) == 0


async def test_quickstart_in_one_process_ends_by_itself(tmp_path: Path) -> None:
    async with running(str(EXAMPLES / "quickstart.py"), cwd=tmp_path) as program:
        async with asyncio.timeout(30):
            out, _ = await program.process.communicate()
        assert program.process.returncode == 0
    lines = out.decode().splitlines()
    assert re.fullmatch(r"Broker listening on 127\.0\.0\.1:\d+", lines[0])
    assert set(lines) >= {"Worker started, polling for jobs...", "Done: 2 jobs completed, 0 left"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_command_ends_in_two_seconds_with_open_connections(tmp_path: Path, number: int) -> None:
    arguments = ("-m", "osqueue_broker", "--storage", "file:store", "--port", "0")
    async with running(*arguments, cwd=tmp_path) as broker:
        found = re.fullmatch(r"Broker listening on (127\.0\.0\.1:(\d+))", await broker.line())
        assert found is not None
        async with OsqueueClient(f"http://{found[1]}", timeout=10) as client:
            job_id = await client.submit_job("a", 1)
            _, half = await asyncio.open_connection("127.0.0.1", int(found[2]))
            half.write(b"POST /v1/jobs HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n")
            half.write(b"content-length: 100\r\n\r\n{")
            await half.drain()
            async with connect(f"ws://{found[1]}/v1/ws", proxy=None):
                await client.get_stats()
                began = time.monotonic()
                status = await broker.end(number, 5)
                assert (status, time.monotonic() - began < 2.0) == (0, True)
            half.close()
    async with running(*arguments, cwd=tmp_path) as broker:
        address = (await broker.line()).removeprefix("Broker listening on ")
        async with OsqueueClient(f"http://{address}", timeout=10) as client:
            assert [job.id for job in (await client.list_jobs()).jobs] == [job_id]
