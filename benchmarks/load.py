"""The load: N clients in closed loops, each with one connection and one request under way.

python load.py '{"port": 8080, "pid": 4711, "transport": "rest", "clients": 64, "phases": ["cycle"], "window": 1.0}'

A process of its own, without an HTTP library (wires.py), so that the server is the slower side. A phase is `submit`,
`claim`, `work` (claim, then complete) or `cycle` (all three). Several phases take turns, each with a share of jobs at
a time, so that the queue stays short and both see the same one; a single phase runs for the window, or once over
`jobs` jobs (or until there is none) without a warm-up. `batch` jobs go into a request, `payload_bytes` of JSON into a
job. Prints a JSON list with one object per phase.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import re
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import uvloop
from wires import TRANSPORTS, Rest

PAYLOAD = '{"to":"user@example.com","subject":"Hello!","body":"A short text."}'
WARM_UP = 0.3
LONGEST_PHASE = 150.0
STEPS = {
    "submit": ("submit",),
    "claim": ("claim",),
    "work": ("claim", "complete"),
    "cycle": ("submit", "claim", "complete"),
}
STATS = ("writes", "bytes", "segments")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, all its threads together, to the microsecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def share(clients: int, batch: int) -> int:
    """Return how many jobs a phase does before the next phase's turn: enough for steady commits."""
    return max(1_000, 32 * clients, 0 if batch == 1 else 4 * clients * batch)


def payload_of(size: int | None) -> str:
    """Return a payload of so many bytes of JSON; of the usual size without a number."""
    return PAYLOAD if size is None else json.dumps({"text": "x" * (size - 11)}, separators=(",", ":"))


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value of sorted ones that a part of them does not exceed; 0 if there is none."""
    return values[min(len(values) - 1, math.ceil(part * len(values)) - 1)] if values else 0.0


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, load: Load, wire: Rest) -> None:
        self._load = load
        self._wire = wire
        self._data = b""
        self._job_ids: list[bytes] = []
        self._step = "handshake"
        self._steps: Iterator[str] = iter(())
        self._asked_at = 0.0
        self.is_idle = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        """Shake hands where the transport asks for it."""
        self.transport = transport
        if self._wire.handshake:
            transport.write(self._wire.handshake)
        else:
            self.is_idle.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection that ends in a phase is an error."""
        if not self.is_idle.is_set():
            self._load.errors += 1
            self.is_idle.set()

    def start(self, steps: tuple[str, ...]) -> None:
        """Begin the loop over these steps."""
        self._first = steps[0]
        self._steps = cycle(steps)
        self.is_idle.clear()
        self._next()

    def data_received(self, data: bytes) -> None:
        """Look at the answer, and ask for the next step."""
        self._data = self._data + data if self._data else data
        answer = self._wire.answer(self._data)
        if answer is None:
            return
        self._data = b""
        is_good, body = answer
        if self._step == "handshake":
            self.is_idle.set()
            return
        if self._count(is_good, body):
            self._next()
        else:
            self.is_idle.set()

    def _count(self, is_good: bool, body: bytes) -> bool:
        """Count an answer; return whether there is something to go on with."""
        load = self._load
        load.requests += 1
        load.latencies.append(time.perf_counter() - self._asked_at)
        if not is_good:
            load.errors += 1
        if self._step != "claim":
            load.errors += self._wire.refusals(body)
            load.jobs += len(self._job_ids) if self._step == "complete" else 0
            return True
        self._job_ids = self._wire.job_ids(body)
        load.empty += not self._job_ids
        return bool(self._job_ids)

    def _next(self) -> None:
        self._step = step = next(self._steps)
        if step == self._first and not self._load.takes_another():
            self.is_idle.set()
            return
        self._asked_at = time.perf_counter()
        if step == "complete":
            self.transport.write(self._wire.complete(self._job_ids))
        else:
            self.transport.write(self._wire.submit if step == "submit" else self._wire.claim)


class Result:
    """What a phase came to."""

    def __init__(self) -> None:
        self.requests = self.jobs = self.errors = self.empty = self.writes = self.bytes = self.segments = 0
        self.cpu = self.seconds = 0.0
        self.latencies = array("d")

    def summary(self) -> dict[str, float]:
        """Return the figures."""
        latencies = sorted(self.latencies)
        return {
            "requests": self.requests,
            "jobs": self.jobs,
            "seconds": self.seconds,
            "cpu": self.cpu,
            "rate": self.requests / self.seconds,
            "cpu_per_request": self.cpu / max(self.requests, 1),
            "busy": self.cpu / self.seconds,
            "errors": self.errors,
            "empty": self.empty,
            "writes": self.writes,
            "bytes": self.bytes,
            "segments": self.segments,
            "p50": quantile(latencies, 0.5),
            "p99": quantile(latencies, 0.99),
        }


class Load:
    """All clients, and what they counted."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._batch: int = options.get("batch", 1)
        self._left: float = 0
        self._clear()

    def _clear(self) -> None:
        self.requests = self.jobs = self.errors = self.empty = 0
        self.latencies = array("d")

    def takes_another(self) -> bool:
        """Whether a client shall begin another round of its steps."""
        self._left -= self._batch
        return self._left > -self._batch

    async def run(self) -> list[dict[str, float]]:
        """Run all phases over the same connections; return what each came to."""
        loop = asyncio.get_running_loop()
        payload = payload_of(self._options.get("payload_bytes"))
        clients = []
        for number in range(self._options["clients"]):
            wire = TRANSPORTS[self._options["transport"]](f"worker-{number}", payload, batch=self._batch)
            _, client = await loop.create_connection(
                partial(Client, self, wire), "127.0.0.1", self._options["port"]
            )
            clients.append(client)
        await self._idle(clients)
        results = await self._phases(clients, self._options["phases"])
        for client in clients:
            client.transport.close()
        return [result.summary() for result in results]

    async def _phases(self, clients: list[Client], phases: list[str]) -> list[Result]:
        if len(phases) > 1:
            return await self._in_turns(clients, phases)
        if "jobs" in self._options:
            return await self._once(clients, phases[0], self._options["jobs"])
        return await self._window(clients, phases[0])

    async def _in_turns(self, clients: list[Client], phases: list[str]) -> list[Result]:
        """Do a share of each phase in turn until the window is over for each; the first turn is the warm-up."""
        window, jobs = self._options["window"], share(len(clients), self._batch)
        for phase in phases:
            await self._measure(Result(), clients, phase, jobs)
        results = [Result() for _ in phases]
        while any(result.seconds < window for result in results):
            for result, phase in zip(results, phases, strict=True):
                await self._measure(result, clients, phase, jobs)
        return results

    async def _window(self, clients: list[Client], phase: str) -> list[Result]:
        """Run a phase for the window, after a warm-up."""
        result = Result()
        await self._measure(Result(), clients, phase, math.inf, WARM_UP)
        await self._measure(result, clients, phase, math.inf, self._options["window"])
        return [result]

    async def _once(self, clients: list[Client], phase: str, jobs: int | None) -> list[Result]:
        """Run a phase over so many jobs; without a number, until there is none to claim."""
        result = Result()
        await self._measure(result, clients, phase, math.inf if jobs is None else jobs)
        return [result]

    async def _measure(
        self, result: Result, clients: list[Client], phase: str, jobs: float, window: float | None = None
    ) -> None:
        """Have the clients do so many jobs, or run for so many seconds, and add what it came to."""
        loop, pid = asyncio.get_running_loop(), self._options["pid"]
        self._left = jobs
        self._clear()
        before = await self._stats()
        cpu, began = -cpu_seconds(pid), loop.time()
        for client in clients:
            client.start(STEPS[phase])
        if window is not None:
            await asyncio.sleep(window)
            self._left = 0
        await self._idle(clients)
        result.cpu += cpu + cpu_seconds(pid)
        result.seconds += loop.time() - began
        after = await self._stats()
        result.writes += after["writes"] - before["writes"]
        result.bytes += after["bytes"] - before["bytes"]
        result.segments = after["segments"]
        result.requests += self.requests
        result.jobs += self.jobs
        result.errors += self.errors
        result.empty += self.empty
        result.latencies.extend(self.latencies)

    async def _idle(self, clients: list[Client]) -> None:
        async with asyncio.timeout(LONGEST_PHASE):
            for client in clients:
                await client.is_idle.wait()

    async def _stats(self) -> dict[str, int]:
        """Return what the server has committed, and how many segments it has; 0 of all for the echo."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._options["port"])
        writer.write(b"GET /v1/stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        found = {name: re.search(rb'"%s":(\d+)' % name.encode(), answer) for name in STATS}
        return {name: int(match[1]) if match else 0 for name, match in found.items()}


def main() -> None:
    """Put the load on that the command line describes."""
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(Load(json.loads(sys.argv[1])).run())))


if __name__ == "__main__":
    main()
