"""The checks that need nothing but a factory: what each call must do, alone and in a race."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from typing import Final

from ..backend import ConditionalReader, StorageBackend, StoredObject
from .pacing import pause, rounds
from .steps import (
    Check,
    ContractViolation,
    Factory,
    Races,
    at_once,
    conflicts,
    count_up,
    counts,
    end_of,
    holds,
    is_refused,
    lands,
    must_find,
    one_wins,
    opened,
    require,
    together,
)


async def missing_object_reads_as_none(factory: Factory) -> None:
    """A key at which nothing was written reads as None."""
    async with opened(factory, "contract/missing") as (store,):
        require(await store.read("contract/missing") is None, "a missing object was read as something")


async def created_object_is_read_back(factory: Factory) -> None:
    """What was created is read with its version, bodies of no byte, one byte and 5 MB alike."""
    async with opened(factory, "contract/created") as (store,):
        for body in (b"", b"x", bytes(range(256)) * 20_000):
            await store.delete("contract/created")
            version = await lands(store.create("contract/created", body), "a create of a missing object")
            found = await must_find(store, "contract/created")
            require(found.body == body, f"a body of {len(body)} bytes was not read back as it was created")
            require(found.version == version, "read gave another version than create")


async def create_over_existing_conflicts(factory: Factory) -> None:
    """A second create of one key conflicts and changes nothing."""
    async with opened(factory, "contract/existing") as (store,):
        await lands(store.create("contract/existing", b"old"), "a create of a missing object")
        await conflicts(store.create("contract/existing", b"new"), "a create over an existing object")
        await holds(store, "contract/existing", b"old")


async def write_at_the_right_version_lands(factory: Factory) -> None:
    """A write on the current version replaces the body, and returns the version for the next write."""
    async with opened(factory, "contract/chain", instances=2) as (store, other):
        versions = [await lands(store.create("contract/chain", b"0"), "a create of a missing object")]
        for number in range(1, 5):
            body = b"%d" % number
            writer = (store, other)[number % 2]
            version = await lands(
                writer.write("contract/chain", body, versions[-1]), "a write on the right version"
            )
            require(version not in versions, "a write returned the version of an older state")
            await holds(store, "contract/chain", body)
            require(
                (await must_find(other, "contract/chain")).version == version, "read gave another version"
            )
            versions.append(version)


async def stale_write_conflicts(factory: Factory) -> None:
    """A write on an older version conflicts and changes nothing."""
    async with opened(factory, "contract/stale") as (store,):
        first = await lands(store.create("contract/stale", b"1"), "a create of a missing object")
        await lands(store.write("contract/stale", b"2", first), "a write on the right version")
        await conflicts(store.write("contract/stale", b"3", first), "a write on an old version")
        await holds(store, "contract/stale", b"2")


async def write_without_object_conflicts(factory: Factory) -> None:
    """A write on an object that never was, or was deleted, conflicts and creates nothing."""
    async with opened(factory, "contract/deleted", "contract/never") as (store,):
        version = await lands(store.create("contract/deleted", b"1"), "a create of a missing object")
        await store.delete("contract/deleted")
        await store.delete("contract/deleted")
        for key in ("contract/deleted", "contract/never"):
            await conflicts(store.write(key, b"2", version), "a write on a missing object")
            require(await store.read(key) is None, "a write on a missing object created it")


async def write_at_a_version_that_was_never_given_conflicts(factory: Factory) -> None:
    """A version that the store never gave is nobody's, also where its protocol has words for any version."""
    key = "contract/never-given"
    async with opened(factory, key) as (store,):
        version = await lands(store.create(key, b"1"), "a create of a missing object")
        for never_given in ("", "*", '"*"', "0", "-1", "none", f"{version}, {version}", f" {version}", "ä"):
            await conflicts(store.write(key, b"2", never_given), f"a write at the version {never_given!r}")
            await holds(store, key, b"1")


async def one_of_many_creates_wins(factory: Factory) -> Races:
    """Of 32 creates at once exactly one succeeds, and its body stands."""
    async with opened(factory, "contract/race"):
        pass  # only to begin without the object
    return await one_wins(
        factory, "contract/race", 32, lambda store, body: store.create("contract/race", body)
    )


async def one_of_many_writes_on_a_version_wins(factory: Factory) -> Races:
    """Of 16 writes at once on one version exactly one succeeds, four times over."""
    key = "contract/barrier"
    total = Races(0, 0)
    for _ in range(4):
        async with opened(factory, key) as (store,):
            version = await lands(store.create(key, b"start"), "a create of a missing object")

        def write(store: StorageBackend, body: bytes, version: str = version) -> Awaitable[str]:
            return store.write(key, body, version)

        total += await one_wins(factory, key, 16, write)
    return total


async def no_update_is_lost(factory: Factory) -> Races:
    """Eight writers on four instances add 80 lines together, each by reading and writing until it wins."""
    key = "contract/counter"
    async with at_once(factory, key, instances=4) as stores:
        await pause(stores[0])
        await lands(stores[0].create(key, b""), "a create of a missing object")
        wins = rounds(stores[0], 10)
        each = await together(*(count_up(store, key, wins=wins) for store in (*stores, *stores)))
        races = sum(each, Races(0, 0))
        await counts(stores[0], key, races)
        return races


async def reads_are_never_torn(factory: Factory) -> None:
    """While 1 MB bodies replace one another, each read gives one of them, whole and with its own version."""
    key, size = "contract/torn", 1_000_000
    async with opened(factory, key, instances=2) as (writer, reader):
        seen: dict[str, bytes] = {}
        done = asyncio.Event()
        version = await lands(writer.create(key, bytes(size)), "a create of a missing object")
        written = {version: b"\0"}

        async def write() -> None:
            nonlocal version
            try:
                for value in range(1, rounds(writer, 20)):
                    byte = bytes([value])
                    version = await lands(
                        writer.write(key, byte * size, version), "a write on the right version"
                    )
                    written[version] = byte
                    await asyncio.sleep(0)
            finally:
                done.set()

        async def read() -> None:
            while not done.is_set():
                found = await must_find(reader, key)
                first = found.body[:1]
                require(len(found.body) == size, f"a read gave {len(found.body)} of {size} bytes")
                require(found.body.count(first) == size, "a read gave parts of two bodies")
                require(
                    seen.setdefault(found.version, first) == first, "one version was read with two bodies"
                )
                await asyncio.sleep(0)

        await together(write(), read())
        mixed = [version for version, first in seen.items() if written.get(version) != first]
        require(not mixed, "a read gave the body of one write with the version of another")


async def unchanged_object_is_not_read_again(factory: Factory) -> None:
    """A backend that has `read_if_changed` gives None at the current version and the object at another."""
    key = "contract/changed"
    async with opened(factory, key) as (store,):
        if not isinstance(store, ConditionalReader):
            return
        first = await lands(store.create(key, b"1"), "a create of a missing object")
        require(await store.read_if_changed(key, first) is None, "an unchanged object was read again")
        second = await lands(store.write(key, b"2", first), "a write on the right version")
        found = await store.read_if_changed(key, first)
        require(found == StoredObject(b"2", second), "read_if_changed did not give the new state")


async def odd_keys_are_kept_apart(factory: Factory, merged: Collection[str] = ()) -> None:
    """Keys with dots, spaces, percent signs, empty parts and other alphabets are each their own object.

    A key that the store cannot keep apart may be refused, by a `StorageBackendError` that says `not_applied`.
    `merged`: what the store is known to take for something else, such as `//` for `/`. No key with it is tried.
    """
    keys = ("contract/odd/..", "contract/odd/.", "contract/odd/../up", "contract/odd/a", "contract/odd/a/b",
            "contract/odd/%41", "contract/odd/A", "contract/odd/a%2Fb", "contract/odd/ä ö", "contract/odd/键",
            "contract/odd/a b?c#d", "contract/odd//x", "contract/odd/.hidden")  # fmt: skip
    async with opened(factory) as (store,):
        tried = [key for key in keys if not any(part in key for part in merged)]
        left = [key async for key in store.list("contract/odd/")]  # also under other names, by an earlier run
        # a/b before a: what has something below it is a folder for some, and stays
        there = sorted({*tried, *left}, reverse=True)
        refused = {key for key in there if await is_refused(store.delete(key))}
        kept = []
        for key in tried:
            if key not in refused and not await is_refused(
                lands(store.create(key, key.encode()), f"a create of the missing {key!r}")
            ):
                kept.append(key)
        for key in kept:
            await holds(store, key, key.encode())
        listed = [key async for key in store.list("contract/odd/")]
        require(listed == sorted(kept, key=str.encode), f"list gave {listed}")


async def listing_keeps_to_its_prefix(factory: Factory) -> None:
    """A listing holds the keys that begin with the prefix, in order, and not what was deleted."""
    keys = ("contract/list/b", "contract/list/a", "contract/list/é", "contract/list-c", "contract/list/d")
    async with opened(factory, *keys) as (store,):
        for key in keys:
            await lands(store.create(key, b""), "a create of a missing object")
        await store.delete("contract/list/d")
        for prefix, expected in (
            ("contract/list/", ["contract/list/a", "contract/list/b", "contract/list/é"]),
            ("contract/list", ["contract/list-c", "contract/list/a", "contract/list/b", "contract/list/é"]),
            ("contract/list/a", ["contract/list/a"]),
            ("contract/list/none", []),
        ):
            listed = [key async for key in store.list(prefix)]
            require(listed == expected, f"list({prefix!r}) gave {listed}")


async def cancelled_write_leaves_old_or_new(factory: Factory) -> None:
    """A write that is cancelled at any point leaves the old body or the new one, and the backend usable."""
    key = "contract/cancelled"
    async with at_once(factory, key) as (store,):
        await pause(store)
        bodies = {b"start" * 1000}
        await lands(store.create(key, b"start" * 1000), "a create of a missing object")
        for turns in (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512):
            body = b"new %d" % turns * 1000
            version = (await must_find(store, key)).version
            bodies.add(body)
            await pause(store)
            async with asyncio.TaskGroup() as group:
                write = group.create_task(end_of(store.write(key, body, version)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                write.cancel()
            require((await must_find(store, key)).body in bodies, "a cancelled write left another body")
        for _ in range(100):  # a write that was given up may still land, and then this one conflicts
            await pause(store)
            version = (await must_find(store, key)).version
            if await end_of(store.write(key, b"last", version)) == "landed":
                return await holds(store, key, b"last")
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
    write_at_a_version_that_was_never_given_conflicts,
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
