"""osqueue beside PgQueuer, taskiq and Huey, end to end, in one run.

python -m peers [--quick] [--only osqueue,taskiq]

README.md of the folder above says what each figure means. All on the loopback; every process that is started here is
ended here, also on a failure and on Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import importlib.metadata
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import Row, machine, show

from .measure import Figures, Plan, pickup, throughput
from .osqueue import Osqueue
from .system import SYSTEMS, MissingServerError, system_of

FULL: Final = Plan(3, single_jobs=5_000, bulk_jobs=20_000, drain_time=10.0, pickups=300, pickup_time=10.0)
QUICK: Final = Plan(1, single_jobs=1_000, bulk_jobs=5_000, drain_time=4.0, pickups=50, pickup_time=5.0)

TITLES: Final = {
    "osqueue": "osqueue (file:)",
    "pgqueuer": "PgQueuer",
    "taskiq": "taskiq",
    "huey": "Huey",
}
FIGURES: Final = {
    "bulk": "bulk jobs/s",
    "singles": "64 callers jobs/s",
    "drain": "drain jobs/s",
    "worker_cpu": "worker µs/job",
    "server_cpu": "server µs/job",
    "p50": "pick-up p50 ms",
    "p99": "p99 ms",
}
RATES: Final = frozenset({"bulk", "singles", "drain"})
STORES: Final = ("memory:", "file:", "memory:?latency=0.02")

Measured = Mapping[str, Sequence[Figures]]


async def measure_systems(names: Sequence[str], plan: Plan) -> dict[str, list[Figures]]:
    """Let the systems take turns; each round begins with another. A system without its server is left out."""
    measured: dict[str, list[Figures]] = {name: [] for name in names}
    for number in range(plan.rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            if name not in measured:
                continue
            say(f"round {number + 1} of {plan.rounds}: {TITLES[name]}")
            system = system_of(name)
            try:
                figures = await throughput(name, system, plan) | await pickup(name, system, plan)
            except MissingServerError as error:
                print(f"{TITLES[name]} is left out. {error}")
                del measured[name]
            else:
                measured[name].append(figures)
    return measured


async def measure_stores(plan: Plan) -> dict[str, list[Figures]]:
    """Measure osqueue's pick-up on stores that take turns."""
    measured: dict[str, list[Figures]] = {url: [] for url in STORES}
    for number in range(plan.rounds):
        for url in STORES:
            say(f"round {number + 1} of {plan.rounds}: osqueue on {url}")
            storage = None if url == "file:" else url
            measured[url].append(await pickup("osqueue", Osqueue(storage), plan))
    return measured


def raw_rows(measured: Measured) -> Iterator[Row]:
    """The median of each figure, and its range over the rounds."""
    for name, rounds in measured.items():
        yield TITLES[name], *(spread(rounds, figure) for figure in FIGURES)


def ratio_rows(measured: Measured) -> Iterator[Row]:
    """How many times better osqueue is than each peer."""
    ours = measured["osqueue"]
    for name, rounds in measured.items():
        if name != "osqueue":
            yield TITLES[name], *(f"{advantage(ours, rounds, figure):.2f}" for figure in FIGURES)


def store_rows(measured: Measured) -> Iterator[Row]:
    """The pick-up on each store."""
    for url, rounds in measured.items():
        jobs = sum(int(figures["pickups"]) for figures in rounds)
        yield url, spread(rounds, "p50"), spread(rounds, "p99"), jobs


def advantage(ours: Sequence[Figures], theirs: Sequence[Figures], figure: str) -> float:
    """Return our median relative to theirs, above 1 where ours is the better one."""
    mine, peer = median(ours, figure), median(theirs, figure)
    return mine / peer if figure in RATES else peer / mine


def median(rounds: Sequence[Figures], figure: str) -> float:
    """Return the median of a figure."""
    return statistics.median(figures[figure] for figures in rounds)


def spread(rounds: Sequence[Figures], figure: str) -> str:
    """Return the median of a figure with its range."""
    values = [figures[figure] for figures in rounds]
    middle, low, high = (text(value) for value in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def text(value: float) -> str:
    """Return a number with as many digits as tell something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def say(line: str) -> None:
    """Tell who waits how far it is, apart from the tables."""
    print(line, file=sys.stderr, flush=True)


def versions() -> str:
    """Return the versions of the peers."""
    found = list[str]()
    for package in ("pgqueuer", "asyncpg", "taskiq", "taskiq-redis", "huey", "redis"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


async def run(names: Sequence[str], plan: Plan) -> None:
    """Measure and print; cancelled by Ctrl-C and SIGTERM, so that what was started is ended."""
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    measured = await measure_systems(names, plan)
    show(
        f"End to end, one worker process, concurrency 100, no-op jobs of 200 bytes: median (range) of {plan.rounds}",
        ("system", *FIGURES.values()),
        raw_rows(measured),
    )
    if "osqueue" not in measured:
        return
    if len(measured) > 1:
        show(
            "How many times better osqueue is (rates: ours ÷ theirs; times: theirs ÷ ours)",
            ("peer", *FIGURES.values()),
            ratio_rows(measured),
        )
    show(
        "Pick-up of osqueue on an idle queue, ms",
        ("store", "p50", "p99", "jobs"),
        store_rows(await measure_stores(plan)),
    )


def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(prog="peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of fewer jobs, under a minute")
    parser.add_argument("--only", default=",".join(SYSTEMS), metavar="NAMES", help="default: %(default)s")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(SYSTEMS):
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    began = time.monotonic()
    print(
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}, {os.cpu_count()} × {machine()}, "
        f"load average {os.getloadavg()[0]:.1f}\n{versions()}; data on {file_system(tempfile.gettempdir())}"
    )
    try:
        asyncio.run(run(names, QUICK if options.quick else FULL))
    except asyncio.CancelledError:
        sys.exit("interrupted")
    print(f"\ntook {time.monotonic() - began:.0f} s")


def file_system(folder: str) -> str:
    """Return the type of the file system of a folder: on tmpfs a sync would cost nothing."""
    best, kind = "", "an unknown file system"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, this_kind, *_ = line.split()
            if Path(folder).is_relative_to(mount) and len(mount) > len(best):
                best, kind = mount, this_kind
    return kind


if __name__ == "__main__":
    main()
