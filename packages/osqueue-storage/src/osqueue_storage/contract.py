"""The contract of a storage backend as checks that any backend can be put through.

    from osqueue_storage.contract import verify_backend
    asyncio.run(verify_backend(lambda: MyBackend("some-empty-prefix/")))

The factory is called several times and must give instances that share one store. Each check uses keys of its
own. No test runner is needed; with pytest, parametrize over `CHECKS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

from .backend import StorageBackend
from .errors import CASConflictError, OsqueueError

Factory = Callable[[], StorageBackend]
Check = Callable[[Factory], Awaitable[None]]


class ContractViolation(OsqueueError):
    """A backend does not do what the queue relies on; the message says what it did instead."""


async def verify_backend(factory: Factory) -> tuple[str, ...]:
    """Run every check; return their names. Raises `ContractViolation` at the first that fails."""
    for check in CHECKS:
        await check(factory)
    return tuple(check.__name__ for check in CHECKS)


async def missing_object_reads_as_none(factory: Factory) -> None:
    """A key that was never written reads as None."""
    async with factory() as store:
        _require(await store.read("contract/missing") is None, "a missing object was read as something")


async def created_object_is_read_back(factory: Factory) -> None:
    """What was created is read with its version, empty and large bodies alike."""
    async with factory() as store:
        for number, body in enumerate((b"", b"x", bytes(range(256)) * 20_000)):
            key = f"contract/created-{number}"
            version = await store.create(key, body)
            found = await store.read(key)
            _require(found is not None and found.body == body, f"{len(body)} bytes were not read back")
            _require(found is not None and found.version == version, "create told another version than read")


async def create_over_existing_conflicts(factory: Factory) -> None:
    """A second create of one key conflicts and changes nothing."""
    async with factory() as store:
        await store.create("contract/existing", b"old")
        await _conflicts(store.create("contract/existing", b"new"), "create over an existing object")
        await _holds(store, "contract/existing", b"old")


async def write_at_the_right_version_lands(factory: Factory) -> None:
    """A write on the current version replaces the body, and its version is the next one to write on."""
    async with factory() as store:
        version = await store.create("contract/chain", b"0")
        for number in range(1, 4):
            version = await store.write("contract/chain", b"%d" % number, version)
        await _holds(store, "contract/chain", b"3")


async def stale_write_conflicts(factory: Factory) -> None:
    """A write on an older version conflicts and changes nothing."""
    async with factory() as store:
        first = await store.create("contract/stale", b"1")
        await store.write("contract/stale", b"2", first)
        await _conflicts(store.write("contract/stale", b"3", first), "a write on an old version")
        await _holds(store, "contract/stale", b"2")


async def write_without_object_conflicts(factory: Factory) -> None:
    """A write on an object that is not there, or no longer, conflicts and creates nothing."""
    async with factory() as store:
        version = await store.create("contract/deleted", b"1")
        await store.delete("contract/deleted")
        await store.delete("contract/deleted")
        for key in ("contract/deleted", "contract/never"):
            await _conflicts(store.write(key, b"2", version), "a write on a missing object")
            _require(await store.read(key) is None, "a write on a missing object created it")


async def one_of_many_creates_wins(factory: Factory) -> None:
    """Of 32 concurrent creates exactly one succeeds, and its body stands."""
    await _one_wins(factory, lambda store, body: store.create("contract/race", body), "contract/race", 32)


async def one_of_many_writes_on_a_version_wins(factory: Factory) -> None:
    """Of 16 concurrent writes on one version exactly one succeeds, several times over."""
    for turn in range(4):
        key = f"contract/barrier-{turn}"
        async with factory() as store:
            version = await store.create(key, b"start")
        await _one_wins(factory, lambda s, body, k=key, v=version: s.write(k, body, v), key, 16)  # type: ignore[misc]


async def no_update_is_lost(factory: Factory) -> None:
    """Eight writers on four instances count to 80 together, each by reading and writing until it wins."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(factory()) for _ in range(4)]
        await stores[0].create("contract/counter", b"0")

        async def add(store: StorageBackend) -> None:
            won = 0
            while won < 10:
                found = await store.read("contract/counter")
                assert found is not None
                try:
                    await store.write("contract/counter", b"%d" % (int(found.body) + 1), found.version)
                except CASConflictError:
                    continue
                won += 1

        await asyncio.gather(*(add(store) for store in stores * 2))
        await _holds(stores[0], "contract/counter", b"80")


async def reads_are_never_torn(factory: Factory) -> None:
    """While 1 MB bodies of one byte value replace one another, no read sees two values or a short body."""
    async with factory() as writer, factory() as reader:
        size = 1_000_000
        version = await writer.create("contract/torn", bytes(size))
        done = asyncio.Event()

        async def write() -> None:
            nonlocal version
            for value in range(1, 20):
                version = await writer.write("contract/torn", bytes([value]) * size, version)
            done.set()

        async def read() -> None:
            while not done.is_set():
                found = await reader.read("contract/torn")
                whole = (
                    found is not None and len(found.body) == size and found.body.count(found.body[:1]) == size
                )
                _require(whole, "a read saw parts of two bodies")
                await asyncio.sleep(0)

        await asyncio.gather(write(), read())


async def odd_keys_are_kept_apart(factory: Factory) -> None:
    """Keys with dots, spaces, percent signs, other alphabets and a shared beginning are each their own."""
    keys = ("contract/odd/..", "contract/odd/.", "contract/odd/a", "contract/odd/a/b", "contract/odd/%41",
            "contract/odd/A", "contract/odd/ä ö", "contract/odd/a b?c#d", "contract/odd//x")  # fmt: skip
    async with factory() as store:
        for key in keys:
            await store.create(key, key.encode())
        for key in keys:
            await _holds(store, key, key.encode())
        listed = [key async for key in store.list("contract/odd/")]
        _require(listed == sorted(keys, key=str.encode), f"list gave {listed}")


async def listing_keeps_to_its_prefix(factory: Factory) -> None:
    """A listing holds the keys that begin with the prefix, in order, and not what was deleted."""
    async with factory() as store:
        for key in ("contract/list/b", "contract/list/a", "contract/list-c", "contract/list/d"):
            await store.create(key, b"")
        await store.delete("contract/list/d")
        listed = [key async for key in store.list("contract/list/")]
        _require(listed == ["contract/list/a", "contract/list/b"], f"list gave {listed}")


async def cancelled_write_leaves_old_or_new(factory: Factory) -> None:
    """A write that is cancelled at any point leaves the old body or the new one, and the backend usable."""
    async with factory() as store:
        version = await store.create("contract/cancelled", b"old" * 1000)
        for turns in range(8):
            async with asyncio.TaskGroup() as group:
                write = group.create_task(store.write("contract/cancelled", b"new%d" % turns * 1000, version))
                for _ in range(turns):
                    await asyncio.sleep(0)
                write.cancel()
            found = await store.read("contract/cancelled")
            bodies = [b"old" * 1000, *(b"new%d" % turn * 1000 for turn in range(turns + 1))]
            _require(found is not None and found.body in bodies, "a cancelled write left another body")
            assert found is not None
            version = found.version


async def closing_twice_is_safe(factory: Factory) -> None:
    """A backend may be closed twice."""
    store = factory()
    await store.aclose()
    await store.aclose()


CHECKS: Final[tuple[Check, ...]] = (
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
    odd_keys_are_kept_apart,
    listing_keeps_to_its_prefix,
    cancelled_write_leaves_old_or_new,
    closing_twice_is_safe,
)


async def _one_wins(
    factory: Factory, attempt: Callable[[StorageBackend, bytes], Awaitable[str]], key: str, tries: int
) -> None:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(factory()) for _ in range(4)]
        bodies = [b"writer %d" % number for number in range(tries)]
        ends = await asyncio.gather(
            *(attempt(stores[number % 4], body) for number, body in enumerate(bodies)), return_exceptions=True
        )
        for end in ends:
            if isinstance(end, BaseException) and not isinstance(end, CASConflictError):
                raise end
        winners = [body for body, end in zip(bodies, ends, strict=True) if isinstance(end, str)]
        _require(len(winners) == 1, f"{len(winners)} of {tries} concurrent writes won")
        await _holds(stores[0], key, winners[0])


async def _conflicts(call: Awaitable[object], what: str) -> None:
    try:
        await call
    except CASConflictError:
        return
    raise ContractViolation(f"{what} succeeded instead of raising CASConflictError")


async def _holds(store: StorageBackend, key: str, body: bytes) -> None:
    found = await store.read(key)
    _require(
        found is not None and found.body == body, f"{key} does not hold what the winning write put there"
    )


def _require(holds: bool, violation: str) -> None:
    if not holds:
        raise ContractViolation(violation)
