"""The objects of segments in the store: each made once, read, and deleted when nothing refers to it any more."""

from __future__ import annotations

import asyncio
import gzip
import logging
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Final, TypeVar

from osqueue_client.errors import CASConflictError, EngineStateError, StorageBackendError
from osqueue_storage import StorageBackend, Throttled, is_remote
from osqueue_storage.patience import seconds_for

from .settings import SEGMENTS_PREFIX, BrokerSettings

logger = logging.getLogger("osqueue.broker.segments")

T = TypeVar("T")

_AT_ONCE: Final = nullcontext()

_FIRST_DELAY: Final = 0.1
_LAST_DELAY: Final = 5.0
_SUFFIX: Final = ".json"

_COMMITS_BETWEEN: Final = 2
"""Commits from one segment to the next where they share a budget of writes."""

_LISTING: Final = 60.0
"""Seconds in which all of them are listed."""


class SegmentStore:
    """Each method goes on until the store has answered, however long that takes.

    Where a network lies between, objects are compressed: see `packed`.
    Where the document shares a budget of writes with segments, one of these is written, or deleted, after every second
    commit: none waits for more than one of them, nor does any request for two.
    """

    def __init__(self, storage: StorageBackend, settings: BrokerSettings) -> None:
        self._storage = storage
        self._timeout = settings.attempt_timeout
        self._delay = settings.longest_delay(storage) + settings.slowest_read(storage)
        self._packs = is_remote(storage)
        self._turn = _Turns() if isinstance(storage, Throttled) else _AT_ONCE

    def after_commit(self) -> None:
        """Take note of a commit that has landed."""
        if isinstance(self._turn, _Turns):
            self._turn.after_commit()

    async def create(self, name: str, body: bytes) -> None:
        """Make the object of a segment. Raises `EngineStateError` if there is another one by that name."""
        stored = await asyncio.to_thread(packed, body) if self._packs else body

        async def create() -> bytes:
            try:
                await self._storage.create(key_of(name), stored)
            except CASConflictError:
                found = await self._storage.read(key_of(name))
                if found is None:
                    raise StorageBackendError("a false conflict") from None
                return found.body  # an attempt whose answer was lost has made it, or somebody else
            return stored

        made = await self._answered("segment_write_unclear", create, name, len(stored), turn=self._turn)
        if made != stored:
            raise EngineStateError(f"there is another object at {key_of(name)}")

    async def read(self, name: str, size: int) -> bytes | None:
        """Return the jobs of a segment of that size, as they were given to `create`; None if there is no object.

        Raises `EngineStateError` if the object is damaged.
        """
        read = partial(self._storage.read, key_of(name))
        found = await self._answered("segment_read_failed", read, name, size)
        if found is None or not _is_packed(found.body):
            return None if found is None else found.body
        return await asyncio.to_thread(unpacked, found.body, size)

    async def delete(self, name: str) -> None:
        """Delete the object of a segment, if there is one."""
        delete = partial(self._storage.delete, key_of(name))
        await self._answered("segment_delete_failed", delete, name, turn=self._turn)

    async def names(self) -> list[str]:
        """Return the names of all segments that have an object."""
        return await self._answered(
            "segment_list_failed", partial(names_in, self._storage), patience=_LISTING
        )

    async def _answered(
        self,
        event: str,
        request: Callable[[], Awaitable[T]],
        name: str | None = None,
        size: int = 0,
        patience: float = 0.0,
        turn: AbstractAsyncContextManager[object] = _AT_ONCE,
    ) -> T:
        """Ask until there is an answer, and log each time that there is none."""
        timeout = self._delay + max(seconds_for(size, self._timeout), patience)
        delay = _FIRST_DELAY
        while True:
            async with turn:
                try:
                    async with asyncio.timeout(timeout):
                        return await request()
                except Exception as error:  # noqa: BLE001  # whatever a backend raises, only an answer ends this
                    what = {"segment": name, "error": str(error) or type(error).__name__}
                    logger.warning(event, extra=what)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY)


def packed(body: bytes) -> bytes:
    """Return a segment as a gzip file, which takes about 5 us of processor time a job and a third of the bytes."""
    return gzip.compress(body, 1, mtime=0)


def unpacked(stored: bytes, limit: int) -> bytes:
    """Return the segment that an object holds, compressed or not.

    Raises `EngineStateError` if it is damaged, or has more than `limit` bytes.
    """
    if not _is_packed(stored):
        return stored
    file = zlib.decompressobj(wbits=31)
    try:
        body = file.decompress(stored, limit + 1)
    except zlib.error as error:
        raise EngineStateError(f"the segment cannot be unpacked: {error}") from error
    if not file.eof or len(body) > limit:
        raise EngineStateError(f"the segment is cut off, or has more than {limit:,} bytes")
    return body


def _is_packed(stored: bytes) -> bool:
    return stored.startswith(b"\x1f\x8b")


class _Turns:
    """Lets writes through one at a time, each so many commits after the last."""

    def __init__(self) -> None:
        self._commits = 0
        self._may_write = asyncio.Semaphore(0)

    def after_commit(self) -> None:
        self._commits += 1
        if self._commits >= _COMMITS_BETWEEN and self._may_write.locked():
            self._may_write.release()

    async def __aenter__(self) -> None:
        await self._may_write.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._commits = 0


async def names_in(storage: StorageBackend) -> list[str]:
    """Return the names of all segments that have an object. Raises what the storage does."""
    keys = [key async for key in storage.list(SEGMENTS_PREFIX)]
    return [key.removeprefix(SEGMENTS_PREFIX).removesuffix(_SUFFIX) for key in keys]


def key_of(name: str) -> str:
    """Return the key of a segment's object."""
    return f"{SEGMENTS_PREFIX}{name}{_SUFFIX}"


def epoch_of(name: str) -> int | None:
    """Return the epoch in which a segment was made; None if the name is none of ours."""
    epoch, dash, _ = name.partition("-")
    return int(epoch) if dash and epoch.isascii() and epoch.isdigit() else None
