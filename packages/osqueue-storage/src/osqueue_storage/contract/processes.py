"""The checks with writers in several processes, as brokers on several machines are.

Only a store that outlives its processes can pass them: not one in memory.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random  # noqa: TID251  # for the moment of a kill; it is told when the check fails
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Final

from .pacing import paced, rounds
from .steps import (
    Check,
    ContractViolation,
    Factory,
    Races,
    count_up,
    counts,
    ended,
    lands,
    must_find,
    opened,
    require,
)

_SPAWN: Final = multiprocessing.get_context("spawn")  # a forked child would share the parent's connections
_PROCESSES: Final = 3
_WINS: Final = 15
_KILLS: Final = 3


async def no_update_is_lost_between_processes(factory: Factory) -> Races:
    """Six writers in three processes add 90 lines together."""
    key = "contract/processes"
    async with opened(factory, key) as (store,):
        await lands(store.create(key, b""), "a create of a missing object")
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(_PROCESSES, mp_context=_SPAWN) as pool:
            counting = [loop.run_in_executor(pool, _count_up, factory, key) for _ in range(_PROCESSES)]
            races = sum(await asyncio.gather(*counting), Races(0, 0))
        await counts(store, key, races)
        return races


def _count_up(factory: Factory, key: str) -> Races:
    async def count() -> Races:
        async with factory() as store:
            wins = rounds(store, _WINS)
            one, other = await asyncio.gather(*(count_up(store, key, wins=wins) for _ in range(2)))
            return one + other

    return asyncio.run(count())


async def killed_writer_leaves_the_last_body_or_the_next(factory: Factory) -> None:
    """A process that writes one body after another and is killed leaves what it had written, or was writing."""
    key = "contract/killed"
    for _ in range(_KILLS):
        async with opened(factory, key) as (store,):
            version = await lands(store.create(key, _body(0)), "a create of a missing object")
            ours, theirs = _SPAWN.Pipe(duplex=False)
            writer = _SPAWN.Process(target=_write_on, args=(factory, key, version, theirs))
            writer.start()
            theirs.close()
            try:
                until = random.randint(2, rounds(store, 20))
                acknowledged = await asyncio.to_thread(_kill_after, until, writer.kill, ours)
            finally:
                writer.kill()
                await asyncio.to_thread(writer.join)
                ours.close()
            found = await must_find(store, key)
            require(
                found.body in (_body(acknowledged), _body(acknowledged + 1)),
                f"after a kill it holds {found.body[:20]!r} ({len(found.body)} bytes), though write {acknowledged} "
                "was the last that was confirmed",
            )
            require(
                await ended(store.write(key, b"on", found.version)),
                "after a kill nobody could write any more",
            )


def _kill_after(until: int, kill: object, ours: Connection) -> int:
    """Read what the writer confirms, kill it after so many, and return the last that it confirmed."""
    assert callable(kill)
    last = 0
    try:
        while True:
            if not ours.poll(60):
                raise ContractViolation("a process that writes on and on confirmed nothing for 60 s")
            last = ours.recv()
            if last == until:
                kill()
    except EOFError:
        require(last >= until, f"the writing process failed by itself after write {last}")
        return last


def _write_on(factory: Factory, key: str, version: str, theirs: Connection) -> None:
    async def write() -> None:
        nonlocal version
        async with paced(factory(), {}) as store:
            for number in range(1, 1_000_000):
                version = await store.write(key, _body(number), version)
                theirs.send(number)

    asyncio.run(write())


def _body(number: int) -> bytes:
    return b"%d," % number * 20_000


PROCESS_CONTRACT: Final[tuple[Check, ...]] = (
    no_update_is_lost_between_processes,
    killed_writer_leaves_the_last_body_or_the_next,
)
