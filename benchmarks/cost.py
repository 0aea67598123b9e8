"""What a queue costs on an object store: the arithmetic of docs/cost.md, and a broker on stores that behave so.

python benchmarks/cost.py

README.md beside this file says what each figure means. Brokers, clients and simulated stores share one process and
one event loop; nothing leaves the loopback.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import platform
import random
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import uvloop
from bench import machine, show

from osqueue_broker import BrokerServer
from osqueue_broker.settings import DOCUMENT_KEY, BrokerSettings
from osqueue_client import OsqueueClient
from osqueue_storage import CASConflictError, MemoryBackend, StorageBackendError

T = TypeVar("T")

MONTH: Final = 30 * 86_400
SIGN_OF_LIFE: Final = BrokerSettings().broker_heartbeat_interval
CALLS: Final = 3
"""Calls of a job that change the queue: submit, claim, complete."""
TIMER: Final = 0.002
"""Seconds by which a timer of the event loop may be early: not too fast yet."""
PAYLOAD: Final = {"text": "x" * 189}  # 200 bytes of JSON
RATES: Final = (1, 10, 100, 1_000)


@dataclass(frozen=True)
class Store:
    """A store as its provider describes and charges for it; prices in dollars, as in docs/cost.md."""

    name: str
    latency: float
    spacing: float
    per_million_writes: float
    per_million_reads: float
    per_gb_written: float = 0.0


S3 = Store("S3 Standard", 0.06, 1 / 15, 5.00, 0.40)
STORES: Final = (
    S3,
    Store("S3 Express", 0.02, 0.0, 1.13, 0.03, 0.0032),
    Store("Azure Blob", 0.1, 0.0, 5.00, 0.40),  # prices not confirmed, see docs/cost.md
    Store("GCS", 0.1, 1.0, 5.00, 0.40),
    Store("R2", 0.1, 1.0, 4.50, 0.36),
)


@dataclass(frozen=True)
class Case:
    """One queue: its store, its settings, its load."""

    store: Store
    rate: float
    interval: float = 0.0
    """`group_commit_interval`."""

    @property
    def period(self) -> float:
        """Seconds from one commit to the next while there is always something to write."""
        return max(self.store.latency, self.store.spacing, self.interval)

    @property
    def commits(self) -> float:
        """Commits a second for calls that come independently.

        After a commit the next one begins at once if anything came meanwhile, else with the next call, or with the
        sign of life.
        """
        calls, period = CALLS * self.rate, self.period
        longest = max(SIGN_OF_LIFE - period, 0.0)
        pause = longest if calls == 0 else -math.expm1(-calls * longest) / calls
        return 1 / (period + math.exp(-calls * period) * pause)

    def dollars_a_month(self, commits: float, commit_bytes: float) -> float:
        """Return what so many commits a second of so many bytes cost."""
        store, writes = self.store, commits * MONTH
        return writes * (store.per_million_writes / 1e6 + commit_bytes / 1e9 * store.per_gb_written)


@dataclass
class Counts:
    """What was asked of a store."""

    writes: int = 0
    bytes: int = 0
    conflicts: int = 0
    refused: int = 0


class SimulatedStore(MemoryBackend):
    """Objects in memory, with a store's latency; refuses a write of the document that comes too fast."""

    def __init__(self, store: Store) -> None:
        super().__init__(latency=store.latency)
        self.min_write_interval = self.slowest_write_interval = store.spacing
        self.counts = Counts()
        self._written_at = -math.inf

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`."""
        if key != DOCUMENT_KEY:
            return await super().write(key, body, expected_version)
        now = asyncio.get_running_loop().time()
        if now - self._written_at < self.min_write_interval - TIMER:
            self.counts.refused += 1
            raise StorageBackendError("429: too many writes of one object", outcome="not_applied")
        self._written_at = now
        self.counts.writes += 1
        self.counts.bytes += len(body)
        try:
            return await super().write(key, body, expected_version)
        except CASConflictError:
            self.counts.conflicts += 1
            raise


@dataclass
class Measured:
    """What a case came to."""

    case: Case
    seconds: float = 0.0
    jobs: int = 0
    counts: Counts = field(default_factory=Counts)
    latencies: list[float] = field(default_factory=list)

    @property
    def commits(self) -> float:
        """Commits a second."""
        return self.counts.writes / self.seconds

    @property
    def commit_bytes(self) -> float:
        """Bytes of a commit."""
        return self.counts.bytes / max(self.counts.writes, 1)

    def latency(self, share: float) -> str:
        """Return a quantile of the time from a call to its acknowledgement, in milliseconds."""
        ordered = sorted(self.latencies)
        return f"{1000 * ordered[int(share * (len(ordered) - 1))]:,.0f}" if ordered else ""

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table: the formula beside what was measured."""
        case = self.case
        per_job = [
            f"{commits / case.rate:.3f}" if case.rate else "" for commits in (case.commits, self.commits)
        ]
        return (
            case.store.name, f"{case.rate:,.0f}", f"{case.interval:g}" if case.interval else "",
            f"{case.commits:.2f}", f"{self.commits:.2f}", *per_job, f"{self.jobs / self.seconds:,.1f}",
            f"{self.commit_bytes / 1000:,.1f}", self.latency(0.5), self.latency(0.99),
            str(self.counts.refused), str(self.counts.conflicts),
        )  # fmt: skip


class Load:
    """Jobs that come at random moments, each submitted, claimed and completed as soon as the last was acknowledged."""

    def __init__(self, client: OsqueueClient, rate: float) -> None:
        self._client = client
        self._rate = rate
        self._chance = random.Random(1)
        self.measured: Measured | None = None
        """Where to note what is measured; None outside the window."""

    async def run(self, seconds: float) -> None:
        """Begin jobs for so long; returns when all of them are done."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        at = loop.time()
        async with asyncio.TaskGroup() as group:
            while self._rate and (at := at + self._chance.expovariate(self._rate)) < end:
                await asyncio.sleep(max(at - loop.time(), 0.0))
                group.create_task(self._job())
            await asyncio.sleep(max(end - loop.time(), 0.0))

    async def _job(self) -> None:
        await self._timed(self._client.submit_job("email:send", PAYLOAD))
        job = await self._timed(self._client.claim_job("worker"))
        if job is None:
            raise RuntimeError("a claim found nothing")
        await self._timed(self._client.complete_job(job.id, "worker"))
        if self.measured is not None:
            self.measured.jobs += 1

    async def _timed(self, call: Coroutine[object, object, T]) -> T:
        began = asyncio.get_running_loop().time()
        answer = await call
        if self.measured is not None:
            self.measured.latencies.append(asyncio.get_running_loop().time() - began)
        return answer


async def measure(case: Case, warm_up: float, seconds: float) -> Measured:
    """Run a broker on the case's store under the case's load."""
    storage = SimulatedStore(case.store)
    settings = BrokerSettings(group_commit_interval=case.interval, probe_storage=False)
    async with (
        BrokerServer(storage=storage, port=0, settings=settings) as server,
        OsqueueClient(f"http://{server.address}", transport="ws", timeout=60) as client,
    ):
        load, loop = Load(client, case.rate), asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(warm_up + seconds))
            await asyncio.sleep(warm_up)
            storage.counts = Counts()
            load.measured = measured = Measured(case, counts=storage.counts)
            began = loop.time()
            await asyncio.sleep(seconds)
            measured.seconds = loop.time() - began
            storage.counts, load.measured = Counts(), None
    return measured


async def together(cases: Sequence[Case], warm_up: float, seconds: float) -> list[Measured]:
    """Measure cases at the same time: together they leave the processor idle for most of it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(measure(case, warm_up, seconds)) for case in cases]
    return [task.result() for task in tasks]


async def run() -> tuple[list[Measured], list[Measured]]:
    """Return what each store came to at each rate, and S3 with intervals."""
    slow = [Case(store, rate) for rate in (0, 1, 10) for store in STORES]
    spaced = [Case(S3, rate, interval) for rate in (10, 100) for interval in (0.25, 1.0, 2.0)]
    measured = await together(slow, 3, 20)
    measured += await together([Case(store, 100) for store in STORES], 4, 6)
    with_interval = await together(spaced, 5, 10)
    # GCS not at 1,000: with a write a second the broker does not keep up with so many calls; see docs/cost.md.
    for case in (*(Case(store, 1_000) for store in STORES[:3]), Case(STORES[3], 300)):
        # A job takes three commits: those that are done in the window began before it.
        measured += await together([case], max(3.0, 5 * case.period), 4)
    return measured, with_interval


def price_rows(measured: Sequence[Measured]) -> Iterator[tuple[str, ...]]:
    """The bill of each store by the formula, with the bytes that were measured."""
    for store in STORES:
        found = {m.case.rate: m for m in measured if m.case.store is store}
        cases = [Case(store, rate) for rate in (0, *RATES)]
        sizes = [found[case.rate].commit_bytes if case.rate in found else 0.0 for case in cases]
        dollars = [case.dollars_a_month(case.commits, size) for case, size in zip(cases, sizes, strict=True)]
        per_million = [
            f"{bill / (rate * MONTH) * 1e6:,.3f}" for bill, rate in zip(dollars[1:], RATES, strict=True)
        ]
        yield (store.name, *(f"{bill:,.2f}" for bill in dollars), *per_million)


def main() -> None:
    """Measure and print."""
    began = time.monotonic()
    print(
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, {machine()}"
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        measured, with_interval = runner.run(run())
    head = ("store", "jobs/s", "interval s", "commits/s: formula", "measured", "writes/job: formula", "measured",
            "done/s", "KB/commit", "p50 ms", "p99 ms", "refused", "conflicts")  # fmt: skip
    show("Formula beside a broker on a simulated store", head, (m.cells() for m in measured))
    show("S3 with group_commit_interval", head, (m.cells() for m in with_interval))
    bill = ("store", "idle", *(f"{rate:,}/s" for rate in RATES), *(f"{rate:,}/s" for rate in RATES))
    show("Dollars a month (30 days), then dollars per million jobs", bill, price_rows(measured))
    bad = sum(m.counts.refused + m.counts.conflicts for m in measured + with_interval)
    print(f"\n{bad} writes refused or in conflict; took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
