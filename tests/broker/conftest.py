"""A running broker on a store in memory, and a client over each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from broker.support import WIRES, opened

from osqueue_broker import BrokerServer
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
