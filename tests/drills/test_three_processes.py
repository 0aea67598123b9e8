"""The quickstart in three processes, a broker that is killed in between, and how the command ends."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from drills.programs import ended, running
from drills.quickstart import EXAMPLES, WORK, produce
from storage.servers.process import free_ports
from websockets.asyncio.client import connect

from osqueue_client import OsqueueClient


async def test_acknowledged_jobs_survive_a_killed_broker_and_run(examples: Path) -> None:
    storage, port = f"file:{examples / 'store'}", "0"
    ids: list[str] = []
    for _ in range(2):
        async with running("broker.py", storage, "--port", port, cwd=examples) as broker:
            port = await broker.port()
            url = f"http://127.0.0.1:{port}"
            ids += await produce(examples, url)
            assert await broker.end(signal.SIGKILL) == -signal.SIGKILL
    async with running("broker.py", storage, "--port", port, cwd=examples) as broker:
        assert await broker.port() == port
        async with OsqueueClient(url, timeout=10) as client:
            assert [job.id for job in (await client.list_jobs()).jobs] == ids
            async with running("worker.py", url, cwd=examples) as worker:
                assert await worker.line() == "Worker started, polling for jobs..."
                assert sorted([await worker.line() for _ in range(4)]) == sorted(WORK * 2)
                # The worker lives through a kill of the broker, too.
                assert await broker.end(signal.SIGKILL) == -signal.SIGKILL
                async with running("broker.py", storage, "--port", port, cwd=examples) as again:
                    await again.line()
                    await client.reconnect()
                    await produce(examples, url)
                    assert len({await worker.line(), await worker.line()}) == 2
                    assert await worker.end(signal.SIGTERM) == 0
                    stats = await client.get_stats()
                    assert (stats.total, stats.dead) == (0, 0)
                    assert await again.end(signal.SIGINT) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_example_broker_hands_over_when_it_is_told_to_end(examples: Path, number: int) -> None:
    async with running("broker.py", "file:store", "--port", "0", cwd=examples) as broker:
        await broker.port()
        assert await broker.end(number) == 0
    assert json.loads((examples / "store" / "queue.json").read_text())["broker"] is None


async def test_example_broker_says_in_one_line_why_it_cannot_start(examples: Path) -> None:
    async with running("broker.py", "--port", "0", cwd=examples) as broker:
        port = await broker.port()
        status, _, err = await ended("broker.py", "--port", port, cwd=examples)
    assert (status, err.count("\n")) == (1, 1)
    assert f"port {port} (try --port)" in err
    status, _, err = await ended("broker.py", "floppy:a", cwd=examples)
    assert (status, err.count("\n")) == (1, 1)
    assert "ConfigError" in err


async def test_example_producer_without_a_broker_warns_once_and_says_so_in_one_line(examples: Path) -> None:
    script = examples / "producer.py"
    script.write_text(script.read_text().replace("registry=registry", "registry=registry, timeout=3"))
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        status, out, err = await ended("producer.py", f"http://{address}", cwd=examples)
    warning, error = err.splitlines()
    assert (status, out) == (1, "")
    assert "it is tried again" in warning
    assert error.startswith("TransportConnectionError")
    assert address in error


async def test_example_producer_waits_for_a_broker_that_is_not_there_yet(examples: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    async with running("producer.py", url, cwd=examples, stderr=asyncio.subprocess.PIPE) as producer:
        assert producer.process.stderr is not None
        async with asyncio.timeout(20):
            warning = await producer.process.stderr.readline()
        assert url in warning.decode()
        async with running("broker.py", "--port", str(port), cwd=examples) as broker:
            assert await broker.port() == str(port)
            async with asyncio.timeout(20):
                out, err = await producer.process.communicate()
    assert (producer.process.returncode, out.count(b"Submitted"), err) == (0, 2, b"")


@pytest.mark.parametrize("name", ["broker.py", "producer.py", "worker.py"])
async def test_example_tells_its_arguments(examples: Path, name: str) -> None:
    status, out, err = await ended(name, "--help", cwd=examples)
    assert (status, err) == (0, "")
    assert "8080" in out


async def test_ctrl_c_ends_the_quickstart_without_a_traceback(examples: Path) -> None:
    script = examples / "quickstart.py"
    script.write_text(script.read_text().replace("await done.get()", "await asyncio.Event().wait()"))
    arguments = ("-u", "quickstart.py")
    async with running(*arguments, cwd=examples, stderr=asyncio.subprocess.PIPE) as program:
        while await program.line() != "Worker started, polling for jobs...":
            assert program.process.returncode is None
        program.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            _, err = await program.process.communicate()
    assert (program.process.returncode, err) == (130, b"")


async def test_quickstart_in_one_process_ends_by_itself(tmp_path: Path) -> None:
    status, out, _ = await ended(str(EXAMPLES / "quickstart.py"), cwd=tmp_path)
    assert status == 0
    lines = out.splitlines()
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
