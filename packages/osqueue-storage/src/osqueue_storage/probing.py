"""Whether a store honours conditional writes: the question that everything else rests on.

Seven of twelve S3 servers that were tried take `If-Match` and ignore it. On such a store two brokers overwrite
each other's queue, and no error ever says so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from .backend import StorageBackend
from .errors import CASConflictError, ConfigError, StorageBackendError

PROBE_PREFIX: Final = "osqueue-probe-"

PROBE_WRITES: Final = 6
"""Writes of one probe, its delete included."""

PROBE_READS: Final = 2
"""Reads of one probe, its listing included."""

_ANOTHER_STORE: Final = (
    "it does not honour conditional writes, and a queue on it would lose jobs. Use a store, or a version of this one, "
    "that does"
)
_QUOTES: Final = (
    "no queue can be kept there. It may compare the quotes of the ETag in If-Match to its own ETag without, as Ceph "
    "does: on S3 set quoted_if_match=false. Else use another store"
)


async def probe(storage: StorageBackend, *, below: str = "") -> None:
    """Try all that a queue does to objects on one whose key is `below`, `osqueue-probe-` and a random number.

    Five conditional writes, a read, a listing of that one key and a delete, in eight requests; the writes are
    `min_write_interval` apart. Returns when the store does what it must, and nothing is left there.

    Raises `ConfigError`, naming the store and what it did, if a condition was ignored or a write was refused
    that had to succeed; and `StorageBackendError` if the store failed otherwise: its message says what is not
    allowed there, where that is known. Where that is to delete, the object stays.
    """
    await _Probe(storage, below, secrets.token_hex(8)).run()  # a key that nobody else has


class _Probe:
    def __init__(self, storage: StorageBackend, below: str, number: str) -> None:
        self._storage = storage
        self._below = below
        self._key = f"{below}{PROBE_PREFIX}{number}"

    async def run(self) -> None:
        storage, key = self._storage, self._key
        try:
            with self._asking_for("create"):
                first = await self._lands(storage.create(key, b"1"), "create of a new object")
                await self._conflicts(storage.create(key, b"2"), "create over an existing object")
            await self._pause()
            with self._asking_for("replace"):
                second = await self._lands(
                    storage.write(key, b"3", first), "write on the current version", _QUOTES
                )
                await self._conflicts(storage.write(key, b"4", first), "write on an old version")
            await self._pause()
            with self._asking_for("read"):
                found = await storage.read(key)
            if found is None or found.body != b"3" or found.version != second:
                raise self._broken("gave back something else than what was written last")
            with self._asking_for("list"):
                async for _ in storage.list(key):  # not of all: that may take many requests
                    pass
            with self._asking_for("delete"):
                await storage.delete(key)
            await self._pause()
            await self._conflicts(storage.write(key, b"5", second), "write on a deleted object")
        except BaseException:
            await self._clean_up()
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

    async def _clean_up(self) -> None:
        with suppress(Exception):  # whatever a backend raises, it must not take the place of a verdict
            await self._storage.delete(self._key)

    @contextmanager
    def _asking_for(self, right: str) -> Iterator[None]:
        """Say which right is missing if the store refuses a request."""
        try:
            yield
        except StorageBackendError as error:
            if error.outcome != "not_applied":
                raise
            where = f" below {self._below!r}" if self._below else ""
            raise StorageBackendError(
                f"cannot {right} objects{where}: {error.message}", outcome="not_applied"
            ) from error

    def _broken(self, what: str, mend: str = _ANOTHER_STORE) -> ConfigError:
        return ConfigError(f"{self._storage!r} {what}: {mend}")
