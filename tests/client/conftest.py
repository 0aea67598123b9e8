"""A running broker on a store in memory, and a client over each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from client.support import TRANSPORTS, transport_to

from osqueue_broker import BrokerServer
from osqueue_client import OsqueueClient
from osqueue_storage import MemoryBackend


@pytest.fixture
async def server() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        yield server


@pytest.fixture(params=TRANSPORTS)
def transport_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def client(server: BrokerServer, transport_name: str) -> AsyncIterator[OsqueueClient]:
    transport = transport_to(transport_name, f"http://{server.address}")
    async with OsqueueClient(transport=transport, timeout=20) as client:
        yield client
