"""Latency of each storage backend, and how long it keeps the event loop; and how long each package takes to import.

python benchmarks/storage.py            # about a minute
python benchmarks/storage.py --ceph     # half a minute more: Ceph RGW, too, where its Debian packages are installed

The servers are those of the tests, on the loopback. `benchmarks/README.md` says what the columns mean.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
sys.path[0] = str(ROOT / "tests")  # in place of this folder, where this file would hide its package `storage`

from storage.servers.azurite import NotInstallable, azurite  # noqa: E402
from storage.servers.ceph import ceph, missing_programs  # noqa: E402
from storage.servers.fake_gcs import fake_gcs  # noqa: E402
from storage.servers.ministack import ministack  # noqa: E402
from storage.servers.s3_bucket import S3Server, make_bucket  # noqa: E402
from storage.servers.seaweedfs import seaweedfs  # noqa: E402

from osqueue_broker.allocator import keep_freed_bodies  # noqa: E402
from osqueue_storage import (  # noqa: E402
    AzureBackend,
    FileBackend,
    GCSBackend,
    MemoryBackend,
    S3Backend,
    StorageBackend,
)

BUCKET: Final = "bucket-for-benchmarks"
AZURITE_CACHE: Final = ROOT / ".pytest_cache" / "d" / "azurite"
"""Where the tests install it, too."""

TICK: Final = 0.001
ROUNDS: Final = 10
SECONDS: Final = 60.0
"""After this long no further round is begun."""

IMPORTS: Final = (
    ("osqueue_storage", "osqueue_storage"),
    ("osqueue_client", "osqueue_client"),
    ("osqueue_broker", "osqueue_broker"),
    ("osqueue_worker", "osqueue_worker"),
    ("S3Backend, at its first use", "osqueue_storage.s3_client"),
    ("GCSBackend, at its first use", "osqueue_storage.gcs_http, osqueue_storage.gcs_auth"),
    ("AzureBackend, at its first use", "osqueue_storage.azure_http"),
    ("AzureBackend, when it looks for credentials", "azure.identity.aio"),
)
IMPORT_RUNS: Final = 5

Open = Callable[[], StorageBackend]


@dataclass(frozen=True, slots=True)
class Size:
    """A size of body, and how many writes and reads of it make a round."""

    name: str
    bytes: int
    repeats: int


SIZES: Final = (Size("4 KB", 4 * 1024, 20), Size("1 MB", 1024**2, 6), Size("20 MB", 20 * 1024**2, 2))


@dataclass(slots=True)
class Measured:
    """What one kind of request on one backend took, in seconds."""

    latencies: list[float] = field(default_factory=list)
    lateness: float = 0.0
    turn: float = 0.0
    first_turn: float = 0.0
    """Of the first round, which counts for nothing else."""


class TurnLoop(asyncio.SelectorEventLoop):
    """An event loop that notes the most CPU time that its thread spent in one turn.

    Other programs cannot lengthen that, while they do lengthen what a clock on the wall shows.
    """

    longest_turn = 0.0

    def _run_once(self) -> None:
        # Private, and the only place where one turn begins and ends.
        began = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.longest_turn = max(self.longest_turn, time.thread_time() - began)


class Ticker:
    """Wakes up every millisecond, and notes the most that it was late."""

    lateness = 0.0

    async def run(self) -> None:
        while True:
            due = time.perf_counter() + TICK
            await asyncio.sleep(TICK)
            self.lateness = max(self.lateness, time.perf_counter() - due)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ceph", action="store_true", help="measure Ceph RGW, too")
    options = parser.parse_args()
    keep_freed_bodies()  # as the broker does
    began = time.monotonic()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, Linux {platform.release()}, "
          f"{os.cpu_count()} × {_processor()}, load average {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="osqueue-bench-") as name, ExitStack() as stack:
        backends = _backends(Path(name), stack, with_ceph=options.ceph)
        with asyncio.Runner(loop_factory=TurnLoop) as runner:
            measured, rounds = runner.run(_measure(backends))
    _print_latencies(measured, rounds)
    _print_imports()
    print(f"\ntook {time.monotonic() - began:.0f} s")


def _backends(folder: Path, stack: ExitStack, *, with_ceph: bool) -> dict[str, Open]:
    """Start the servers; `stack` ends them. Of each store, return what opens a backend on it."""
    memory = MemoryBackend()
    gcs = stack.enter_context(fake_gcs(folder))
    backends: dict[str, Open] = {
        "memory": lambda: memory,
        "file": lambda: FileBackend(folder / "file"),
        "S3 on SeaweedFS": _s3(stack.enter_context(seaweedfs(folder / "seaweedfs"))),
        "S3 on ministack": _s3(stack.enter_context(ministack(folder / "ministack"))),
        "GCS on fake-gcs-server": lambda: GCSBackend(
            gcs.bucket, endpoint_url=gcs.endpoint_url, anonymous=True, min_write_interval=0
        ),
    }
    try:
        azure = stack.enter_context(azurite(folder, AZURITE_CACHE))
    except NotInstallable as error:
        print(f"without Azurite: {error}\n")
    else:
        backends["Azure on Azurite"] = lambda: AzureBackend(
            azure.container,
            account=azure.account,
            account_key=azure.account_key,
            endpoint_url=azure.endpoint_url,
        )
    if with_ceph and (missing := missing_programs()):
        print(f"without Ceph: {', '.join(missing)} are missing\n")
    elif with_ceph:
        backends["S3 on Ceph RGW"] = _s3(stack.enter_context(ceph(folder / "ceph")), quoted_if_match=False)
    return backends


def _s3(server: S3Server, **options: Any) -> Open:
    make_bucket(server, BUCKET)
    return lambda: S3Backend(
        BUCKET,
        endpoint_url=server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        **options,
    )


async def _measure(backends: Mapping[str, Open]) -> tuple[dict[tuple[str, str, str], Measured], int]:
    """Return what each backend, size and action took, and how many rounds that is of.

    In a round each backend has its turn with each size, and every round begins with another backend. The first one
    is for what is only slow once: memory that the process has never touched, connections.
    """
    measured: dict[tuple[str, str, str], Measured] = {}
    ticker = Ticker()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        stores = [(name, await stack.enter_async_context(open_())) for name, open_ in backends.items()]
        ticking = group.create_task(ticker.run())
        for size in SIZES:
            for name, store in stores:
                await store.create(size.name, bytes(size.bytes))
                for action in ("write", "read"):
                    measured[name, size.name, action] = Measured()
        began = time.perf_counter()
        count = gc.collect()
        print(f"{count:,} objects were garbage once all were opened, {1000 * (time.perf_counter() - began):.0f} ms to "
              "collect\n")  # fmt: skip
        bodies = {size: [os.urandom(size.bytes) for _ in range(2)] for size in SIZES}
        until = time.monotonic() + SECONDS
        rounds = 0
        while rounds <= ROUNDS and time.monotonic() < until:
            for size in SIZES:
                for name, store in _from(rounds, stores):
                    async with _noted(measured[name, size.name, "write"], ticker) as note:
                        version = await _write(store, size, bodies[size], note)
                    async with _noted(measured[name, size.name, "read"], ticker) as note:
                        await _read(store, size, version, note)
            if rounds == 0:
                for key, row in measured.items():
                    measured[key] = Measured(first_turn=row.turn)
            rounds += 1
        ticking.cancel()
    return measured, rounds - 1


def _from(start: int, stores: Sequence[tuple[str, StorageBackend]]) -> Iterator[tuple[str, StorageBackend]]:
    for number in range(len(stores)):
        yield stores[(start + number) % len(stores)]


async def _write(
    store: StorageBackend, size: Size, bodies: Sequence[bytes], note: Callable[[float], None]
) -> str:
    found = await store.read(size.name)
    assert found is not None
    version = found.version
    for number in range(size.repeats):
        began = time.perf_counter()
        version = await store.write(size.name, bodies[number % 2], version)
        note(time.perf_counter() - began)
    return version


async def _read(store: StorageBackend, size: Size, version: str, note: Callable[[float], None]) -> None:
    for _ in range(size.repeats):
        began = time.perf_counter()
        found = await store.read(size.name)
        note(time.perf_counter() - began)
        assert found is not None
        assert (found.version, len(found.body)) == (version, size.bytes)


@asynccontextmanager
async def _noted(measured: Measured, ticker: Ticker) -> AsyncIterator[Callable[[float], None]]:
    """Give what takes latencies, and note the longest stalls of the event loop meanwhile."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TurnLoop)
    await asyncio.sleep(2 * TICK)  # what was done before belongs to a turn that ends here
    ticker.lateness = loop.longest_turn = 0.0
    yield measured.latencies.append
    await asyncio.sleep(2 * TICK)  # the last turn ends, and the ticker has noted its own
    measured.lateness = max(measured.lateness, ticker.lateness)
    measured.turn = max(measured.turn, loop.longest_turn)


def _print_latencies(measured: Mapping[tuple[str, str, str], Measured], rounds: int) -> None:
    print(f"One request at a time, {rounds} rounds, ms:\n")
    _print_row("backend", "body", "", "n", "p50", "p99", "late", "turn", "first")
    for (name, size, action), row in measured.items():
        figures = [_quantile(row.latencies, 0.5), _quantile(row.latencies, 0.99), row.lateness, row.turn,
                   row.first_turn]  # fmt: skip
        _print_row(name, size, action, str(len(row.latencies)), *(f"{1000 * s:.2f}" for s in figures))


def _print_row(*cells: str) -> None:
    widths = (-22, 5, -5, 4, 7, 7, 7, 7, 7)
    print(
        "  ".join(f"{c:>{w}}" if w > 0 else f"{c:<{-w}}" for c, w in zip(cells, widths, strict=True)).rstrip()
    )


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def _print_imports() -> None:
    print(
        f"\nImport in a fresh process, median of {IMPORT_RUNS}, ms (and modules of which this is the time):\n"
    )
    times: dict[str, list[float]] = {modules: [] for _, modules in IMPORTS}
    counts: dict[str, int] = {}
    for run in range(IMPORT_RUNS + 1):
        for _, modules in IMPORTS:
            seconds, counts[modules] = _import(modules)
            if run:  # the first one may have to compile
                times[modules].append(seconds)
    for name, modules in IMPORTS:
        print(f"{name:<45}{1000 * statistics.median(times[modules]):7.0f}{counts[modules]:7}")


def _import(modules: str) -> tuple[float, int]:
    program = (
        "import sys, time; count = len(sys.modules); began = time.perf_counter()\n"
        f"import {modules}\nprint(time.perf_counter() - began, len(sys.modules) - count)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    seconds, count = run.stdout.split()
    return float(seconds), int(count)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
