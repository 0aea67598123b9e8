"""Every backend keeps the contract, and the suite notices backends that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from osqueue_storage import FileBackend, MemoryBackend, StorageBackend
from osqueue_storage.contract import CHECKS, Check, ContractViolation, Factory, verify_backend


def memory(tmp_path: Path) -> Factory:
    store = MemoryBackend()
    return lambda: store


def slow_memory(tmp_path: Path) -> Factory:
    store = MemoryBackend(latency=0.002)
    return lambda: store


def file(tmp_path: Path) -> Factory:
    return lambda: FileBackend(tmp_path / "store")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [memory, slow_memory, file])
async def test_backend_keeps_the_contract(
    make: Callable[[Path], Factory], check: Check, tmp_path: Path
) -> None:
    await check(make(tmp_path))


class IgnoresVersion(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        found = await self.read(key)
        return await super().write(key, body, found.version if found else expected_version)


class CreatesOverExisting(MemoryBackend):
    async def create(self, key: str, body: bytes) -> str:
        await self.delete(key)
        return await super().create(key, body)


class AppliesInSpiteOfConflict(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        version = await super().write(key, body, expected_version)
        return await super().write(key, body, expected_version) if body == b"2" else version


class ListsEverything(MemoryBackend):
    async def list(self, prefix: str):  # type: ignore[no-untyped-def, override]  # broken on purpose
        async for key in super().list(""):
            yield key


@pytest.mark.parametrize(
    "broken", [IgnoresVersion, CreatesOverExisting, AppliesInSpiteOfConflict, ListsEverything]
)
async def test_suite_catches_a_broken_backend(broken: type[MemoryBackend]) -> None:
    store: StorageBackend = broken()
    with pytest.raises((ContractViolation, Exception)) as caught:
        await verify_backend(lambda: store)
    assert caught.type.__name__ in {"ContractViolation", "CASConflictError"}
