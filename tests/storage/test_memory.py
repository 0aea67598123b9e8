"""What is MemoryBackend's own, beyond the contract."""

from __future__ import annotations

import asyncio
import math

import pytest

from osqueue_storage import ConfigError, MemoryBackend, StorageBackend


@pytest.mark.parametrize("latency", [-0.001, math.nan, math.inf])
def test_latency_that_cannot_be_is_refused(latency: float) -> None:
    with pytest.raises(ConfigError, match="latency must be 0 or more seconds"):
        MemoryBackend(latency=latency)


async def test_body_is_kept_without_a_copy() -> None:
    body = b"x" * 100_000
    async with MemoryBackend() as store:
        await store.create("queue.json", body)
        found = await store.read("queue.json")
    assert found is not None
    assert found.body is body


async def test_version_of_a_deleted_object_never_comes_back() -> None:
    async with MemoryBackend() as store:
        first = await store.create("queue.json", b"1")
        await store.delete("queue.json")
        assert await store.create("queue.json", b"1") != first


class TellsOfEffects(MemoryBackend):
    def __init__(self, *, latency: float) -> None:
        super().__init__(latency=latency)
        self.put = asyncio.Event()

    def _put(self, key: str, body: bytes) -> str:
        self.put.set()
        return super()._put(key, body)


async def test_cancellation_may_come_before_the_effect_or_after_it() -> None:
    async with TellsOfEffects(latency=0.2) as store:
        before = asyncio.ensure_future(store.create("before", b""))
        after = asyncio.ensure_future(store.create("after", b""))
        await asyncio.sleep(0)
        before.cancel()
        await store.put.wait()
        assert not after.done()
        after.cancel()
        await asyncio.wait([before, after])
        assert before.cancelled()
        assert after.cancelled()
        assert [key async for key in store.list("")] == ["after"]


def test_memory_backend_is_a_storage_backend() -> None:
    store: StorageBackend = MemoryBackend()
    assert (store.min_write_interval, store.slowest_write_interval) == (0, 0)
    assert store.max_object_bytes is None
