"""Slow reads and refusals without a reason: what the writer of the document makes of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

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
    """Calls the first two writes conflicts, whatever the version; or more, and takes a while for each."""

    refusals = 2
    seconds = 0.0
    sent = 0

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        self.sent += 1
        await asyncio.sleep(self.seconds)
        if self.refusals:
            self.refusals -= 1
            raise CASConflictError("not at that version", key=key)
        return await super().write(key, body, expected_version)


@contextmanager
def told() -> Iterator[list[str]]:
    """The events that are logged meanwhile."""
    events: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: events.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("osqueue.broker.storage")
    logger.addHandler(handler)
    try:
        yield events
    finally:
        logger.removeHandler(handler)


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
    replacing = writer(store)
    with told() as events:
        end = await replacing.replace(b'{"broker":null}', Stamp(1, 1, "id"), version)
    assert isinstance(end, Landed)
    assert events == ["storage_write_refused", "storage_write_works_again"]  # the same once, not at each try
    assert "conflict" in replacing.last_failure


@in_fake_time
async def test_a_failure_that_goes_on_is_logged_every_30_s() -> None:
    store = RefusesTwice()
    version = await store.create(KEY, b"{}")
    store.refusals = 40  # one in 2 s
    with told() as events:
        await writer(store).replace(b'{"broker":null}', Stamp(1, 1, "id"), version)
    assert events == ["storage_write_refused"] * 3 + ["storage_write_works_again"]


@in_fake_time
async def test_a_write_has_a_second_for_each_mib_of_the_document() -> None:
    store = RefusesTwice()
    version = await store.create(KEY, b"{}")
    store.refusals, store.seconds = 0, 10.9
    end = await writer(store).replace(bytes(8 * 1024 * 1024), Stamp(1, 1, "id"), version)
    assert isinstance(end, Landed)
    assert store.sent == 1
