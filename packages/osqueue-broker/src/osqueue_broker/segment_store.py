"""The objects of segments in the store: each made once, read, and deleted when nothing refers to it any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Final, TypeVar

from osqueue_client.errors import CASConflictError, EngineStateError
from osqueue_storage import StorageBackend
from osqueue_storage.patience import seconds_for

from .settings import SEGMENTS_PREFIX, BrokerSettings

logger = logging.getLogger("osqueue.broker.segments")

T = TypeVar("T")

_FIRST_DELAY: Final = 0.1
_LAST_DELAY: Final = 5.0
_SUFFIX: Final = ".json"


class SegmentStore:
    """Each method goes on until the store has answered, however long that takes."""

    def __init__(self, storage: StorageBackend, settings: BrokerSettings) -> None:
        self._storage = storage
        self._timeout = settings.attempt_timeout
        self._delay = settings.slowest_spacing(storage) + settings.slowest_read(storage)

    async def create(self, name: str, body: bytes) -> None:
        """Make the object of a segment. Raises `EngineStateError` if there is another one by that name."""
        delay = _FIRST_DELAY
        while True:
            try:
                await self._within(self._storage.create(_key(name), body), len(body))
                return
            except CASConflictError:
                found = await self.read(name, len(body))
                if found == body:
                    return  # an attempt whose answer was lost
                if found is not None:
                    raise EngineStateError(f"there is another object at {_key(name)}") from None
                logger.warning("segment_write_unclear", extra={"segment": name, "error": "a false conflict"})
            except Exception as error:  # noqa: BLE001  # whatever a backend raises means: unknown
                logger.warning("segment_write_unclear", extra={"segment": name, "error": _text(error)})
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY)

    async def read(self, name: str, size: int) -> bytes | None:
        """Return the object of a segment of about that size, None if there is none."""
        delay = _FIRST_DELAY
        while True:
            try:
                found = await self._within(self._storage.read(_key(name)), size)
                return None if found is None else found.body
            except Exception as error:  # noqa: BLE001  # whatever a backend raises, only an answer ends this
                logger.warning("segment_read_failed", extra={"segment": name, "error": _text(error)})
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY)

    async def delete(self, name: str) -> None:
        """Delete the object of a segment, if there is one."""
        delay = _FIRST_DELAY
        while True:
            try:
                await self._within(self._storage.delete(_key(name)), 0)
                return
            except Exception as error:  # noqa: BLE001  # whatever a backend raises, only an answer ends this
                logger.warning("segment_delete_failed", extra={"segment": name, "error": _text(error)})
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY)

    async def names(self) -> list[str]:
        """Return the names of all segments that have an object."""
        delay = _FIRST_DELAY
        while True:
            try:
                async with asyncio.timeout(60.0 + self._delay):
                    keys = [key async for key in self._storage.list(SEGMENTS_PREFIX)]
                return [key.removeprefix(SEGMENTS_PREFIX).removesuffix(_SUFFIX) for key in keys]
            except Exception as error:  # noqa: BLE001  # whatever a backend raises, only an answer ends this
                logger.warning("segment_list_failed", extra={"error": _text(error)})
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY)

    async def _within(self, request: Awaitable[T], size: int) -> T:
        async with asyncio.timeout(self._delay + seconds_for(size, self._timeout)):
            return await request


def epoch_of(name: str) -> int | None:
    """Return the epoch in which a segment was made; None if the name is none of ours."""
    epoch, dash, _ = name.partition("-")
    return int(epoch) if dash and epoch.isascii() and epoch.isdigit() else None


def _key(name: str) -> str:
    return f"{SEGMENTS_PREFIX}{name}{_SUFFIX}"


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
