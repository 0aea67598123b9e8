"""A producer in a process of its own: python -m peers.producer SYSTEM URL

Reads what to do from its standard input, a line each: `bulk N`, `callers N`, or `one`. Answers each with the seconds
that it took.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

from .meter import payload, say
from .system import system_of


async def produce(name: str, url: str) -> None:
    """Do what is asked until the input ends."""
    async with system_of(name).producer(url) as producer:
        say("ready")
        while line := (await asyncio.to_thread(sys.stdin.readline)).split():
            what, *count = line
            payloads = [payload() for _ in range(int(count[0]) if count else 0)]
            began = time.monotonic()
            match what:
                case "bulk":
                    await producer.bulk(payloads)
                case "callers":
                    await producer.callers(payloads)
                case _:
                    await producer.one(payload())
            say(str(time.monotonic() - began))


def main() -> None:
    """Produce what the input asks for."""
    uvloop.run(produce(*sys.argv[1:]))


if __name__ == "__main__":
    main()
