"""What a call costs a program that uses the client: CPU time by transport and by calls at a time.

python benchmarks/clients.py [--quick]

README.md beside this file says what each figure means. The broker is the echo of servers.py, a process that is ended
here.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
from bench import machine, show
from load import PAYLOAD
from msgspec import Raw

from osqueue_client import OsqueueClient
from osqueue_client.models import SubmitJob
from osqueue_client.operations import SUBMIT_JOB
from osqueue_client.transports import Transport
from osqueue_client.transports.connect import ConnectTransport
from osqueue_client.transports.rest import RestTransport
from osqueue_client.transports.websocket import WebSocketTransport

CONCURRENCIES = (1, 64, 256)
JOB = SubmitJob(type="email:send", payload=Raw(PAYLOAD.encode()))
Call = Callable[[], Awaitable[object]]
Opened = AbstractAsyncContextManager[Call]


def rest_on_httpx(url: str) -> Transport:
    """Return what a user gets who brings httpx's own pool, for a proxy."""
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    return RestTransport(
        url, http_transport=httpx.AsyncHTTPTransport(verify=False, trust_env=False, limits=limits)
    )


TRANSPORTS: dict[str, Callable[[str], Transport]] = {
    "REST": RestTransport,
    "REST, http_transport=httpx.AsyncHTTPTransport()": rest_on_httpx,
    "WebSocket": WebSocketTransport,
    "Connect": ConnectTransport,
}


@asynccontextmanager
async def bare_httpx(url: str) -> AsyncIterator[Call]:
    """The same request as an application would make it with httpx alone."""
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=None, trust_env=False) as client:
        headers = {"content-type": "application/json"}
        body = f'{{"type":"email:send","payload":{PAYLOAD}}}'.encode()

        async def call() -> None:
            (await client.post("/v1/jobs", content=body, headers=headers)).raise_for_status()

        yield call


@asynccontextmanager
async def bare_transport(make: Callable[[str], Transport], url: str) -> AsyncIterator[Call]:
    """A transport without the client over it."""
    transport = make(url)
    try:
        yield lambda: transport.call(SUBMIT_JOB, JOB)
    finally:
        await transport.aclose()


@asynccontextmanager
async def whole_client(make: Callable[[str], Transport], url: str) -> AsyncIterator[Call]:
    """The client as a program uses it: checks, a time limit, and the encoding of the payload come on top."""
    async with OsqueueClient(url, transport=make) as client:
        payload = {"to": "user@example.com", "subject": "Hello!", "body": "A short text."}
        yield lambda: client.submit_job("email:send", payload)


@dataclass
class Measured:
    """The CPU time of a call by calls at a time, in microseconds, one figure a round."""

    name: str
    open: Callable[[str], Opened]
    costs: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in CONCURRENCIES})

    def cells(self) -> tuple[str, ...]:
        """Return the medians."""
        return tuple(f"{statistics.median(costs):,.0f}" for costs in self.costs.values())


def what_is_measured() -> list[Measured]:
    """Return the rows of the table."""
    rows = [Measured("httpx.AsyncClient alone", bare_httpx)]
    for name, make in TRANSPORTS.items():
        rows.append(Measured(f"{name}: transport", partial(bare_transport, make)))
        rows.append(Measured(f"{name}: client", partial(whole_client, make)))
    return rows


async def measure(row: Measured, url: str, calls: int) -> None:
    """Make so many calls at each concurrency, after as many connections have been opened."""
    async with row.open(url) as call:
        for concurrency, costs in row.costs.items():
            await in_loops(call, concurrency, 3 * concurrency)
            gc.collect()
            costs.append(await in_loops(call, concurrency, calls))


async def in_loops(call: Call, concurrency: int, calls: int) -> float:
    """Share the calls among so many closed loops; return the CPU time of one, all threads together."""
    left = max(calls, 3 * concurrency)
    total = left

    async def loop() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    began = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(loop())
    return (time.process_time() - began) / total * 1e6


@contextmanager
def echo() -> Iterator[str]:
    """Start the echo; yields its URL."""
    command = [sys.executable, str(Path(__file__).parent / "servers.py"), "echo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("listening "):
                raise RuntimeError("the echo did not start")
            yield f"http://127.0.0.1:{line.split()[1]}"
        finally:
            process.terminate()
            process.stdout.read()


async def run(rows: list[Measured], url: str, rounds: int, calls: int) -> None:
    """Give each row its turn in each round."""
    for _ in range(rounds):
        for row in rows:
            await measure(row, url, calls)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round")
    rounds, calls = (1, 500) if parser.parse_args().quick else (3, 1000)
    began = time.monotonic()
    now = datetime.datetime.now(datetime.UTC)
    print(f"{now:%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, {machine()}, {rounds} rounds")
    rows = what_is_measured()
    with echo() as url:
        asyncio.run(run(rows, url, rounds, calls))
    head = ("calls at a time", *(str(n) for n in CONCURRENCIES))
    show("CPU µs a call of submitJob", head, ((row.name, *row.cells()) for row in rows))
    print(f"\ntook {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
