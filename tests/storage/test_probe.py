"""The probe passes on stores that honour conditional writes, and names what the others did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from storage.forbidding import ForbiddingStore

from osqueue_storage import (
    PROBE_PREFIX,
    CASConflictError,
    ConfigError,
    MemoryBackend,
    StorageBackendError,
    StoredObject,
    probe,
)
from osqueue_storage.probing import PROBE_READS, PROBE_WRITES


class IgnoresIfMatch(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        return self._put(key, body)


class IgnoresIfNoneMatch(MemoryBackend):
    async def create(self, key: str, body: bytes) -> str:
        return self._put(key, body)


class RecreatesWhatIsMissing(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        if key not in self._objects:
            return self._put(key, body)
        return await super().write(key, body, expected_version)


class RefusesCreates(MemoryBackend):
    async def create(self, key: str, body: bytes) -> str:
        raise CASConflictError(key=key)


class ComparesQuotes(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        return await super().write(key, body, '"' + expected_version)


class ReadsOldState(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        old = self._objects[key]
        version = await super().write(key, body, expected_version)
        self._objects[key] = StoredObject(old.body, version)
        return version


async def test_a_good_store_passes_and_nothing_is_left() -> None:
    store = ForbiddingStore()
    await probe(store)
    asked = ["create", "create", "replace", "replace", "read", "list", "delete", "replace"]
    assert store.requests == asked
    assert len(asked) == PROBE_WRITES + PROBE_READS
    [key] = store.keys
    assert key.startswith(PROBE_PREFIX)
    assert store._objects == {}


async def test_it_is_tried_below_what_it_is_told() -> None:
    store = ForbiddingStore()
    await probe(store, below="segments/")
    [key] = store.keys
    assert key.startswith(f"segments/{PROBE_PREFIX}")


@pytest.mark.parametrize("right", ["create", "replace", "read", "list", "delete"])
async def test_what_a_store_refuses_to_do_is_named(right: str) -> None:
    store = ForbiddingStore(right)
    with pytest.raises(StorageBackendError) as failed:
        await probe(store, below="segments/")
    assert failed.value.message == f"cannot {right} objects below 'segments/': 403 AccessDenied"
    assert failed.value.outcome == "not_applied"
    assert len(store._objects) == (right == "delete"), "nothing is left that may be deleted"


async def test_a_probe_that_is_cancelled_leaves_nothing() -> None:
    class Hangs(ForbiddingStore):
        hangs = asyncio.Event()

        async def list(self, prefix: str) -> AsyncIterator[str]:
            self.hangs.set()
            await asyncio.Event().wait()
            yield ""

    store = Hangs()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(probe(store))
        await store.hangs.wait()
        assert len(store._objects) == 1
        task.cancel()
    assert store._objects == {}


@pytest.mark.parametrize(
    ("store", "what"),
    [
        (IgnoresIfMatch(), "accepted a write on an old version"),
        (IgnoresIfNoneMatch(), "accepted a create over an existing object"),
        (RecreatesWhatIsMissing(), "accepted a write on a deleted object"),
        (RefusesCreates(), "refused a create of a new object"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_store_that_does_not_honour_conditions_is_named_with_what_it_did(
    store: MemoryBackend, what: str
) -> None:
    with pytest.raises(ConfigError, match="does not honour conditional writes") as refused:
        await probe(store)
    assert refused.value.message.startswith(f"MemoryBackend(latency=0.0) {what}: ")
    assert [key async for key in store.list("")] == []


async def test_a_store_that_refuses_the_right_version_is_told_of_quotes() -> None:
    store = ComparesQuotes()
    with pytest.raises(ConfigError, match=r"refused a write on the current version: .*quoted_if_match=false"):
        await probe(store)
    assert [key async for key in store.list("")] == []


async def test_error_of_the_cleaning_up_does_not_hide_the_verdict() -> None:
    class CannotDelete(IgnoresIfNoneMatch):
        async def delete(self, key: str) -> None:
            raise RuntimeError("of a backend of somebody's own")

    with pytest.raises(ConfigError, match="accepted a create over an existing object"):
        await probe(CannotDelete())


async def test_a_store_that_gives_back_what_was_replaced_is_refused() -> None:
    with pytest.raises(ConfigError):
        await probe(ReadsOldState())


async def test_writes_are_spaced_as_the_store_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spaced(MemoryBackend):
        min_write_interval = 1.5

    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("osqueue_storage.probing.asyncio.sleep", sleep)
    await probe(Spaced())
    assert waits == [1.5] * (PROBE_WRITES - 1)


async def test_a_store_that_fails_is_not_called_a_store_that_lies() -> None:
    class Down(MemoryBackend):
        async def create(self, key: str, body: bytes) -> str:
            raise StorageBackendError("nobody there", outcome="unknown")

    with pytest.raises(StorageBackendError, match="nobody there"):
        await probe(Down())
