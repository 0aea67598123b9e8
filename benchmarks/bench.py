"""What the broker costs: beside an echo, in batches, under a backlog, on a slow store; how it starts and waits.

python benchmarks/bench.py [--quick]

README.md beside this file says what each figure means. All on the loopback; every process that is started here
is ended here.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from deep import deep_tables, live_rows
from plan import FULL, QUICK
from plan import Row as Row
from shallow import batch_rows, echo_rows, pickup_rows, slow_rows


def show(title: str, head: Row, rows: Iterable[Row]) -> None:
    """Print a table."""
    table = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title}\n")
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()


def machine() -> str:
    """Return what this machine is."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer rows, shorter windows and no million, about a minute"
    )
    plan = QUICK if parser.parse_args().quick else FULL
    began = time.monotonic()
    print(
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}, {os.cpu_count()} × {machine()}, window {plan.window:g} s"
    )
    show(
        "Beside the echo, on memory: (ratio: echo's server CPU per request ÷ the broker's; aim at 64 and 256 clients: "
        "0.75 REST and Connect, 0.5 WebSocket)",
        ("transport", "clients", "what", "ratio", "broker req/s", "echo req/s", "broker µs", "echo µs",
         "errors", "note"),
        echo_rows(plan),
    )  # fmt: skip
    show(
        "Batches of 100, 8 clients, on memory: (aim: 50,000 jobs a second submitted and 20,000 claimed and completed "
        "on one core)",
        ("transport", "what", "jobs/core-s", "jobs/s", "µs/job", "server busy", "jobs/write", "errors"),
        batch_rows(plan),
    )
    deep = deep_tables(plan)
    show(
        "With a backlog of 200-byte payloads, submit+claim+complete over REST, 64 clients (aim: 0.8 of an empty queue "
        "in the same minute, a commit at most 2,048 KiB, at a million on file: at most 300 MB)",
        ("storage", "backlog", "jobs/s", "of empty", "µs/job", "CPU ratio", "writes/job", "mean KiB", "largest KiB",
         "segments", "MB", "own ms", "turn ms", "errors", "conflicts"),
        deep.rates,
    )  # fmt: skip
    show(
        "While it fills and drains, 100 jobs a request (aim: no pause of the event loop over 50 ms: own)",
        ("storage", "what", "jobs", "jobs/s", "µs/job", "own ms", "turn ms", "pause ms", "mean KiB", "largest KiB",
         "segments", "most MB", "errors"),
        deep.ways,
    )  # fmt: skip
    show(
        "Start and takeover with that backlog, until it leads (aim: less than 5 s at a million)",
        ("storage", "what", "jobs", "seconds", "MB"),
        deep.starts,
    )
    show(
        "Memory with all jobs live, 200-byte payloads, on file: (aim: at most 1,024 bytes a job)",
        ("jobs", "bytes/job", "most bytes/job", "document bytes/job", "MB empty", "segments", "errors"),
        live_rows(plan),
    )
    show(
        "On a slow store, submit+claim+complete over REST (aim: 0.9 of clients/(2·latency), 0.6 of clients/latency, "
        "p99 of an answer at most 2.5 round trips, no errors, no conflicts)",
        ("latency", "clients", "req/s", "of c/(2·l)", "of c/l", "p50 trips", "p99 trips", "server busy", "writes/job",
         "errors", "conflicts"),
        slow_rows(plan),
    )  # fmt: skip
    show(
        "From a submit to the claim that waits for it (aim: about one commit)",
        ("storage", "transport", "jobs", "p50 ms", "p99 ms", "submit's own p50 ms", "p50 trips", "p99 trips"),
        pickup_rows(plan),
    )
    print(f"\ntook {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
