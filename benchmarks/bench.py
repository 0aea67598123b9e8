"""What the broker costs beside an echo, under a backlog, and on a slow store.

python benchmarks/bench.py [--quick]

README.md beside this file says what each figure means. All on the loopback; every process that is started here
is ended here.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CLIENT_BOUND = 0.8
NAMES = {"rest": "REST", "ws": "WebSocket", "connect": "Connect"}
Row = Sequence[object]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    window: float
    clients: tuple[int, ...]
    backlogs: tuple[int, ...]
    latencies: tuple[float, ...]


FULL = Plan(1.0, (1, 16, 64, 256), (0, 1_000, 10_000, 50_000), (0.005, 0.02, 0.1))
QUICK = Plan(0.4, (1, 64), (0, 10_000), (0.02,))


class Server:
    """A server in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "servers.py", *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("listening "):
            self.stop()
            raise RuntimeError(f"the server did not start: {' '.join(arguments)}")
        self._port = int(line.split()[1])
        self.counts: dict[str, int] = {}

    def load(self, transport: str, clients: int, window: float, *phases: str) -> list[dict[str, Any]]:
        """Put a load on the server; return what each phase came to."""
        options = {
            "port": self._port, "pid": self._process.pid, "transport": transport,
            "clients": clients, "window": window, "phases": phases,
        }  # fmt: skip
        command = [sys.executable, str(HERE / "load.py"), json.dumps(options)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60)
        results: list[dict[str, Any]] = json.loads(done.stdout)
        return results

    def stop(self) -> None:
        """End the process, and keep what it counted."""
        self._process.terminate()
        try:
            out, _ = self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, _ = self._process.communicate()
        with contextlib.suppress(ValueError, IndexError):
            self.counts = json.loads(out.splitlines()[-1])


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    """Run a server while the context is open."""
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.stop()


def echo_rows(plan: Plan) -> Iterator[Row]:
    """The broker on memory: beside the echo."""
    with serving("echo") as echo:
        for transport in NAMES:
            for clients in plan.clients:
                with serving("broker", "memory:") as server:
                    ours = server.load(transport, clients, plan.window, "submit", "work")
                theirs = echo.load(transport, clients, plan.window, "submit", "work")
                for what, mine, base in zip(("submit", "claim+complete"), ours, theirs, strict=True):
                    yield (
                        NAMES[transport], clients, what,
                        f"{base['cpu_per_request'] / max(mine['cpu_per_request'], 1e-9):.2f}",
                        f"{mine['rate']:,.0f}", f"{base['rate']:,.0f}",
                        f"{mine['cpu_per_request'] * 1e6:,.0f}", f"{base['cpu_per_request'] * 1e6:,.0f}",
                        mine["errors"] + mine["empty"] + base["errors"], bound(mine, base),
                    )  # fmt: skip


def backlog_rows(plan: Plan) -> Iterator[Row]:
    """Whole jobs at 64 clients while so many others wait."""
    for scheme in ("memory:", "file:"):
        first = 0.0
        for jobs in plan.backlogs:
            with tempfile.TemporaryDirectory(prefix="osqueue-bench-") as folder:
                url = scheme if scheme == "memory:" else f"file:{folder}"
                with serving("broker", url, str(jobs)) as server:
                    [result] = server.load("rest", 64, plan.window, "cycle")
            first = first or result["rate"]
            yield (
                scheme, f"{jobs:,}", f"{result['rate']:,.0f}", f"{result['rate'] / first:.2f}",
                f"{result['busy']:.0%}", per_job(result), result["errors"], server.counts.get("conflicts", "?"),
            )  # fmt: skip


def latency_rows(plan: Plan) -> Iterator[Row]:
    """Whole jobs at 64 clients on a store that takes its time."""
    for latency in plan.latencies:
        with serving("broker", f"memory:?latency={latency}") as server:
            window = max(plan.window, 30 * latency)
            [result] = server.load("rest", 64, window, "cycle")
        limit = 64 / (2 * latency)
        yield (
            f"{latency * 1000:g} ms", f"{result['rate']:,.0f}", f"{limit:,.0f}", f"{result['rate'] / limit:.2f}",
            f"{64 / latency:,.0f}", f"{result['busy']:.0%}", per_job(result), result["errors"],
            server.counts.get("conflicts", "?"),
        )  # fmt: skip


def bound(*results: dict[str, Any]) -> str:
    """Name the sides on which the server was not what held the rate down."""
    slack = [
        name
        for name, result in zip(("broker", "echo"), results, strict=True)
        if result["busy"] < CLIENT_BOUND
    ]
    return f"client-bound ({', '.join(slack)})" if slack else ""


def per_job(result: dict[str, Any]) -> str:
    """Return the writes per job, over the whole run."""
    return f"{result['writes'] / max(result['jobs'], 1):.3f}"


def show(title: str, head: Row, rows: Iterator[Row]) -> None:
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
    parser.add_argument("--quick", action="store_true", help="fewer rows and shorter windows, under a minute")
    plan = QUICK if parser.parse_args().quick else FULL
    began = time.monotonic()
    print(
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}, {os.cpu_count()} × {machine()}, window {plan.window:g} s"
    )
    show(
        "Beside the echo, on memory: (ratio: echo's server CPU per request ÷ the broker's; aim 0.6 at 64 clients)",
        ("transport", "clients", "what", "ratio", "broker req/s", "echo req/s", "broker µs", "echo µs",
         "errors", "note"),
        echo_rows(plan),
    )  # fmt: skip
    show(
        "With a backlog, submit+claim+complete over REST, 64 clients (aim 0.7 at 50,000 jobs on memory:)",
        ("storage", "backlog", "req/s", "of 0", "server busy", "writes/job", "errors", "conflicts"),
        backlog_rows(plan),
    )
    show(
        "On a slow store, submit+claim+complete over REST, 64 clients (aim 0.8 of the limit at 20 ms)",
        ("latency", "req/s", "clients/(2·latency)", "ratio", "clients/latency", "server busy", "writes/job",
         "errors", "conflicts"),
        latency_rows(plan),
    )  # fmt: skip
    print(f"\ntook {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
