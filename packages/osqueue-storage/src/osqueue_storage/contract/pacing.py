"""Writes as far apart as a store asks for it: what comes sooner it may refuse, and no check could tell why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf
from types import TracebackType
from typing import Self

from ..backend import ConditionalReader, StorageBackend, StoredObject


def paced(store: StorageBackend, written: dict[str, float]) -> StorageBackend:
    """Return the store, or one that puts `min_write_interval` between the writes of an object.

    `written`: when each key was last written, by the clock of the event loop; shared by instances of one store.
    """
    if store.min_write_interval == 0:
        return store
    return PacedReader(store, written) if isinstance(store, ConditionalReader) else Paced(store, written)


async def pause(store: StorageBackend) -> None:
    """Wait until a store takes another write."""
    await asyncio.sleep(store.min_write_interval)


def rounds(store: StorageBackend, number: int) -> int:
    """Return how often to do what is done so many times on a store that takes writes one after the other."""
    return number if store.min_write_interval == 0 else max(2, number // 5)


class Paced:
    """A store whose writes of one object wait for each other. It *is* a store."""

    def __init__(self, store: StorageBackend, written: dict[str, float]) -> None:
        self._store = store
        self._written = written
        self.min_write_interval = store.min_write_interval
        self.slowest_write_interval = store.slowest_write_interval
        self.max_object_bytes = store.max_object_bytes

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`."""
        return await self._store.read(key)

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`."""
        await self._turn(key)
        try:
            return await self._store.write(key, body, expected_version)
        finally:
            self._was_written(key)

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`."""
        await self._turn(key)
        try:
            return await self._store.create(key, body)
        finally:
            self._was_written(key)

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        await self._turn(key)
        try:
            await self._store.delete(key)
        finally:
            self._was_written(key)

    def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`."""
        return self._store.list(prefix)

    async def aclose(self) -> None:
        """See `StorageBackend.aclose`."""
        await self._store.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _turn(self, key: str) -> None:
        due = self._written.get(key, -inf) + self.min_write_interval
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))

    def _was_written(self, key: str) -> None:
        self._written[key] = asyncio.get_running_loop().time()


class PacedReader(Paced):
    """The same of a store that has conditional reads."""

    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        """See `ConditionalReader.read_if_changed`."""
        assert isinstance(self._store, ConditionalReader)
        return await self._store.read_if_changed(key, version)
