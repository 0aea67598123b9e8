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
from .errors import CASConflictError, ConfigError

PROBE_PREFIX: Final = "osqueue-probe-"

PROBE_WRITES: Final = 6
"""Writes of one probe, its delete included."""

_ANOTHER_STORE: Final = (
    "it does not honour conditional writes, and a queue on it would lose jobs. Use a store, or a version of this one, "
    "that does"
)
_QUOTES: Final = (
    "no queue can be kept there. It may compare the quotes of the ETag in If-Match to its own ETag without, as Ceph "
    "does: on S3 set quoted_if_match=false. Else use another store"
)


async def probe(storage: StorageBackend) -> None:
    """Try conditional writes on a key of its own, `osqueue-probe-` and a random number, and delete it.

    Five writes, a read and a delete, `min_write_interval` apart. Returns when the store does what it must. Where the
    delete fails, it is not tried whether a write creates anew what was deleted.

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
            await self._pause()
            second = await self._lands(
                storage.write(key, b"3", first), "write on the current version", _QUOTES
            )
            await self._conflicts(storage.write(key, b"4", first), "write on an old version")
            await self._pause()
            found = await storage.read(key)
            if found is None or found.body != b"3" or found.version != second:
                raise self._broken("gave back something else than what was written last")
            if await self._delete():
                await self._pause()
                await self._conflicts(storage.write(key, b"5", second), "write on a deleted object")
        except BaseException:
            await self._delete()
            raise

    async def _lands(self, write: Awaitable[str], what: str, mend: str = _ANOTHER_STORE) -> str:
        try:
            version = await write
        except CASConflictError as error:
            raise self._broken(f"refused a {what}", mend) from error
        await self._pause()
        return version

    async def _conflicts(self, write: Awaitable[str], what: str) -> None:
        try:
            await write
        except CASConflictError:
            return
        raise self._broken(f"accepted a {what}")

    async def _pause(self) -> None:
        await asyncio.sleep(self._storage.min_write_interval)

    async def _delete(self) -> bool:
        try:
            await self._storage.delete(self._key)
        except Exception:  # noqa: BLE001  # whatever a backend raises, it must not take the place of a verdict
            return False
        return True

    def _broken(self, what: str, mend: str = _ANOTHER_STORE) -> ConfigError:
        return ConfigError(f"{self._storage!r} {what}: {mend}")
