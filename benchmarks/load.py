"""The load: N clients in closed loops, each with one connection and one request under way.

python load.py '{"port": 8080, "pid": 4711, "transport": "rest", "clients": 64, "window": 1.0, "phases": ["cycle"]}'

A process of its own, without an HTTP library: requests are made once, answers are only looked at as far as
needed, so that the server is the slower side. A phase is `submit`, `work` (claim, then complete) or `cycle`
(all three). Several phases take turns, each with a share of jobs at a time, so that the queue stays short and
both see the same one; a single phase runs for the window. Prints a JSON list with one object per phase.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import re
import struct
import sys
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import uvloop

PAYLOAD = '{"to":"user@example.com","subject":"Hello!","body":"A short text."}'
WARM_UP = 0.3
STEPS = {"submit": ("submit",), "work": ("claim", "complete"), "cycle": ("submit", "claim", "complete")}


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, all its threads together, to the microsecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def share(clients: int) -> int:
    """Return how many jobs a phase does before the next phase's turn: enough for steady batches."""
    return max(1_000, 32 * clients)


class Rest:
    """Requests and answers over REST."""

    handshake = b""

    def __init__(self, worker: str) -> None:
        self._worker = b'{"workerId":"%s"}' % worker.encode()
        self.submit = self._post("/v1/jobs", b'{"type":"email:send","payload":%s}' % PAYLOAD.encode())
        self.claim = self._post("/v1/jobs/claim", self._worker)

    def complete(self, job_id: bytes) -> bytes:
        """Return the request that completes a job."""
        return self._post(f"/v1/jobs/{job_id.decode()}/complete", self._worker)

    def answer(self, data: bytes) -> tuple[bool, bytes] | None:
        """Return whether an answer is good, and its body; None while it is not all there."""
        head, found, body = data.partition(b"\r\n\r\n")
        if not found:
            return None
        if b"transfer-encoding: chunked" in head:
            _, _, chunk = body.partition(b"\r\n")
            return (head.startswith(b"HTTP/1.1 20"), chunk) if body.endswith(b"0\r\n\r\n") else None
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if length and len(body) < int(length[1]):
            return None
        return head.startswith(b"HTTP/1.1 20"), body

    def job_id(self, body: bytes) -> bytes | None:
        """Return the job's id in an answer."""
        at = body.find(b'"jobId":"')
        return None if at < 0 else body[at + 9 : at + 45]

    def _post(self, path: str, body: bytes, kind: str = "application/json") -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Connect(Rest):
    """Requests and answers over Connect with protobuf bodies."""

    def __init__(self, worker: str) -> None:
        self._id = worker.encode()
        payload = PAYLOAD.encode()
        self.submit = self._rpc("SubmitJob", self._field(1, payload) + self._field(3, b"email:send"))
        self.claim = self._rpc("ClaimJob", self._field(1, self._id))

    def complete(self, job_id: bytes) -> bytes:
        """Return the request that completes a job."""
        return self._rpc("CompleteJob", self._field(1, job_id) + self._field(2, self._id))

    def job_id(self, body: bytes) -> bytes | None:
        """Return the job's id in an answer: its first field, 36 bytes."""
        return body[2:38] if body.startswith(b"\x0a\x24") else None

    def _field(self, number: int, value: bytes) -> bytes:
        return bytes((number << 3 | 2, len(value))) + value

    def _rpc(self, name: str, body: bytes) -> bytes:
        return self._post(f"/osqueue.v1.QueueService/{name}", body, "application/proto")


class WebSocket(Rest):
    """Requests and answers in WebSocket frames, masked with zeros."""

    handshake = (
        b"GET /v1/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )

    def __init__(self, worker: str) -> None:
        self._id = worker.encode()
        self.submit = self._frame(b"submitJob", b'{"type":"email:send","payload":%s}' % PAYLOAD.encode())
        self.claim = self._frame(b"claimJob", b'{"workerId":"%s"}' % self._id)

    def complete(self, job_id: bytes) -> bytes:
        """Return the request that completes a job."""
        return self._frame(b"completeJob", b'{"jobId":"%s","workerId":"%s"}' % (job_id, self._id))

    def answer(self, data: bytes) -> tuple[bool, bytes] | None:
        """Return whether an answer is good, and its body; None while it is not all there."""
        if data.startswith(b"HTTP/"):
            return (data.startswith(b"HTTP/1.1 101"), b"") if data.endswith(b"\r\n\r\n") else None
        if len(data) < 4:
            return None
        start, size = (4, struct.unpack_from("!H", data, 2)[0]) if data[1] == 126 else (2, data[1])
        if len(data) < start + size:
            return None
        return b'"ok":true' in data, data[start:]

    def _frame(self, method: bytes, params: bytes) -> bytes:
        body = b'{"id":1,"method":"%s","params":%s}' % (method, params)
        size = bytes((0x80 | len(body),)) if len(body) < 126 else struct.pack("!BH", 0xFE, len(body))
        return b"\x81" + size + bytes(4) + body


TRANSPORTS = {"rest": Rest, "ws": WebSocket, "connect": Connect}


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, load: Load, wire: Rest) -> None:
        self._load = load
        self._wire = wire
        self._data = b""
        self._job_id = b""
        self._step = "handshake"
        self._steps: Iterator[str] = iter(())
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
        self._data += data
        answer = self._wire.answer(self._data)
        if answer is None:
            return
        self._data = b""
        is_good, body = answer
        if self._step == "handshake":
            self.is_idle.set()
            return
        load = self._load
        load.requests += 1
        if not is_good:
            load.errors += 1
        if self._step == "complete":
            load.jobs += 1
        elif self._step == "claim":
            job_id = self._wire.job_id(body)
            if job_id is None:
                load.empty += 1
                self.is_idle.set()
                return
            self._job_id = job_id
        self._next()

    def _next(self) -> None:
        self._step = step = next(self._steps)
        if step == self._first and not self._load.takes_another():
            self.is_idle.set()
        elif step == "complete":
            self.transport.write(self._wire.complete(self._job_id))
        else:
            self.transport.write(self._wire.submit if step == "submit" else self._wire.claim)


class Result:
    """What a phase came to."""

    def __init__(self) -> None:
        self.requests = self.jobs = self.errors = self.empty = self.writes = 0
        self.cpu = self.seconds = 0.0

    def summary(self) -> dict[str, float]:
        """Return the figures."""
        return {
            "rate": self.requests / self.seconds,
            "cpu_per_request": self.cpu / max(self.requests, 1),
            "busy": self.cpu / self.seconds,
            "errors": self.errors,
            "empty": self.empty,
            "jobs": self.jobs,
            "writes": self.writes,
        }


class Load:
    """All clients, and what they counted."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._left: float = 0
        self.requests = self.jobs = self.errors = self.empty = 0

    def takes_another(self) -> bool:
        """Whether a client shall begin another round of its steps."""
        self._left -= 1
        return self._left >= 0

    async def run(self) -> list[dict[str, float]]:
        """Run all phases over the same connections; return what each came to."""
        loop = asyncio.get_running_loop()
        clients = []
        for number in range(self._options["clients"]):
            wire = TRANSPORTS[self._options["transport"]](f"worker-{number}")
            _, client = await loop.create_connection(
                partial(Client, self, wire), "127.0.0.1", self._options["port"]
            )
            clients.append(client)
        await self._idle(clients)
        phases = self._options["phases"]
        results = await (
            self._in_turns(clients, phases) if len(phases) > 1 else self._window(clients, *phases)
        )
        for client in clients:
            client.transport.close()
        return [result.summary() for result in results]

    async def _in_turns(self, clients: list[Client], phases: list[str]) -> list[Result]:
        """Do a share of each phase in turn until the window is over for each; the first turn is the warm-up."""
        window, jobs = self._options["window"], share(len(clients))
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

    async def _measure(
        self, result: Result, clients: list[Client], phase: str, jobs: float, window: float | None = None
    ) -> None:
        """Have the clients do so many jobs, or run for so many seconds, and add what it came to."""
        loop, pid = asyncio.get_running_loop(), self._options["pid"]
        self._left = jobs
        self.requests = self.jobs = self.errors = self.empty = 0
        writes = -await self._seq()
        cpu, began = -cpu_seconds(pid), loop.time()
        for client in clients:
            client.start(STEPS[phase])
        if window is not None:
            await asyncio.sleep(window)
            self._left = 0
        await self._idle(clients)
        result.cpu += cpu + cpu_seconds(pid)
        result.seconds += loop.time() - began
        result.writes += writes + await self._seq()
        result.requests += self.requests
        result.jobs += self.jobs
        result.errors += self.errors
        result.empty += self.empty

    async def _idle(self, clients: list[Client]) -> None:
        async with asyncio.timeout(15):
            for client in clients:
                await client.is_idle.wait()

    async def _seq(self) -> int:
        """Return the number of the last commit, from the head of the document."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._options["port"])
        writer.write(b"GET /state HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        found = re.search(rb'"seq":(\d+)', await reader.read())
        writer.close()
        return int(found[1]) if found else 0


def main() -> None:
    """Put the load on that the command line describes."""
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(Load(json.loads(sys.argv[1])).run())))


if __name__ == "__main__":
    main()
