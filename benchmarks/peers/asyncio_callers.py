"""Concurrent callers on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from .system import CALLERS


async def submit_by_callers(submit: Callable[[str], Awaitable[object]], payloads: Sequence[str]) -> None:
    """Submit each payload once, `CALLERS` at a time: each caller waits for its answer before the next."""
    rest = iter(payloads)

    async def caller() -> None:
        for payload in rest:
            await submit(payload)

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
