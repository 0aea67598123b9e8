"""Replaces the queue document, and finds out what became of a write that got no clear answer.

A write ends in one of three ways: landed, superseded by another body, or the object is gone. "Unknown" is not
an end: it is resolved here, by reading the object and comparing bytes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Final

from osqueue_client.errors import CASConflictError, EngineStateError, StorageBackendError
from osqueue_storage import ConditionalReader, StorageBackend, StoredObject
from osqueue_storage.patience import seconds_for

from .clock import Clock
from .queue.document import read_header
from .queue.terms import Stamp
from .settings import BrokerSettings

logger = logging.getLogger("osqueue.broker.storage")

_FIRST_DELAY: Final = 0.05
_LAST_DELAY: Final = 2.0

_LOG_AGAIN_AFTER: Final = 30.0
"""Seconds after which a failure that goes on is logged again."""

_LONGEST_READ: Final = 300.0
"""Seconds to which the limit of a read grows while reads take longer than it."""


@dataclass(frozen=True, slots=True)
class Landed:
    """The document is what was written, at this version."""

    version: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """Somebody else replaced the document. `holds_ours`: our write had landed before, its effect is kept."""

    found: StoredObject
    holds_ours: bool


@dataclass(frozen=True, slots=True)
class Gone:
    """The document was deleted."""


WriteEnd = Landed | Superseded | Gone

_UNFOUNDED: Final = StorageBackendError("the store calls it a conflict, though the document has not moved")


class DocumentWriter:
    """The only writer of one document. At most one write is in flight, ever, and none too soon after another."""

    def __init__(self, storage: StorageBackend, key: str, *, settings: BrokerSettings, clock: Clock) -> None:
        self._storage = storage
        self._key = key
        self._attempt_timeout = settings.attempt_timeout
        self.spacing = settings.write_spacing(storage)
        """Seconds from one write to the next at least."""
        self._longest_delay = settings.longest_delay(storage)
        self._longest_read_delay = settings.slowest_read(storage)
        self._size = 0
        """Bytes of the document, as far as is known."""
        self._clock = clock
        self._reads = _Failures("storage_read_works_again", key, clock)
        self._writes = _Failures("storage_write_works_again", key, clock)
        self._sent_at = -math.inf
        self._is_writing = False
        self.last_failure = ""
        """Why the last request that failed did, for a person; empty if none has."""

    async def read(self, known: StoredObject | None = None) -> StoredObject | None:
        """Return the document as it stands, asking until the store answers.

        It returns `known` itself if that is still the document, at the cost of no body where the store can tell.
        """
        delay = _FIRST_DELAY
        limit = seconds_for(self._size, self._attempt_timeout) + self._longest_read_delay
        while True:
            try:
                async with asyncio.timeout(limit):
                    found = await self._read(known)
                self._size = len(found.body) if found else 0
                self._reads.end()
                return found
            except TimeoutError as error:
                self._note(self._reads, "storage_read_failed", error)
                limit = min(2 * limit, max(limit, _LONGEST_READ))  # it may be larger than is known
            except Exception as error:  # noqa: BLE001  # whatever a backend raises, only an answer ends this
                self._note(self._reads, "storage_read_failed", error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY)

    async def _read(self, known: StoredObject | None) -> StoredObject | None:
        if known is not None and isinstance(self._storage, ConditionalReader):
            try:
                return await self._storage.read_if_changed(self._key, known.version) or known
            except StorageBackendError:
                pass  # also if there is no document any more: only a plain read tells that
        found = await self._storage.read(self._key)
        return known if known is not None and found is not None and found.version == known.version else found

    def due_in(self) -> float:
        """Seconds until the store may be written again."""
        return max(self._sent_at + self.spacing - self._clock.monotonic(), 0.0)

    async def replace(self, body: bytes, commit: Stamp, expected_version: str | None) -> WriteEnd:
        """Replace the document at `expected_version` (None: create it), and return how that ended.

        It returns when the end is known, however long the store takes, and never writes other bytes on the
        same version: the first ones may still land.
        """
        assert not self._is_writing, "one write in flight, ever"
        self._is_writing = True
        try:
            delay = _FIRST_DELAY
            while True:
                await asyncio.sleep(self.due_in())
                end = await self._try(body, commit, expected_version)
                if end is not None:
                    self._writes.end()
                    return end
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LAST_DELAY)
        finally:
            self._is_writing = False

    async def _try(self, body: bytes, commit: Stamp, expected_version: str | None) -> WriteEnd | None:
        self._size = len(body)
        try:
            self._sent_at = self._clock.monotonic()
            # A backend with a budget may hold the write back for as long as that takes.
            async with asyncio.timeout(self._longest_delay + seconds_for(len(body), self._attempt_timeout)):
                if expected_version is None:
                    return Landed(await self._storage.create(self._key, body))
                return Landed(await self._storage.write(self._key, body, expected_version))
        except CASConflictError:
            # Of this call that is the truth. But an earlier call of ours may have landed, and a client library
            # may have sent this one twice: the body tells.
            end = await self._resolve(body, commit, expected_version)
            if end is None:
                self._note(self._writes, "storage_write_refused", _UNFOUNDED)
            return end
        except Exception as error:  # noqa: BLE001  # whatever a backend raises means: unknown
            is_refusal = isinstance(error, StorageBackendError) and error.outcome == "not_applied"
            event = "storage_write_refused" if is_refusal else "storage_write_unclear"
            self._note(self._writes, event, error)
        return await self._resolve(body, commit, expected_version)

    async def _resolve(self, body: bytes, commit: Stamp, expected_version: str | None) -> WriteEnd | None:
        found = await self.read()
        if found is None:
            return None if expected_version is None else Gone()
        if found.body == body:
            return Landed(found.version)
        if found.version == expected_version:
            return None  # unresolved: the same bytes on the same version once more
        try:
            return Superseded(found, read_header(found.body).holds(commit))
        except EngineStateError as error:  # what it replaced may have been ours
            raise EngineStateError(error.message, outcome="unknown") from error

    def _note(self, failures: _Failures, event: str, error: Exception) -> None:
        timed_out = isinstance(error, TimeoutError)
        self.last_failure = "no answer in time" if timed_out else str(error) or type(error).__name__
        failures.note(event, self.last_failure)


class _Failures:
    """Logs failures of one kind: the first, each that has another reason, one in a while; and that they have ended."""

    def __init__(self, end: str, key: str, clock: Clock) -> None:
        self._end = end
        self._key = key
        self._clock = clock
        self._since: float | None = None
        self._logged = ("", "")
        self._logged_at = 0.0

    def note(self, event: str, reason: str) -> None:
        """Take in a failure."""
        now = self._clock.monotonic()
        if self._since is None:
            self._since = now
        elif self._logged == (event, reason) and now - self._logged_at < _LOG_AGAIN_AFTER:
            return
        self._logged, self._logged_at = (event, reason), now
        logger.warning(event, extra={"key": self._key, "error": reason})

    def end(self) -> None:
        """Take in a success."""
        if self._since is not None:
            seconds = round(self._clock.monotonic() - self._since, 3)
            logger.warning(self._end, extra={"key": self._key, "failed_for": seconds})
            self._since = None
