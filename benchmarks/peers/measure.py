"""One turn of one system: submits and a drain on a fresh server, then pick-ups on another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .processes import Child, cpu_seconds_of_tree, running_module
from .system import BATCH, System

Figures = dict[str, float]

_PAUSES: Final = (0.005, 0.025)
"""Seconds between a pick-up and the next submit, at random: a system's own timers must not fall into step."""
_PICKUP_PATIENCE: Final = 30.0


@dataclass(frozen=True)
class Plan:
    """How much is measured; times are seconds."""

    rounds: int
    single_jobs: int
    bulk_jobs: int
    drain_time: float
    pickups: int
    pickup_time: float


async def throughput(name: str, system: System, plan: Plan) -> Figures:
    """Submit by callers to an empty queue, then in bulk; then let one worker drain both."""
    async with _serving(system) as (service_url, service_pid):
        async with running_module("peers.producer", name, service_url) as producer:
            await producer.line()
            await _submit(producer, f"callers {BATCH}")  # connections, caches
            await _submit(producer, f"bulk {BATCH}")
            singles = await _submit(producer, f"callers {plan.single_jobs}")
            bulk = await _submit(producer, f"bulk {plan.bulk_jobs}")
        jobs = 2 * BATCH + plan.single_jobs + plan.bulk_jobs
        async with _working(name, service_url, str(jobs), str(plan.drain_time)) as worker:
            await worker.line()
            cpu_before = cpu_seconds_of_tree(service_pid)
            drain = json.loads(await worker.line(plan.drain_time + _PICKUP_PATIENCE))
            server_cpu = cpu_seconds_of_tree(service_pid) - cpu_before
    return {
        "singles": plan.single_jobs / singles,
        "bulk": plan.bulk_jobs / bulk,
        "drain": drain["jobs"] / drain["seconds"],
        "worker_cpu": drain["cpu"] / drain["jobs"] * 1e6,
        "server_cpu": server_cpu / drain["jobs"] * 1e6,
    }


async def pickup(name: str, system: System, plan: Plan) -> Figures:
    """Submit jobs one by one to an empty queue on which a worker waits; each follows the start of the one before."""
    chance = random.Random(0)
    milliseconds = list[float]()
    async with (
        _serving(system) as (url, _),
        running_module("peers.producer", name, url) as producer,
        _working(name, url) as worker,
    ):
        await producer.line()
        await _picked_up(producer, worker)  # the worker has started, too
        until = time.monotonic() + plan.pickup_time
        while len(milliseconds) < plan.pickups and time.monotonic() < until:
            await asyncio.sleep(chance.uniform(*_PAUSES))
            milliseconds.append(await _picked_up(producer, worker) / 1e6)
    return {
        "p50": statistics.median(milliseconds),
        "p99": sorted(milliseconds)[min(len(milliseconds) * 99 // 100, len(milliseconds) - 1)],
        "pickups": len(milliseconds),
    }


async def _picked_up(producer: Child, worker: Child) -> int:
    """Submit a job; return the nanoseconds that it took to its handler."""
    producer.say("one")
    await producer.line()
    return int(await worker.line(_PICKUP_PATIENCE))


async def _submit(producer: Child, what: str) -> float:
    """Return the seconds that it took."""
    producer.say(what)
    return float(await producer.line(120.0))


def _working(*arguments: str) -> AbstractAsyncContextManager[Child]:
    """Run a worker. It is killed: what it still does, or waits for, is measured by nobody."""
    return running_module("peers.worker", *arguments, stop_signal=signal.SIGKILL)


@contextlib.asynccontextmanager
async def _serving(system: System) -> AsyncIterator[tuple[str, int]]:
    """Run a fresh server while the context is open."""
    with tempfile.TemporaryDirectory(prefix="osqueue-peers-", ignore_cleanup_errors=True) as folder:
        async with system.serve(Path(folder)) as service:
            yield service.url, service.pid
