"""What a broker tries of a store before it trusts it, and what it says of a right that is missing."""

from __future__ import annotations

import pytest
from broker.support import ThrottleClock, in_fake_time
from storage.forbidding import ForbiddingStore

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_broker.segment_store import epoch_of, names_in
from osqueue_broker.trial import try_store
from osqueue_client.errors import StorageBackendError
from osqueue_storage import MemoryBackend, ThrottledStorageBackend

BELOW = "segments/"


@pytest.mark.parametrize("right", ["create", "replace", "read", "list", "delete"])
async def test_a_broker_that_lacks_a_right_below_segments_does_not_start_and_says_which(right: str) -> None:
    with pytest.raises(StorageBackendError) as failed:
        async with BrokerServer(storage=ForbiddingStore(right, below=BELOW), port=0):
            pass
    assert f"cannot {right} objects below 'segments/': 403 AccessDenied" in failed.value.message
    assert "--no-storage-probe" in failed.value.message


async def test_without_the_probe_it_starts_all_the_same() -> None:
    settings = BrokerSettings(probe_storage=False)
    async with BrokerServer(
        storage=ForbiddingStore("create", below=BELOW), port=0, settings=settings
    ) as server:
        assert server.is_leading


async def test_what_a_killed_start_leaves_is_not_taken_for_a_segment() -> None:
    class Killed(MemoryBackend):
        async def delete(self, key: str) -> None:
            raise StorageBackendError("it was killed before", outcome="not_applied")

    store = Killed()
    with pytest.raises(StorageBackendError):
        await try_store(store, BrokerSettings())
    [name] = await names_in(store)
    assert epoch_of(name) is None


@in_fake_time
async def test_reads_that_a_budget_holds_back_are_waited_for() -> None:
    inner = MemoryBackend()
    store = ThrottledStorageBackend(inner, reads_per_minute=2, clock=ThrottleClock())
    await try_store(store, BrokerSettings(request_timeout=10))
    assert store.throttle_stats().throttled_reads == 1
    assert inner._objects == {}
