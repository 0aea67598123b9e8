"""The objects of segments: compressed where a network lies between, and read however they are."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import AsyncIterator

import pytest
from broker.support import opened

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_broker.clock import SystemClock
from osqueue_broker.fsck_run import Fsck
from osqueue_broker.segment_store import SegmentStore, key_of
from osqueue_client import OsqueueClient
from osqueue_client.errors import EngineStateError
from osqueue_storage import MemoryBackend

NAME = "1-2-0123456789ab"
BODY = b'{"segment":"1-2-0123456789ab","jobs":[' + b",".join([b'{"id":"j"}'] * 1000) + b"]}"
SETTINGS = BrokerSettings(segment_threshold=16_000)


class RemoteStore(MemoryBackend):
    """What a store beyond a network is taken for."""

    is_remote = True

    async def stored(self, name: str = NAME) -> bytes:
        found = await self.read(key_of(name))
        assert found is not None
        return found.body


@pytest.fixture
async def store() -> AsyncIterator[RemoteStore]:
    async with RemoteStore() as store:
        yield store


async def test_a_segment_beyond_a_network_is_a_gzip_file(store: RemoteStore) -> None:
    segments = SegmentStore(store, SETTINGS)
    await segments.create(NAME, BODY)
    stored = await store.stored()
    assert len(stored) < len(BODY) / 3
    assert gzip.GzipFile(fileobj=io.BytesIO(stored)).read() == BODY
    assert await segments.read(NAME, len(BODY)) == BODY


async def test_a_segment_on_this_machine_is_as_it_is() -> None:
    store = MemoryBackend()
    await SegmentStore(store, SETTINGS).create(NAME, BODY)
    found = await store.read(key_of(NAME))
    assert found is not None
    assert found.body == BODY


async def test_either_kind_is_read_from_any_store(store: RemoteStore) -> None:
    await store.create(key_of(NAME), BODY)
    assert await SegmentStore(store, SETTINGS).read(NAME, len(BODY)) == BODY
    local = MemoryBackend()
    await local.create(key_of(NAME), gzip.compress(BODY))
    assert await SegmentStore(local, SETTINGS).read(NAME, len(BODY)) == BODY


async def test_one_that_was_made_by_an_attempt_without_an_answer_is_ours_and_another_is_not(
    store: RemoteStore,
) -> None:
    segments = SegmentStore(store, SETTINGS)
    await segments.create(NAME, BODY)
    await segments.create(NAME, BODY)
    with pytest.raises(EngineStateError, match="another object"):
        await segments.create(NAME, BODY + b" ")


@pytest.mark.parametrize(
    "stored",
    [
        gzip.compress(BODY)[:-20],
        gzip.compress(BODY)[:40] + b"\0" * 40,
        gzip.compress(BODY + b" "),
        gzip.compress(b" " * 50_000_000),
    ],
    ids=["cut off", "damaged", "longer", "a bomb"],
)
async def test_what_is_damaged_or_larger_than_the_document_says_is_refused(
    store: RemoteStore, stored: bytes
) -> None:
    await store.create(key_of(NAME), stored)
    with pytest.raises(EngineStateError):
        await SegmentStore(store, SETTINGS).read(NAME, len(BODY))


async def test_a_deep_queue_beyond_a_network_is_drained_in_order_by_the_next_leader_and_fsck_finds_it_sound(
    store: RemoteStore,
) -> None:
    async with BrokerServer(storage=store, port=0, settings=SETTINGS) as server, opened(server) as wire:
        for first in range(0, 1000, 100):
            jobs = [{"payload": json.dumps(number)} for number in range(first, first + 100)]
            await wire.call("submitJobs", jobs=jobs)
    names = [key async for key in store.list("segments/")]
    assert len(names) > 3
    report = await Fsck(store, SystemClock()).check()
    assert report.findings == []
    assert report.counts.jobs_in_document + report.counts.jobs_in_segments == 1000
    async with (
        BrokerServer(storage=store, port=0, settings=SETTINGS) as server,
        OsqueueClient(server.address) as client,
    ):
        claimed: list[object] = []
        while jobs_had := await client.claim_jobs("w", limit=100):
            claimed += [job.payload for job in jobs_had]
            await client.complete_jobs(jobs_had, "w")
        assert claimed == list(range(1000))
