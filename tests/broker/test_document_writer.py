"""Slow reads and refusals without a reason: what the writer of the document makes of them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from osqueue_broker import BrokerSettings
from osqueue_broker.document_writer import DocumentWriter, Landed
from osqueue_broker.queue.terms import Stamp
from osqueue_client.errors import CASConflictError
from osqueue_storage import MemoryBackend, StoredObject

from .support import fake_clock, in_fake_time

KEY = "queue.json"


class SlowReads(MemoryBackend):
    """Takes a while for each read."""

    seconds = 0.0

    async def read(self, key: str) -> StoredObject | None:
        await asyncio.sleep(self.seconds)
        return await super().read(key)


class RefusesTwice(MemoryBackend):
    """Calls the first two writes conflicts, whatever the version."""

    refusals = 2

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        if self.refusals:
            self.refusals -= 1
            raise CASConflictError("not at that version", key=key)
        return await super().write(key, body, expected_version)


def writer(store: MemoryBackend) -> DocumentWriter:
    return DocumentWriter(store, KEY, settings=BrokerSettings(), clock=fake_clock())


@in_fake_time
async def test_a_document_that_takes_longer_to_read_than_a_small_one_may_is_read_all_the_same() -> None:
    store = SlowReads()
    await store.create(KEY, b"{}")
    store.seconds = 10.0  # the limit is 3 s, as long as nothing is known of its size
    began = fake_clock().monotonic()
    found = await writer(store).read()
    assert found is not None
    assert fake_clock().monotonic() - began < 3 + 6 + 10 + 1


@in_fake_time
async def test_a_read_has_a_second_for_each_mib_of_the_document() -> None:
    store = SlowReads()
    body = bytes(8 * 1024 * 1024)
    version = await store.create(KEY, b"{}")
    reader = writer(store)
    end = await reader.replace(body, Stamp(1, 1, "id"), version)
    assert isinstance(end, Landed)
    store.seconds = 10.9
    began = fake_clock().monotonic()
    await reader.read()
    assert fake_clock().monotonic() - began == pytest.approx(10.9, abs=0.01)  # at the first try


@in_fake_time
async def test_a_conflict_over_a_document_that_has_not_moved_is_told_and_tried_again() -> None:
    store = RefusesTwice()
    version = await store.create(KEY, b"{}")
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("osqueue.broker.storage")
    logger.addHandler(handler)
    try:
        replacing = writer(store)
        end = await replacing.replace(b'{"broker":null}', Stamp(1, 1, "id"), version)
    finally:
        logger.removeHandler(handler)
    assert isinstance(end, Landed)
    assert told == ["storage_write_refused", "storage_write_works_again"]  # the same once, not at each try
    assert "conflict" in replacing.last_failure
