"""File backends that break the contract between processes: in a module of their own, for those to import."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from osqueue_storage import CASConflictError, FileBackend, StoredObject


class UnlockedFiles(FileBackend):
    """Compares and then replaces, without a lock."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root)
        self._folder = Path(root)

    async def read(self, key: str) -> StoredObject | None:
        try:
            body = self._place(key).read_bytes()
        except FileNotFoundError:
            return None
        return StoredObject(body, hashlib.sha256(body).hexdigest())

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        found = await self.read(key)
        if found is None or found.version != expected_version:
            raise CASConflictError("not at that version", key=key)
        await asyncio.sleep(0.001)
        temporary = self._place(key).with_suffix(f".{os.getpid()}.{id(asyncio.current_task())}")
        temporary.write_bytes(body)
        temporary.rename(self._place(key))
        return hashlib.sha256(body).hexdigest()

    async def create(self, key: str, body: bytes) -> str:
        self._folder.mkdir(exist_ok=True)
        self._place(key).write_bytes(body)
        return hashlib.sha256(body).hexdigest()

    async def delete(self, key: str) -> None:
        self._place(key).unlink(missing_ok=True)

    def _place(self, key: str) -> Path:
        return self._folder / key.replace("/", "-")


class FilesInPlace(UnlockedFiles):
    """Writes into the object itself, a piece at a time."""

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        with self._place(key).open("wb", buffering=0) as file:
            for at in range(0, len(body), 1000):
                file.write(body[at : at + 1000])
        return hashlib.sha256(body).hexdigest()


class FilesThatLag(UnlockedFiles):
    """Confirms a write, and does it when three more have come."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root)
        self._late: list[bytes] = []

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        self._late.append(body)
        if len(self._late) > 3:
            self._place(key).write_bytes(self._late.pop(0))
        return hashlib.sha256(body).hexdigest()
