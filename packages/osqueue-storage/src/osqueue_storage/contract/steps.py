"""What the checks are made of."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from ..backend import StorageBackend, StoredObject
from ..errors import CASConflictError, OsqueueError, StorageBackendError
from .pacing import paced, pause

R = TypeVar("R")


class ContractViolation(OsqueueError):
    """A backend does not do what the queue relies on; the message says what it did instead."""


@dataclass(frozen=True, slots=True)
class Races:
    """How many conditional writes of a check landed, and how many conflicted.

    `unknown`: to how many the store gave no clear answer. Reading told what became of them: those that had landed
    are among the wins.
    """

    wins: int
    losses: int
    unknown: int = 0

    def __add__(self, other: Races) -> Races:
        return Races(self.wins + other.wins, self.losses + other.losses, self.unknown + other.unknown)

    def __str__(self) -> str:
        return f"{self.wins} won, {self.losses} conflicted, {self.unknown} unknown"


End = Literal["landed", "conflict", "unknown"]
"""How a write of a race ended."""

_TRIES: Final = 1000
"""How often a write is sent again whose outcome stays unknown."""

Factory = Callable[[], StorageBackend]
Check = Callable[[Factory], Awaitable[Races | None]]


@asynccontextmanager
async def opened(
    factory: Factory, *keys: str, instances: int = 1
) -> AsyncIterator[tuple[StorageBackend, ...]]:
    """Open instances of one store, without the objects that an earlier run left at these keys.

    Their writes of one object are as far apart as the store asks.
    """
    written: dict[str, float] = {}
    async with at_once(factory, *keys, instances=instances) as stores:
        if keys:
            await pause(stores[0])
        yield tuple(paced(store, written) for store in stores)


@asynccontextmanager
async def at_once(
    factory: Factory, *keys: str, instances: int = 1
) -> AsyncIterator[tuple[StorageBackend, ...]]:
    """Open instances as `opened` does, but with writes that do not wait for each other, for a race."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(factory()) for _ in range(instances)]
        if keys:
            await pause(stores[0])  # the check before may just have written there
        for key in keys:
            await stores[0].delete(key)
        yield tuple(stores)


async def one_wins(
    factory: Factory, key: str, tries: int, attempt: Callable[[StorageBackend, bytes], Awaitable[str]]
) -> Races:
    """Have so many write at once, and see that exactly one of them lands and that its body stands."""
    bodies = [b"writer %d" % number for number in range(tries)]
    async with at_once(factory, instances=4) as stores:
        await pause(stores[0])
        ends = await together(
            *(end_of(attempt(stores[number % 4], body)) for number, body in enumerate(bodies))
        )
        by_end: dict[End, list[bytes]] = {"landed": [], "conflict": [], "unknown": []}
        for body, end in zip(bodies, ends, strict=True):
            by_end[end].append(body)
        winners, unknown = by_end["landed"], by_end["unknown"]
        if not winners and unknown:
            found = await stores[0].read(key)
            winners = [body for body in unknown if found is not None and found.body == body]
        require(len(winners) == 1, f"{len(winners)} of {tries} writes at once succeeded, instead of one")
        for store in stores:
            await holds(store, key, winners[0])
        return Races(1, len(by_end["conflict"]), len(unknown))


async def count_up(store: StorageBackend, key: str, *, wins: int) -> Races:
    """Add a line of its own to an object, reading it again after each conflict, until so many have landed."""
    races = Races(0, 0)
    while races.wins < wins:
        before = await must_find(store, key)
        await asyncio.sleep(0)  # that others may come between
        line = secrets.token_hex(8).encode() + b"\n"
        body = before.body + line
        match await end_of(store.write(key, body, before.version)):
            case "landed":
                races += Races(1, 0)
            case "conflict":
                races += Races(0, 1)
            case "unknown":
                landed = await _landed_after_all(store, key, line, StoredObject(body, before.version))
                races += Races(1, 0, 1) if landed else Races(0, 0, 1)
        require(
            races.losses < 10_000,
            f"a writer that read again after each conflict lost 10,000 times, won {races.wins}",
        )
    return races


async def _landed_after_all(store: StorageBackend, key: str, line: bytes, sent: StoredObject) -> bool:
    """Tell whether a write with an unknown outcome landed: its line stands, or another write has its version.

    Until then the same is sent again, as a broker does.
    """
    for _ in range(_TRIES):
        found = await must_find(store, key)
        if found.version != sent.version:
            return line in found.body
        await pause(store)
        if await end_of(store.write(key, sent.body, sent.version)) == "landed":
            return True
    raise ContractViolation(f"a write had no clear answer {_TRIES} times")


async def together(*calls: Awaitable[R]) -> list[R]:
    """Await all to their end, and only then raise the first error: nothing runs on behind a failed check."""
    ends = await asyncio.gather(*calls, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return [end for end in ends if not isinstance(end, BaseException)]


async def end_of(call: Awaitable[str]) -> End:
    """Return how a write ended in which a store need not give a clear answer, as others write at once."""
    try:
        await call
    except CASConflictError:
        return "conflict"
    except StorageBackendError as error:
        if error.outcome == "not_applied":
            raise
        return "unknown"
    return "landed"


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
    """See that an object that was empty has a line for each win of `count_up`."""
    lines = (await must_find(store, key)).body.count(b"\n")
    require(lines == races.wins, f"{races.wins} writes succeeded, but the object has {lines} lines")


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
