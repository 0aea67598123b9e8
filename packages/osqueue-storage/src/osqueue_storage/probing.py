"""Whether a store honours conditional writes: the question that everything else rests on.

Seven of twelve S3 servers that were tried take `If-Match` and ignore it. On such a store two brokers overwrite
each other's queue, and no error ever says so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from typing import Final

from .backend import StorageBackend
from .errors import CASConflictError, ConfigError, StorageBackendError

PROBE_PREFIX: Final = "osqueue-probe-"

PROBE_WRITES: Final = 5
"""Writes of one probe, its delete included."""


async def probe(storage: StorageBackend) -> None:
    """Try conditional writes on a key of its own, `osqueue-probe-` and a random number, and delete it.

    Four writes, a read and a delete, `min_write_interval` apart. Returns when the store does what it must.

    Raises `ConfigError`, naming the store and what it did, if a condition was ignored or a write was refused
    that had to succeed; and `StorageBackendError` if the store failed otherwise.
    """
    await _Probe(storage, PROBE_PREFIX + secrets.token_hex(8)).run()  # a key that nobody else has


class _Probe:
    def __init__(self, storage: StorageBackend, key: str) -> None:
        self._storage = storage
        self._key = key

    async def run(self) -> None:
        storage, key = self._storage, self._key
        try:
            first = await self._lands(storage.create(key, b"1"), "create of a new object")
            await self._conflicts(storage.create(key, b"2"), "create over an existing object")
            second = await self._lands(storage.write(key, b"3", first), "write on the current version")
            await self._conflicts(storage.write(key, b"4", first), "write on an old version")
            found = await storage.read(key)
            if found is None or found.body != b"3" or found.version != second:
                raise self._broken("gave back something else than what was written last")
        finally:
            await self._clean_up()

    async def _lands(self, write: Awaitable[str], what: str) -> str:
        try:
            version = await write
        except CASConflictError as error:
            raise self._broken(f"refused a {what}") from error
        await asyncio.sleep(self._storage.min_write_interval)
        return version

    async def _conflicts(self, write: Awaitable[str], what: str) -> None:
        try:
            await write
        except CASConflictError:
            await asyncio.sleep(self._storage.min_write_interval)
        else:
            raise self._broken(f"accepted a {what}")

    async def _clean_up(self) -> None:
        try:
            await self._storage.delete(self._key)
        except StorageBackendError:
            return  # some bytes are left behind, which says nothing about the writes

    def _broken(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self._storage!r} {what}: it does not honour conditional writes, and a queue on it would lose jobs. "
            "Use a store, or a version of this one, that does"
        )
