"""A running broker on a store in memory, and a client over each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from broker.support import WIRES, opened

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_broker.inbox import Inbox
from osqueue_storage import MemoryBackend


@pytest.fixture
async def server() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        yield server


@pytest.fixture
async def http(server: BrokerServer) -> AsyncIterator[httpx.AsyncClient]:
    async with opened(server) as rest:
        yield rest.http


@pytest.fixture(params=WIRES)
async def wire(server: BrokerServer, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    async with opened(server, request.param) as wire:
        yield wire


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many requests wait in the broker of the test."""
    inboxes: list[Inbox] = []

    def make(settings: BrokerSettings) -> Inbox:
        inboxes.append(Inbox(settings))
        return inboxes[-1]

    monkeypatch.setattr("osqueue_broker.commit_loop.Inbox", make)
    return lambda: sum(len(inbox) for inbox in inboxes)
