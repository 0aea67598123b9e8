"""A store that loses, delays and doubles what it is sent, and never tears what it gives."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

from osqueue_broker.settings import SEGMENTS_PREFIX
from osqueue_storage import CASConflictError, StorageBackendError, StoredObject

from .documents import segments_in
from .history import Deletion, Landing
from .loop import NODE
from .world import World

KEY = "queue.json"

Effect = Callable[[], object]


class SimStore:
    """The objects, and the documents that have ever been one. Each process has a `StoreView` of its own."""

    def __init__(
        self,
        world: World,
        *,
        has_content_versions: bool,
        min_write_interval: float,
        max_object_bytes: int | None,
    ) -> None:
        self.world = world
        self.min_write_interval = min_write_interval
        self.max_object_bytes = max_object_bytes
        self._has_content_versions = has_content_versions
        self._objects: dict[str, StoredObject] = {}
        self._first_sent: dict[bytes, float] = {}
        self.is_down = False
        self.cut: set[str] = set()
        """Processes that cannot reach the store."""
        self.ambushes: dict[str, float] = {}
        """Processes of which the next write lands unseen, and which are cut off then, for so many seconds."""

    @property
    def document(self) -> StoredObject | None:
        """The document as it truly stands."""
        return self._objects.get(KEY)

    def cut_off(self, node: str, seconds: float) -> None:
        """Keep a process from the store for so long."""
        self.world.trace(node, f"is cut off from the store for {seconds:.1f} s")
        self.cut.add(node)
        self.world.loop.after(seconds, self.cut.discard, node)

    def delete_document(self) -> None:
        """Be the person who deletes the document."""
        self.world.trace("store", "the document is deleted")
        del self._objects[KEY]

    def note_sent(self, body: bytes) -> None:
        """Remember when a body was sent first."""
        self._first_sent.setdefault(body, self.world.loop.now)

    def read(self, key: str) -> StoredObject | None:
        return self._objects.get(key)

    def replace(self, key: str, body: bytes, expected: str | None, writer: str, is_foreign: bool) -> str:
        """Do a conditional write at this moment."""
        found = self._objects.get(key)
        if (found.version if found else None) != expected:
            raise CASConflictError(f"{key!r} is at another version", key=key)
        assert self.max_object_bytes is None or len(body) <= self.max_object_bytes, (
            "the document is too large"
        )
        history = self.world.history
        if self._has_content_versions:
            version = hashlib.md5(body, usedforsecurity=False).hexdigest()
        else:
            version = str(len(history.landings) + 1)
        self._objects[key] = StoredObject(body, version)
        if key == KEY:
            now = self.world.loop.now
            sent_at = self._first_sent.get(body, now)
            names = segments_in(body)
            missing = tuple(name for name in names if key_of(name) not in self._objects)
            history.landings.append(Landing(now, version, body, writer, sent_at, is_foreign, missing))
            self.world.trace(writer, f"landed #{len(history.landings) - 1} at version {version[:8]}")
        else:
            name = name_of(key)
            self.world.trace(writer, f"made segment {name}")
            if history.segments.setdefault(name, body) != body:
                history.reused.append(name)
        return version

    def remove(self, key: str, by: str) -> None:
        """Delete an object at this moment, if there is one."""
        if self._objects.pop(key, None) is None:
            return
        document, name = self.document, name_of(key)
        self.world.trace(by, f"deleted segment {name}")
        is_referred_to = document is not None and name in segments_in(document.body)
        self.world.history.deletions.append(Deletion(self.world.loop.now, name, by, is_referred_to))

    def keys(self, prefix: str) -> list[str]:
        """Return what there is at this moment."""
        return sorted(key for key in self._objects if key.startswith(prefix))


def key_of(name: str) -> str:
    """Return the key of the object of a segment."""
    return f"{SEGMENTS_PREFIX}{name}.json"


def name_of(key: str) -> str:
    """Return the name of a segment whose object has this key."""
    assert key.startswith(SEGMENTS_PREFIX), f"{key} is none of ours"
    return key.removeprefix(SEGMENTS_PREFIX).removesuffix(".json")


class StoreView:
    """The store as one process reaches it. A request that is on its way outlives whoever sent it."""

    def __init__(self, store: SimStore, node: str, *, is_foreign: bool = False) -> None:
        self._store = store
        self._world = store.world
        self._node = node
        self._is_foreign = is_foreign
        self.min_write_interval = self.slowest_write_interval = store.min_write_interval
        self.max_object_bytes = store.max_object_bytes

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`."""
        found: StoredObject | None = await self._ask(lambda: self._store.read(key), is_write=False)
        return found

    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        """See `ConditionalReader`."""
        found = await self.read(key)
        if found is None:
            raise StorageBackendError(f"{key!r}: there is no such object", outcome="not_applied")
        return None if found.version == version else found

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`."""
        self._store.note_sent(body)
        version: str = await self._ask(
            lambda: self._store.replace(key, body, expected_version, self._node, self._is_foreign),
            is_write=True,
        )
        return version

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`."""
        self._store.note_sent(body)
        version: str = await self._ask(
            lambda: self._store.replace(key, body, None, self._node, self._is_foreign), is_write=True
        )
        return version

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        await self._ask(
            lambda: self._store.remove(key, self._node),
            is_write=True,
            latest=self._world.random.choice((1, 12, 90)),
        )

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`."""
        keys: list[str] = await self._ask(lambda: self._store.keys(prefix), is_write=False)
        for key in keys:
            yield key

    async def aclose(self) -> None:
        """Nothing to give back."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ask(self, effect: Effect, *, is_write: bool, latest: float | None = None) -> Any:
        """Send a request, and return what comes back, if ever. It comes late by `latest` seconds at most."""
        world, rates = self._world, self._world.store_rates
        loop = world.loop
        answer: asyncio.Future[Any] = loop.create_future()
        there = world.latency(world.store_latency, rates)
        back = world.latency(world.store_latency, rates)

        def give(outcome: object, delay: float) -> None:
            loop.after(delay, _settle, answer, outcome)

        def reach(is_answered: bool = True) -> None:
            try:
                outcome = effect()
            except Exception as error:  # noqa: BLE001  # the answer
                outcome = error
            if is_answered:
                give(outcome, back)

        what = "write" if is_write else "read"
        fate = self._fate(is_write)
        if fate != "fine":
            world.trace(self._node, f"{what}: {fate}")
        match fate:
            case "fine":
                loop.after(there, reach)
            case "down":
                if world.chance(0.7):
                    give(StorageBackendError("the store cannot be reached", outcome="not_applied"), there)
            case "lost request":
                self._maybe_break(give, there)
            case "lost answer":
                loop.after(there, reach, False)
                self._maybe_break(give, there + back)
            case "late":
                loop.after(
                    there + world.between(0, latest or world.random.choice((0.1, 0.1, 1, 12))), reach, False
                )
                give(_reset(), there * world.random.random())
            case "doubled":
                loop.after(there, reach, False)
                loop.after(there + back + world.between(0, 0.2), reach)
            case "refused":
                error = StorageBackendError(
                    world.random.choice(
                        ("429 SlowDown", "503 ServiceUnavailable", "409 ConditionalRequestConflict")
                    ),
                    outcome="not_applied",
                )
                give(error, there + back)
            case "unclear":
                if world.chance(0.5):
                    loop.after(there, reach, False)
                give(StorageBackendError("500 InternalError", outcome="unknown"), there + back)
            case "false conflict":
                status = world.random.choice((404, 409, 412))
                give(CASConflictError(f"{status}, though nothing has changed", key=KEY), there + back)
        return await answer

    def _fate(self, is_write: bool) -> str:
        world, rates = self._world, self._world.store_rates
        if self._store.is_down or self._node in self._store.cut:
            return "down"
        if is_write and (seconds := self._store.ambushes.pop(self._node, 0.0)):
            self._store.cut_off(self._node, seconds)
            return "lost answer"
        if world.is_calm:
            return "fine"
        at = world.random.random()
        fates: list[tuple[str, float]] = [
            ("lost request", rates.lost_request),
            ("lost answer", rates.lost_answer),
            ("refused", rates.refused),
            ("unclear", rates.unclear),
        ]
        if is_write:
            fates += [("late", rates.late), ("doubled", rates.doubled), ("false conflict", rates.doubled / 2)]
        for fate, likelihood in fates:
            at -= likelihood
            if at < 0:
                return fate
        return "fine"

    def _maybe_break(self, give: Callable[[object, float], None], delay: float) -> None:
        """Let the sender hear that the connection is gone, or wait for ever."""
        if self._world.chance(0.5):
            give(_reset(), delay)


def _settle(answer: asyncio.Future[Any], outcome: object) -> None:
    assert NODE.get() is None
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _reset() -> StorageBackendError:
    return StorageBackendError("the connection was reset", outcome="unknown")
