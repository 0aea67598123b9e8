"""The contract of a storage backend, as checks that any backend can be put through.

    import asyncio
    from osqueue_storage.contract import verify_backend

    report = asyncio.run(verify_backend(lambda: MyBackend("a-store-for-tests")))

A check takes a factory. It is called several times and must give instances that share one store, as the
brokers and workers of one queue do; each check closes what it opened. No test runner is needed; with pytest,
parametrize over `CONTRACT`. The checks write, overwrite and delete keys below `contract/`, about 40 MB in all,
and may be run again on the same store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from .backend import ConditionalReader, StorageBackend, StoredObject
from .errors import CASConflictError, OsqueueError

R = TypeVar("R")

Factory = Callable[[], StorageBackend]
Check = Callable[[Factory], Awaitable[None]]


class ContractViolation(OsqueueError):
    """A backend does not do what the queue relies on; the message says what it did instead."""


@dataclass(frozen=True, slots=True)
class ContractReport:
    """The names of the checks that a backend has passed, in the order in which they ran."""

    passed: tuple[str, ...]


async def verify_backend(factory: Factory, *, check_timeout: float = 120.0) -> ContractReport:
    """Run every check. `check_timeout`: seconds that one check may take.

    Raises `ContractViolation` for the first check that fails, or does not end in time. Whatever else the
    backend raises passes through.
    """
    passed = []
    for check in CONTRACT:
        name = check.__name__
        try:
            async with asyncio.timeout(check_timeout) as timer:
                await check(factory)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise ContractViolation(f"{name}: it did not end within {check_timeout} s") from error
        except ContractViolation as error:
            raise ContractViolation(f"{name}: {error.message}") from error
        passed.append(name)
    return ContractReport(tuple(passed))


async def missing_object_reads_as_none(factory: Factory) -> None:
    """A key at which nothing was written reads as None."""
    async with _stores(factory, "contract/missing") as (store,):
        _require(await store.read("contract/missing") is None, "a missing object was read as something")


async def created_object_is_read_back(factory: Factory) -> None:
    """What was created is read with its version, bodies of no byte, one byte and 5 MB alike."""
    async with _stores(factory, "contract/created") as (store,):
        for body in (b"", b"x", bytes(range(256)) * 20_000):
            await store.delete("contract/created")
            version = await _lands(store.create("contract/created", body), "a create of a missing object")
            found = await _found(store, "contract/created")
            _require(found.body == body, f"a body of {len(body)} bytes was not read back as it was created")
            _require(found.version == version, "read gave another version than create")


async def create_over_existing_conflicts(factory: Factory) -> None:
    """A second create of one key conflicts and changes nothing."""
    async with _stores(factory, "contract/existing") as (store,):
        await _lands(store.create("contract/existing", b"old"), "a create of a missing object")
        await _conflicts(store.create("contract/existing", b"new"), "a create over an existing object")
        await _holds(store, "contract/existing", b"old")


async def write_at_the_right_version_lands(factory: Factory) -> None:
    """A write on the current version replaces the body, and returns the version for the next write."""
    async with _stores(factory, "contract/chain", instances=2) as (store, other):
        versions = [await _lands(store.create("contract/chain", b"0"), "a create of a missing object")]
        for number in range(1, 5):
            body = b"%d" % number
            writer = (store, other)[number % 2]
            version = await _lands(
                writer.write("contract/chain", body, versions[-1]), "a write on the right version"
            )
            _require(version not in versions, "a write returned the version of an older state")
            await _holds(store, "contract/chain", body)
            _require((await _found(other, "contract/chain")).version == version, "read gave another version")
            versions.append(version)


async def stale_write_conflicts(factory: Factory) -> None:
    """A write on an older version conflicts and changes nothing."""
    async with _stores(factory, "contract/stale") as (store,):
        first = await _lands(store.create("contract/stale", b"1"), "a create of a missing object")
        await _lands(store.write("contract/stale", b"2", first), "a write on the right version")
        await _conflicts(store.write("contract/stale", b"3", first), "a write on an old version")
        await _holds(store, "contract/stale", b"2")


async def write_without_object_conflicts(factory: Factory) -> None:
    """A write on an object that never was, or was deleted, conflicts and creates nothing."""
    async with _stores(factory, "contract/deleted", "contract/never") as (store,):
        version = await _lands(store.create("contract/deleted", b"1"), "a create of a missing object")
        await store.delete("contract/deleted")
        await store.delete("contract/deleted")
        for key in ("contract/deleted", "contract/never"):
            await _conflicts(store.write(key, b"2", version), "a write on a missing object")
            _require(await store.read(key) is None, "a write on a missing object created it")


async def one_of_many_creates_wins(factory: Factory) -> None:
    """Of 32 creates at once exactly one succeeds, and its body stands."""
    async with _stores(factory, "contract/race"):
        pass  # only to begin without the object
    await _one_wins(factory, "contract/race", 32, lambda store, body: store.create("contract/race", body))


async def one_of_many_writes_on_a_version_wins(factory: Factory) -> None:
    """Of 16 writes at once on one version exactly one succeeds, four times over."""
    key = "contract/barrier"
    for _ in range(4):
        async with _stores(factory, key) as (store,):
            version = await _lands(store.create(key, b"start"), "a create of a missing object")

        def write(store: StorageBackend, body: bytes, version: str = version) -> Awaitable[str]:
            return store.write(key, body, version)

        await _one_wins(factory, key, 16, write)


async def no_update_is_lost(factory: Factory) -> None:
    """Eight writers on four instances count to 80 together, each by reading and writing until it wins."""
    key = "contract/counter"
    async with _stores(factory, key, instances=4) as stores:
        await _lands(stores[0].create(key, b"0"), "a create of a missing object")

        async def add(store: StorageBackend) -> None:
            won = 0
            for _ in range(10_000):
                found = await _found(store, key)
                await asyncio.sleep(0)
                try:
                    await store.write(key, b"%d" % (int(found.body) + 1), found.version)
                except CASConflictError:
                    continue
                won += 1
                if won == 10:
                    return
            raise ContractViolation("a writer that read again after each conflict lost 10,000 times")

        await _together(*(add(store) for store in (*stores, *stores)))
        found = await _found(stores[0], key)
        _require(found.body == b"80", f"80 writes succeeded, but the counter stands at {found.body[:20]!r}")


async def reads_are_never_torn(factory: Factory) -> None:
    """While 1 MB bodies replace one another, each read gives one of them, whole and with its own version."""
    key, size = "contract/torn", 1_000_000
    async with _stores(factory, key, instances=2) as (writer, reader):
        seen: dict[str, bytes] = {}
        done = asyncio.Event()
        version = await _lands(writer.create(key, bytes(size)), "a create of a missing object")
        written = {version: b"\0"}

        async def write() -> None:
            nonlocal version
            try:
                for value in range(1, 20):
                    byte = bytes([value])
                    version = await _lands(
                        writer.write(key, byte * size, version), "a write on the right version"
                    )
                    written[version] = byte
                    await asyncio.sleep(0)
            finally:
                done.set()

        async def read() -> None:
            while not done.is_set():
                found = await _found(reader, key)
                first = found.body[:1]
                _require(len(found.body) == size, f"a read gave {len(found.body)} of {size} bytes")
                _require(found.body.count(first) == size, "a read gave parts of two bodies")
                _require(
                    seen.setdefault(found.version, first) == first, "one version was read with two bodies"
                )
                await asyncio.sleep(0)

        await _together(write(), read())
        mixed = [version for version, first in seen.items() if written.get(version) != first]
        _require(not mixed, "a read gave the body of one write with the version of another")


async def unchanged_object_is_not_read_again(factory: Factory) -> None:
    """A backend that has `read_if_changed` gives None at the current version and the object at another."""
    key = "contract/changed"
    async with _stores(factory, key) as (store,):
        if not isinstance(store, ConditionalReader):
            return
        first = await _lands(store.create(key, b"1"), "a create of a missing object")
        _require(await store.read_if_changed(key, first) is None, "an unchanged object was read again")
        second = await _lands(store.write(key, b"2", first), "a write on the right version")
        found = await store.read_if_changed(key, first)
        _require(found == StoredObject(b"2", second), "read_if_changed did not give the new state")


async def odd_keys_are_kept_apart(factory: Factory) -> None:
    """Keys with dots, spaces, percent signs, empty parts and other alphabets are each their own object."""
    keys = ("contract/odd/..", "contract/odd/.", "contract/odd/../up", "contract/odd/a", "contract/odd/a/b",
            "contract/odd/%41", "contract/odd/A", "contract/odd/a%2Fb", "contract/odd/ä ö", "contract/odd/键",
            "contract/odd/a b?c#d", "contract/odd//x", "contract/odd/.hidden")  # fmt: skip
    async with _stores(factory, *keys) as (store,):
        for key in keys:
            await _lands(store.create(key, key.encode()), f"a create of the missing {key!r}")
        for key in keys:
            await _holds(store, key, key.encode())
        listed = [key async for key in store.list("contract/odd/")]
        _require(listed == sorted(keys, key=str.encode), f"list gave {listed}")


async def listing_keeps_to_its_prefix(factory: Factory) -> None:
    """A listing holds the keys that begin with the prefix, in order, and not what was deleted."""
    keys = ("contract/list/b", "contract/list/a", "contract/list/é", "contract/list-c", "contract/list/d")
    async with _stores(factory, *keys) as (store,):
        for key in keys:
            await _lands(store.create(key, b""), "a create of a missing object")
        await store.delete("contract/list/d")
        for prefix, expected in (
            ("contract/list/", ["contract/list/a", "contract/list/b", "contract/list/é"]),
            ("contract/list", ["contract/list-c", "contract/list/a", "contract/list/b", "contract/list/é"]),
            ("contract/list/a", ["contract/list/a"]),
            ("contract/list/none", []),
        ):
            listed = [key async for key in store.list(prefix)]
            _require(listed == expected, f"list({prefix!r}) gave {listed}")


async def cancelled_write_leaves_old_or_new(factory: Factory) -> None:
    """A write that is cancelled at any point leaves the old body or the new one, and the backend usable."""
    key = "contract/cancelled"
    async with _stores(factory, key) as (store,):
        bodies = {b"start" * 1000}
        await _lands(store.create(key, b"start" * 1000), "a create of a missing object")
        for turns in (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512):
            body = b"new %d" % turns * 1000
            version = (await _found(store, key)).version
            bodies.add(body)
            async with asyncio.TaskGroup() as group:
                write = group.create_task(_ended(store.write(key, body, version)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                write.cancel()
            _require((await _found(store, key)).body in bodies, "a cancelled write left another body")
        for _ in range(100):  # a write that was given up may still land, and then this one conflicts
            if await _ended(store.write(key, b"last", (await _found(store, key)).version)):
                return await _holds(store, key, b"last")
        raise ContractViolation("after cancelled writes no write succeeded any more")


async def closing_twice_is_safe(factory: Factory) -> None:
    """A backend may be closed twice, used or not."""
    for used in (False, True):
        store = factory()
        if used:
            await store.read("contract/missing")
        await store.aclose()
        await store.aclose()


CONTRACT: Final[tuple[Check, ...]] = (
    missing_object_reads_as_none,
    created_object_is_read_back,
    create_over_existing_conflicts,
    write_at_the_right_version_lands,
    stale_write_conflicts,
    write_without_object_conflicts,
    one_of_many_creates_wins,
    one_of_many_writes_on_a_version_wins,
    no_update_is_lost,
    reads_are_never_torn,
    unchanged_object_is_not_read_again,
    odd_keys_are_kept_apart,
    listing_keeps_to_its_prefix,
    cancelled_write_leaves_old_or_new,
    closing_twice_is_safe,
)


@asynccontextmanager
async def _stores(
    factory: Factory, *keys: str, instances: int = 1
) -> AsyncIterator[tuple[StorageBackend, ...]]:
    """Open instances of one store, without the objects that an earlier run left at these keys."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(factory()) for _ in range(instances)]
        for key in keys:
            await stores[0].delete(key)
        yield tuple(stores)


async def _one_wins(
    factory: Factory, key: str, tries: int, attempt: Callable[[StorageBackend, bytes], Awaitable[str]]
) -> None:
    bodies = [b"writer %d" % number for number in range(tries)]
    async with _stores(factory, instances=4) as stores:
        ends = await _together(
            *(_ended(attempt(stores[number % 4], body)) for number, body in enumerate(bodies))
        )
        winners = [body for body, landed in zip(bodies, ends, strict=True) if landed]
        _require(len(winners) == 1, f"{len(winners)} of {tries} writes at once succeeded, instead of one")
        for store in stores:
            await _holds(store, key, winners[0])


async def _together(*calls: Awaitable[R]) -> list[R]:
    """Await all to their end, and only then raise the first error: nothing runs on behind a failed check."""
    ends = await asyncio.gather(*calls, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return [end for end in ends if not isinstance(end, BaseException)]


async def _ended(call: Awaitable[str]) -> bool:
    try:
        await call
    except CASConflictError:
        return False
    return True


async def _lands(call: Awaitable[str], what: str) -> str:
    try:
        return await call
    except CASConflictError as error:
        raise ContractViolation(f"{what} raised CASConflictError") from error


async def _conflicts(call: Awaitable[str], what: str) -> None:
    _require(not await _ended(call), f"{what} succeeded instead of raising CASConflictError")


async def _found(store: StorageBackend, key: str) -> StoredObject:
    found = await store.read(key)
    if found is None:
        raise ContractViolation(f"{key!r} was read as missing while it exists")
    return found


async def _holds(store: StorageBackend, key: str, body: bytes) -> None:
    found = await store.read(key)
    held = "nothing" if found is None else f"{found.body[:40]!r} ({len(found.body)} bytes)"
    _require(
        found is not None and found.body == body,
        f"{key!r} holds {held} instead of {body[:40]!r} ({len(body)} bytes)",
    )


def _require(holds: bool, violation: str) -> None:
    if not holds:
        raise ContractViolation(violation)
