"""How long a job takes from its submit to the worker that waits for it with a claim.

python pickup.py '{"port": 8080, "transport": "rest", "jobs": 300, "window": 5.0}'

One job at a time, over two connections: each is submitted 5 to 25 ms after the claim was sent, so that nothing is
under way. Prints a JSON object with p50 and p99 of both ways in seconds: from before the submit to the claim's answer,
and to the submit's.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from typing import Any, Self

import uvloop
from load import PAYLOAD, quantile
from wires import TRANSPORTS, Rest

WAIT = 30.0
WARM_UP = 5


class Caller:
    """A connection that asks and waits for the answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: Rest) -> None:
        self._reader = reader
        self._writer = writer
        self.wire = wire

    @classmethod
    async def connect(cls, port: int, wire: Rest) -> Self:
        """Return a caller whose connection is ready."""
        caller = cls(*await asyncio.open_connection("127.0.0.1", port), wire)
        if wire.handshake:
            await caller.ask(wire.handshake)
        return caller

    async def ask(self, request: bytes) -> tuple[bytes, float]:
        """Return the body of the answer, and when it came.

        Raises `RuntimeError` on one that is not good, and `ConnectionError` if the broker hangs up.
        """
        self._writer.write(request)
        data = b""
        async with asyncio.timeout(WAIT):
            while (answer := self.wire.answer(data)) is None:
                more = await self._reader.read(65_536)
                if not more:
                    raise ConnectionError("the broker has closed the connection")
                data += more
        at = time.perf_counter()
        is_good, body = answer
        if not is_good:
            raise RuntimeError(f"the broker has answered {body!r}")
        return body, at

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


async def one(worker: Caller, producer: Caller, pause: float) -> tuple[float, float]:
    """Return the seconds from before a submit to the answer of the claim that waits, and to its own."""
    async with asyncio.TaskGroup() as group:
        claim = group.create_task(worker.ask(worker.wire.claim))
        await asyncio.sleep(pause)
        began = time.perf_counter()
        _, acknowledged_at = await producer.ask(producer.wire.submit)
        body, claimed_at = await claim
    await worker.ask(worker.wire.complete(worker.wire.job_ids(body)))
    return claimed_at - began, acknowledged_at - began


async def run(options: dict[str, Any]) -> dict[str, float]:
    """Run so many jobs, or as many as the window holds, and return the figures."""
    wires = [TRANSPORTS[options["transport"]](name, PAYLOAD, wait=WAIT) for name in ("worker", "producer")]
    worker, producer = [await Caller.connect(options["port"], wire) for wire in wires]
    pauses = random.Random(1)
    for _ in range(WARM_UP):
        await one(worker, producer, 0.01)
    until = time.monotonic() + options["window"]
    found: list[tuple[float, float]] = []
    while len(found) < options["jobs"] and time.monotonic() < until:
        found.append(await one(worker, producer, pauses.uniform(0.005, 0.025)))
    worker.close()
    producer.close()
    claims, submits = (sorted(values) for values in zip(*found, strict=True))
    return {
        "jobs": len(found),
        "claim_p50": quantile(claims, 0.5),
        "claim_p99": quantile(claims, 0.99),
        "submit_p50": quantile(submits, 0.5),
    }


def main() -> None:
    """Measure what the command line describes."""
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(run(json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
