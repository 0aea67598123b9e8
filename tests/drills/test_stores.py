"""The quickstart on the stores that users have, unchanged but for the storage line; and what idleness costs."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from drills.load import document_in
from drills.programs import running
from drills.quickstart import WORK, produce
from drills.urls import s3_url
from storage.servers.s3_bucket import BUCKET
from storage.servers.seaweedfs import SeaweedFS

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import OsqueueClient
from osqueue_storage import open_storage

REQUEST_LINE = re.compile(rb"\b(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")


@pytest.mark.timeout(360)  # the first one that needs Azurite installs it
@pytest.mark.parametrize("storage_url", ["seaweedfs", "fake_gcs", "azurite"], indirect=True)
async def test_quickstart_runs_with_nothing_but_another_storage_line(
    storage_url: str, examples: Path
) -> None:
    async with running("broker.py", storage_url, "--port", "0", cwd=examples) as broker:
        url = f"http://127.0.0.1:{await broker.port()}"
        ids = await produce(examples, url)
        async with open_storage(storage_url) as storage:
            assert [job["id"] for job in (await document_in(storage))["jobs"]] == ids
            async with running("worker.py", url, cwd=examples) as worker:
                assert await worker.line() == "Worker started, polling for jobs..."
                assert sorted([await worker.line(), await worker.line()]) == sorted(WORK)
                assert await worker.end(signal.SIGTERM) == 0  # after it has reported what it did
            assert await broker.end(signal.SIGTERM) == 0
            document = await document_in(storage)
    assert (document["completedTotal"], document["jobs"], document["deadJobs"]) == (2, [], [])
    assert document["broker"] is None


class Wiretap:
    """The requests that went through to a server, and when."""

    def __init__(self, endpoint_url: str) -> None:
        self.endpoint_url = endpoint_url
        self.requests: list[tuple[str, float]] = []
        self._news = asyncio.Event()

    async def requests_after(self, known: int, count: int) -> list[tuple[str, float]]:
        """Return the next `count` requests after those that were known."""
        async with asyncio.timeout(30):
            while len(self.requests) < known + count:
                self._news.clear()
                await self._news.wait()
        return self.requests[known : known + count]

    def hear(self, data: bytes) -> None:
        for method, path in REQUEST_LINE.findall(data):
            self.requests.append((f"{method.decode()} {urlsplit(path.decode()).path}", time.monotonic()))
            self._news.set()


@asynccontextmanager
async def tapped(server_url: str) -> AsyncIterator[Wiretap]:
    """Pass on what is sent to a port of its own, and note the requests."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", urlsplit(server_url).port)
        async with asyncio.TaskGroup() as both:
            both.create_task(pump(reader, to_server, tap.hear))
            both.create_task(pump(from_server, writer, lambda data: None))

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.create_task(pass_on(reader, writer))

    async with (
        asyncio.TaskGroup() as connections,
        await asyncio.start_server(on_connection, "127.0.0.1", 0) as server,
    ):
        tap = Wiretap(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        yield tap


async def pump(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, hear: Callable[[bytes], None]
) -> None:
    """Pass on what one side sends until it ends."""
    while data := await source.read(65536):
        hear(data)
        target.write(data)
        await target.drain()
    target.close()


async def test_idle_queue_costs_its_signs_of_life_and_nothing_else(
    seaweedfs_server: SeaweedFS, seaweedfs_url: str
) -> None:
    interval = 1.0
    settings = BrokerSettings(broker_heartbeat_interval=interval, broker_heartbeat_timeout=10)
    async with tapped(seaweedfs_server.endpoint_url) as tap:
        url = s3_url(tap.endpoint_url)
        document_path = f"/{BUCKET}{urlsplit(url).path}/queue.json"
        async with (
            open_storage(url) as storage,
            BrokerServer(storage=storage, port=0, settings=settings) as server,
            OsqueueClient(f"http://{server.address}", timeout=10) as client,
        ):
            await client.submit_job("a", "which nobody takes")
            before = len(tap.requests)
            assert tap.requests[-1][0] == f"PUT {document_path}"
            seq = (await document_in(storage))["seq"]
            signs = await tap.requests_after(before + 1, 3)
            assert await client.claim_job("worker", ["b"]) is None
            assert len(tap.requests) == before + 4
            assert (await document_in(storage))["seq"] == seq + 3
    assert {request for request, _ in signs} == {f"PUT {document_path}"}
    at = [tap.requests[before - 1][1], *(when for _, when in signs)]
    assert min(later - earlier for earlier, later in pairwise(at)) > 0.9 * interval
