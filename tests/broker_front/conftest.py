"""A front over a recording service, and an HTTP client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from broker_front.support import Front, RecordingService, front_app, serving


@pytest.fixture
async def service() -> RecordingService:
    return RecordingService()


@pytest.fixture
async def front(service: RecordingService) -> AsyncIterator[Front]:
    async with serving(front_app(service)) as front:
        yield front


@pytest.fixture
async def http(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=front.http, trust_env=False, timeout=10) as http:
        yield http
