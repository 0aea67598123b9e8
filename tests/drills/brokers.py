"""Brokers of one queue, each a process on a port of its own that stands by while another leads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from drills.programs import Program, running

PAUSE = 0.01
"""Seconds from one look at another process to the next."""


class Broker:
    """One process of `osqueue-broker`, what it logs, and what it answers."""

    def __init__(self, program: Program, port: str, log: Path, http: httpx.AsyncClient) -> None:
        self.program = program
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self.port = port
        self._log = log
        self._http = http

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of this event in the log so far."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if line["event"] == name]

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of an answer."""
        answer = await self._http.get(self.url + path)
        return answer.status_code, answer.json()

    async def submit(self) -> tuple[int, dict[str, Any]]:
        """Return what a caller that knows only this broker is answered to a submit."""
        answer = await self._http.post(f"{self.url}/v1/jobs", json={"type": "never-done", "payload": 0})
        return answer.status_code, answer.json()

    async def until(self, status: str, seconds: float = 20.0) -> float:
        """Wait until `/readyz` tells this; return the moment."""
        async with asyncio.timeout(seconds):
            while (await self.get("/readyz"))[1]["status"] != status:
                await asyncio.sleep(PAUSE)
        return time.monotonic()

    async def until_logged(self, event: str, seconds: float = 20.0) -> dict[str, Any]:
        """Wait until the event is in the log; return the last line of it."""
        async with asyncio.timeout(seconds):
            while not (lines := self.events(event)):
                await asyncio.sleep(PAUSE)
        return lines[-1]


class Brokers:
    """What starts brokers of one queue; all of them end with the context."""

    def __init__(
        self, storage_url: str, folder: Path, stack: AsyncExitStack, http: httpx.AsyncClient
    ) -> None:
        self._storage_url = storage_url
        self._folder = folder
        self._stack = stack
        self._http = http
        self._count = 0

    async def start(self, port: int | str) -> Broker:
        """Start one as a standby; it serves when this returns, and leads if nobody did."""
        self._count += 1
        log = self._folder / f"broker-{self._count}.log"
        with log.open("wb") as stderr:
            program = await self._stack.enter_async_context(
                running("-m", "osqueue_broker", "--storage", self._storage_url, "--port", str(port), "--standby",
                        cwd=self._folder, stderr=stderr.fileno())
            )  # fmt: skip
        return Broker(program, await program.port(), log, self._http)

    async def start_pair(self, ports: list[int]) -> tuple[Broker, Broker]:
        """Start one that leads, and then one that stands by."""
        leader = await self.start(ports[0])
        await leader.until("ready")
        standby = await self.start(ports[1])
        await standby.until("standby")
        return leader, standby


@asynccontextmanager
async def brokers_on(storage_url: str, folder: Path) -> AsyncIterator[Brokers]:
    """Give what starts brokers of the queue at a storage URL."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http, AsyncExitStack() as stack:
        yield Brokers(storage_url, folder, stack, http)
