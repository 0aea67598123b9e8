"""Reads a queue in a store and checks it, and mends it where nobody leads."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import msgspec

from osqueue_client.errors import (
    BrokerLeadershipError,
    ConfigError,
    EngineStateError,
    OsqueueError,
    StorageBackendError,
)
from osqueue_storage import StorageBackend, StoredObject
from osqueue_storage.patience import seconds_for

from .clock import Clock
from .document_writer import DocumentWriter, Landed
from .fsck import UNMENDABLE, Check, Counts, Finding, Garbage, Mend, counted
from .queue.document import read_document, read_header, write_document
from .queue.rules import Now, Rules
from .queue.terms import Header
from .segment_store import key_of, names_in, unpacked
from .settings import DOCUMENT_KEY, SEGMENTS_PREFIX, BrokerSettings

_LARGEST: Final = 64 * 1024 * 1024
"""Bytes of an object that are reckoned with."""

T = TypeVar("T")

_TRIES: Final = 3
_TIMEOUT: Final = 30.0
_LOOKS: Final = 4
"""Times that a document is checked which has moved meanwhile, if there was something wrong."""
_WRITE_TIMEOUT: Final = 120.0
_LASTING: Final = frozenset(
    {errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM}
)
"""What a system says of a path, and will say again in a second."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found, and what was done about it."""

    epoch: int
    seq: int
    leader: str | None
    counts: Counts
    garbage: Garbage
    findings: list[Finding]
    has_moved: bool
    """The document was replaced while it was checked: somebody leads."""
    mended: list[Finding] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    """The names of the objects that were deleted."""

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong any more."""
        return not self.findings

    @property
    def mendable(self) -> list[Finding]:
        """What `--repair` alone can mend."""
        if any(finding.kind in UNMENDABLE for finding in self.findings):
            return []
        return [finding for finding in self.findings if finding.mend is Mend.REPAIR]

    @property
    def dropped_jobs(self) -> int:
        """How many jobs were given up."""
        return sum(finding.jobs or 0 for finding in self.mended if finding.mend is Mend.DROP_MISSING)


class Fsck:
    """One queue in a store. Raises `OsqueueError` where it cannot be checked."""

    def __init__(
        self, storage: StorageBackend, clock: Clock, *, heartbeat_timeout: float | None = None
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._settings = (
            BrokerSettings()
            if heartbeat_timeout is None
            else BrokerSettings(broker_heartbeat_timeout=heartbeat_timeout)
        )

    async def check(self) -> Report:
        """Check document and segments, and change nothing.

        A document that moves meanwhile is as good: its segments never change. Only where something is wrong, the newer
        one is checked as well.
        """
        _, _, report = await self._check()
        return report

    async def repair(
        self,
        *,
        drop_missing: bool = False,
        delete_garbage: bool = False,
        on_watch: Callable[[str, float], object] | None = None,
    ) -> Report:
        """Check, and mend what can be mended; nothing is written if there is nothing to do.

        `on_watch` is called with the name of a leader that may live, and the seconds for which it is watched. Raises
        `BrokerLeadershipError` if somebody leads and there is something to do, or has begun to meanwhile.
        """
        found, check, report = await self._check()
        if check is None or any(finding.kind in UNMENDABLE for finding in report.findings):
            return report
        mends = {Mend.REPAIR, Mend.DROP_MISSING} if drop_missing else {Mend.REPAIR}
        to_mend = [finding for finding in report.findings if finding.mend in mends]
        garbage = report.garbage.names if delete_garbage else []
        if not to_mend and not garbage:
            return report
        if on_watch and check.header.broker is not None:
            on_watch(check.header.broker, self._settings.broker_heartbeat_timeout)
        await self._require_nobody_leads(found)
        writer = DocumentWriter(self._storage, DOCUMENT_KEY, settings=self._settings, clock=self._clock)
        taken = check.header.takeover(
            commit_id=self._clock.new_id(), wall_ms=self._clock.wall_ms(), broker=""
        )
        taken = msgspec.structs.replace(taken, broker=None)
        version = await self._replace(writer, found.body, taken, found.version)
        if to_mend:
            header = taken.next_commit(
                commit_id=self._clock.new_id(), wall_ms=self._clock.wall_ms(), broker=None
            )
            await self._replace(writer, check.mended(drop_missing=drop_missing), header, version)
        for name in garbage:  # a newer epoch has begun: nothing can refer to them any more
            key = f"{SEGMENTS_PREFIX}{name}" if name in report.garbage.probes else key_of(name)
            await self._patiently(partial(self._storage.delete, key))
        _, _, report = await self._check()
        report.mended = [_as_mended(finding) for finding in to_mend]
        report.deleted = garbage
        return report

    async def _check(self) -> tuple[StoredObject, Check | None, Report]:
        has_moved = False
        for look in range(_LOOKS):
            names = await self._patiently(
                partial(names_in, self._storage)
            )  # first: so none is younger than the document
            found = await self._document()
            try:
                check = Check(found.body)
            except EngineStateError as error:
                return found, None, _unreadable(found.body, error)
            for name in dict.fromkeys(check.names):
                size = check.size(name)
                stored = await self._patiently(partial(self._storage.read, key_of(name)), size)
                check.see(name, None if stored is None else _unpacked(stored.body))
            garbage = check.garbage(names)
            newer = await self._document()
            has_moved = has_moved or newer.version != found.version
            if newer.version == found.version or not check.findings or look == _LOOKS - 1:
                break
        return found, check, Report(
            epoch=check.epoch, seq=check.seq, leader=check.header.broker,
            counts=check.counts, garbage=garbage, findings=check.findings, has_moved=has_moved,
        )  # fmt: skip

    async def _require_nobody_leads(self, found: StoredObject) -> None:
        """Return when the version has not moved for as long as a standby would watch it."""
        leader = read_header(found.body).broker
        ends_at = self._clock.monotonic() + (0 if leader is None else self._settings.broker_heartbeat_timeout)
        while True:
            now = await self._document()
            if now.version != found.version:
                leader = read_header(now.body).broker
                raise BrokerLeadershipError(
                    f"the queue is led by {leader or 'somebody'}: stop the brokers first", leader=leader
                )
            left = ends_at - self._clock.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(self._settings.watch_interval, left))

    async def _replace(self, writer: DocumentWriter, body: bytes, header: Header, version: str) -> str:
        """Write what a document holds under another header; return the version."""
        now = Now(self._clock.wall_ms(), 0.0)
        _, state = read_document(body, Rules(), now)
        assert header.stamp is not None, "a takeover has begun a term"
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT):
                end = await writer.replace(write_document(header, state), header.stamp, version)
        except TimeoutError as error:
            raise StorageBackendError(
                f"the store has not confirmed a write for {_WRITE_TIMEOUT:g} s: {writer.last_failure}",
                outcome="unknown",
            ) from error
        if isinstance(end, Landed):
            return end.version
        raise BrokerLeadershipError("a broker has begun to lead meanwhile: stop the brokers first")

    async def _document(self) -> StoredObject:
        found = await self._patiently(partial(self._storage.read, DOCUMENT_KEY), _LARGEST)
        if found is None:
            objects = len(await self._patiently(partial(names_in, self._storage)))
            beside = f", but {objects:,} objects of segments" if objects else ""
            raise EngineStateError(f"there is no queue document here{beside}")
        return found

    async def _patiently(self, request: Callable[[], Awaitable[T]], size: int = 0) -> T:
        for tried in range(1, _TRIES + 1):
            try:
                async with asyncio.timeout(seconds_for(size, _TIMEOUT)):
                    return await request()
            except Exception as error:  # whatever a backend raises
                if tried == _TRIES or _is_lasting(error):
                    if isinstance(error, OsqueueError):
                        raise
                    text = "no answer in time" if isinstance(error, TimeoutError) else str(error)
                    raise StorageBackendError(f"the store does not answer: {text}") from error
            await asyncio.sleep(tried)
        raise AssertionError("the last try returns or raises")


def _is_lasting(error: Exception) -> bool:
    """Whether another try would end in the same way."""
    cause = error.__cause__
    return isinstance(error, ConfigError) or (isinstance(cause, OSError) and cause.errno in _LASTING)


def _as_mended(finding: Finding) -> Finding:
    if finding.mend is not Mend.DROP_MISSING:
        return finding
    kept = f"; its object is left as it is, segments/{finding.segment}.json"
    return msgspec.structs.replace(
        finding,
        text=f"{counted(finding.jobs or 0, 'job')} of segment {finding.segment}: gone for good"
        + (kept if finding.kind == "segmentDamaged" else ""),
    )


def _unpacked(stored: bytes) -> bytes:
    try:
        return unpacked(stored, _LARGEST)
    except EngineStateError:
        return stored  # which is no segment: the check says so


def _unreadable(body: bytes, error: EngineStateError) -> Report:
    finding = Finding(kind="documentUnreadable", text=error.message, mend=Mend.HAND)
    return Report(
        epoch=0, seq=0, leader=None, counts=Counts(bytes=len(body)), garbage=Garbage([], [], [], []),
        findings=[finding], has_moved=False,
    )  # fmt: skip
