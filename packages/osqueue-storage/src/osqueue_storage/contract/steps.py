"""What the checks are made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from ..backend import StorageBackend, StoredObject
from ..errors import CASConflictError, OsqueueError, StorageBackendError

R = TypeVar("R")


class ContractViolation(OsqueueError):
    """A backend does not do what the queue relies on; the message says what it did instead."""


@dataclass(frozen=True, slots=True)
class Races:
    """How many conditional writes of a check succeeded, and how many conflicted."""

    wins: int
    losses: int

    def __add__(self, other: Races) -> Races:
        return Races(self.wins + other.wins, self.losses + other.losses)


Factory = Callable[[], StorageBackend]
Check = Callable[[Factory], Awaitable[Races | None]]


@asynccontextmanager
async def opened(
    factory: Factory, *keys: str, instances: int = 1
) -> AsyncIterator[tuple[StorageBackend, ...]]:
    """Open instances of one store, without the objects that an earlier run left at these keys."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(factory()) for _ in range(instances)]
        for key in keys:
            await stores[0].delete(key)
        yield tuple(stores)


async def one_wins(
    factory: Factory, key: str, tries: int, attempt: Callable[[StorageBackend, bytes], Awaitable[str]]
) -> Races:
    """Have so many write at once, and see that exactly one of them succeeds and that its body stands."""
    bodies = [b"writer %d" % number for number in range(tries)]
    async with opened(factory, instances=4) as stores:
        ends = await together(
            *(ended(attempt(stores[number % 4], body)) for number, body in enumerate(bodies))
        )
        winners = [body for body, landed in zip(bodies, ends, strict=True) if landed]
        require(len(winners) == 1, f"{len(winners)} of {tries} writes at once succeeded, instead of one")
        for store in stores:
            await holds(store, key, winners[0])
        return Races(1, tries - 1)


async def count_up(store: StorageBackend, key: str, *, wins: int) -> Races:
    """Add 1 to a number, reading it again after each conflict, until that has succeeded so many times."""
    losses = 0
    for won in range(wins):
        while True:
            before = await must_find(store, key)
            await asyncio.sleep(0)  # that others may come between
            if await ended(store.write(key, b"%d" % (int(before.body) + 1), before.version)):
                break
            losses += 1
            require(
                losses < 10_000, f"a writer that read again after each conflict lost 10,000 times, won {won}"
            )
    return Races(wins, losses)


async def together(*calls: Awaitable[R]) -> list[R]:
    """Await all to their end, and only then raise the first error: nothing runs on behind a failed check."""
    ends = await asyncio.gather(*calls, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return [end for end in ends if not isinstance(end, BaseException)]


async def ended(call: Awaitable[str]) -> bool:
    """Return whether a write succeeded: False if it conflicted."""
    try:
        await call
    except CASConflictError:
        return False
    return True


async def lands(call: Awaitable[str], what: str) -> str:
    """Return the version that a write gave; it must not conflict."""
    try:
        return await call
    except CASConflictError as error:
        raise ContractViolation(f"{what} raised CASConflictError") from error


async def counts(store: StorageBackend, key: str, races: Races) -> None:
    """See that a number is what `count_up` has made of 0 with so many wins."""
    found = await must_find(store, key)
    require(
        found.body == b"%d" % races.wins,
        f"{races.wins} writes succeeded, but the counter stands at {found.body[:20]!r}",
    )


async def conflicts(call: Awaitable[str], what: str) -> None:
    """See that a write conflicts."""
    require(not await ended(call), f"{what} succeeded instead of raising CASConflictError")


async def is_refused(call: Awaitable[object]) -> bool:
    """Return whether a call was refused as one that surely changed nothing."""
    try:
        await call
    except StorageBackendError as error:
        if error.outcome == "not_applied":
            return True
        raise
    return False


async def must_find(store: StorageBackend, key: str) -> StoredObject:
    """Return the object, which exists."""
    found = await store.read(key)
    if found is None:
        raise ContractViolation(f"{key!r} was read as missing while it exists")
    return found


async def holds(store: StorageBackend, key: str, body: bytes) -> None:
    """See that an object has this body."""
    found = await store.read(key)
    held = "nothing" if found is None else f"{found.body[:40]!r} ({len(found.body)} bytes)"
    require(
        found is not None and found.body == body,
        f"{key!r} holds {held} instead of {body[:40]!r} ({len(body)} bytes)",
    )


def require(holds: bool, violation: str) -> None:
    """Raise a `ContractViolation` unless it holds."""
    if not holds:
        raise ContractViolation(violation)
