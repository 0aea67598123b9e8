"""The objects of segments in the store: each made once, read, and deleted when nothing refers to it any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from osqueue_client.errors import CASConflictError, EngineStateError, StorageBackendError
from osqueue_storage import StorageBackend
from osqueue_storage.patience import seconds_for

from .settings import SEGMENTS_PREFIX, BrokerSettings

logger = logging.getLogger("osqueue.broker.segments")

T = TypeVar("T")

_FIRST_DELAY: Final = 0.1
_LAST_DELAY: Final = 5.0
_SUFFIX: Final = ".json"

_LISTING: Final = 60.0
"""Seconds in which all of them are listed."""


class SegmentStore:
    """Each method goes on until the store has answered, however long that takes."""

    def __init__(self, storage: StorageBackend, settings: BrokerSettings) -> None:
        self._storage = storage
        self._timeout = settings.attempt_timeout
        self._delay = settings.slowest_spacing(storage) + settings.slowest_read(storage)

    async def create(self, name: str, body: bytes) -> None:
        """Make the object of a segment. Raises `EngineStateError` if there is another one by that name."""

        async def create() -> bytes:
            try:
                await self._storage.create(key_of(name), body)
            except CASConflictError:
                found = await self._storage.read(key_of(name))
                if found is None:
                    raise StorageBackendError("a false conflict") from None
                return found.body  # an attempt whose answer was lost has made it, or somebody else
            return body

        made = await self._answered("segment_write_unclear", create, name, len(body))
        if made != body:
            raise EngineStateError(f"there is another object at {key_of(name)}")

    async def read(self, name: str, size: int) -> bytes | None:
        """Return the object of a segment of about that size, None if there is none."""
        read = partial(self._storage.read, key_of(name))
        found = await self._answered("segment_read_failed", read, name, size)
        return None if found is None else found.body

    async def delete(self, name: str) -> None:
        """Delete the object of a segment, if there is one."""
        await self._answered("segment_delete_failed", partial(self._storage.delete, key_of(name)), name)

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
    ) -> T:
        """Ask until there is an answer, and log each time that there is none."""
        timeout = self._delay + max(seconds_for(size, self._timeout), patience)
        delay = _FIRST_DELAY
        while True:
            try:
                async with asyncio.timeout(timeout):
                    return await request()
            except Exception as error:  # noqa: BLE001  # whatever a backend raises, only an answer ends this
                logger.warning(event, extra={"segment": name, "error": str(error) or type(error).__name__})
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY)


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
