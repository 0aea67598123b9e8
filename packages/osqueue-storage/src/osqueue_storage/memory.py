"""A store in this process's memory, for tests, examples and measurements."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from itertools import count
from types import TracebackType
from typing import Self

from .backend import StoredObject
from .errors import CASConflictError, ConfigError


class MemoryBackend:
    """Objects live as long as this instance does.

    With `latency`, each operation takes that many seconds, half of them before its effect and half after, so
    that a caller who gives up finds the write applied or not, as with a real store.

    Raises `ConfigError` if `latency` is negative or not finite.
    """

    min_write_interval: float = 0.0
    slowest_write_interval: float = 0.0
    max_object_bytes: int | None = None

    def __init__(self, *, latency: float = 0.0) -> None:
        if not (math.isfinite(latency) and latency >= 0):
            raise ConfigError(f"latency must be 0 or more seconds, not {latency!r}")
        self._latency = latency
        self._objects: dict[str, StoredObject] = {}
        self._versions = count(1)

    def __repr__(self) -> str:
        return f"MemoryBackend(latency={self._latency!r})"

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`."""
        await self._half_the_way()
        found = self._objects.get(key)
        await self._half_the_way()
        return found

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`."""
        await self._half_the_way()
        found = self._objects.get(key)
        if found is None or found.version != expected_version:
            raise CASConflictError(f"{key!r} is not at version {expected_version}", key=key)
        version = self._put(key, body)
        await self._half_the_way()
        return version

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`."""
        await self._half_the_way()
        if key in self._objects:
            raise CASConflictError(f"{key!r} exists already", key=key)
        version = self._put(key, body)
        await self._half_the_way()
        return version

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        await self._half_the_way()
        self._objects.pop(key, None)
        await self._half_the_way()

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`."""
        await self._half_the_way()
        for key in sorted((key for key in self._objects if key.startswith(prefix)), key=str.encode):
            yield key

    async def aclose(self) -> None:
        """Nothing to give back: the objects stay readable."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def _put(self, key: str, body: bytes) -> str:
        version = str(next(self._versions))
        self._objects[key] = StoredObject(body, version)
        return version

    async def _half_the_way(self) -> None:
        if self._latency:
            await asyncio.sleep(self._latency / 2)
