"""A store whose policy forbids one kind of request, and that notes what it was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

from osqueue_storage import MemoryBackend, StoredObject
from osqueue_storage.errors import StorageBackendError


class ForbiddingStore(MemoryBackend):
    """Forbids one kind of request ("create", "replace", "read", "list", "delete") below a prefix."""

    def __init__(self, forbidden: str = "", *, below: str = "") -> None:
        super().__init__()
        self.requests: list[str] = []
        self.keys: set[str] = set()
        self._forbidden = forbidden
        self._below = below

    async def read(self, key: str) -> StoredObject | None:
        self._ask("read", key)
        return await super().read(key)

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        self._ask("replace", key)
        return await super().write(key, body, expected_version)

    async def create(self, key: str, body: bytes) -> str:
        self._ask("create", key)
        return await super().create(key, body)

    async def delete(self, key: str) -> None:
        self._ask("delete", key)
        await super().delete(key)

    async def list(self, prefix: str) -> AsyncIterator[str]:
        self._ask("list", prefix)
        async for key in super().list(prefix):
            yield key

    def _ask(self, what: str, key: str) -> None:
        self.requests.append(what)
        self.keys.add(key)
        if what == self._forbidden and key.startswith(self._below):
            raise StorageBackendError("403 AccessDenied", outcome="not_applied")
