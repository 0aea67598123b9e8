"""The tables of a long queue: rates at each backlog, the way there and back, memory, and a start."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from plan import Plan, Row
from serving import Server, serving

PAYLOAD_BYTES = 200
CLIENTS = 64
CARRIERS = 8
LOAD = 100
"""Jobs in a request of those that fill and drain the queue."""
RUNNING = 1_000
NO_SEGMENTS = 1 << 40
ACQUAINTANCE = 1.5
"""Seconds that a standby has to reach its leader once: a refused connection counts only after that."""


@dataclass
class DeepTables:
    """The rows of three tables that come of the same two queues."""

    rates: list[Row] = field(default_factory=list)
    ways: list[Row] = field(default_factory=list)
    starts: list[Row] = field(default_factory=list)


def deep_tables(plan: Plan) -> DeepTables:
    """Fill a queue on each storage, measure at each backlog, hand it to other brokers where it lasts, and drain."""
    tables = DeepTables()
    most = plan.backlogs[-1]
    for scheme in ("memory:", "file:"):
        with contextlib.ExitStack() as stack:
            urls = [url_of(scheme, stack) for _ in range(2)]
            empty = stack.enter_context(serving("broker", urls[0], "--pauses"))
            server = stack.enter_context(serving("broker", urls[1], "--pauses"))
            climb(tables, plan, scheme, empty, server)
            if scheme == "file:":
                for what, seconds, leader in successors(urls[1], server, stack):
                    memory = megabytes(leader.memory())
                    tables.starts.append((scheme, what, f"{most:,}", f"{seconds:.2f}", memory))
                    server = leader
            tables.ways.append(drain(scheme, server, most))
    return tables


def successors(url: str, leader: Server, stack: contextlib.ExitStack) -> Iterator[tuple[str, float, Server]]:
    """Replace the leader in three ways: what was done, seconds until the next one led, and that one."""
    for what, end in (
        ("takeover of a standby, leader stopped", Server.stop),
        ("takeover, leader killed", Server.kill),
    ):
        standby = stack.enter_context(serving("broker", url, "--standby"))
        time.sleep(ACQUAINTANCE)
        began = time.monotonic()
        end(leader)
        leader = standby
        yield what, leader.led_at() - began, leader
    leader.stop()
    began = time.monotonic()
    leader = stack.enter_context(serving("broker", url, "--pauses"))
    yield "start of the process", time.monotonic() - began, leader


def url_of(scheme: str, stack: contextlib.ExitStack) -> str:
    """Return the address of a new store, whose folder lives as long as the stack."""
    if scheme == "memory:":
        return scheme
    return f"file:{stack.enter_context(tempfile.TemporaryDirectory(prefix='osqueue-bench-'))}"


def climb(tables: DeepTables, plan: Plan, scheme: str, empty: Server, server: Server) -> None:
    """Fill the queue step by step, and measure at each."""
    held = 0
    for jobs in plan.backlogs:
        if jobs > held:
            tables.ways.append(fill(scheme, server, held, jobs))
            held = jobs
        tables.rates.append(rate_row(scheme, f"{jobs:,}", plan, empty, server))
    server.load("rest", 1, ("claim",), jobs=RUNNING, batch=RUNNING)
    tables.rates.append(rate_row(scheme, f"{held:,}, {RUNNING:,} running", plan, empty, server))


def fill(scheme: str, server: Server, held: int, jobs: int) -> Row:
    """Submit jobs until so many are held."""
    server.meters()
    [result] = server.load(
        "rest", CARRIERS, ("submit",), jobs=jobs - held, batch=LOAD, payload_bytes=PAYLOAD_BYTES
    )
    return way_row(scheme, f"fill to {jobs:,}", server, result, jobs - held)


def drain(scheme: str, server: Server, jobs: int) -> Row:
    """Claim and complete until there is nothing to claim."""
    server.meters()
    [result] = server.load("rest", CARRIERS, ("work",), jobs=None, batch=LOAD)
    return way_row(scheme, f"drain from {jobs:,}", server, result, result["jobs"])


def way_row(scheme: str, what: str, server: Server, result: dict[str, Any], jobs: int) -> Row:
    """Return what the way from one backlog to another came to."""
    meters = server.meters()
    return (
        scheme, what, f"{jobs:,}", f"{jobs / result['seconds']:,.0f}", f"{result['cpu'] / jobs * 1e6:.1f}",
        milliseconds(meters["own"]), milliseconds(meters["turn"]), milliseconds(meters["pause"]),
        kibibytes(result["bytes"] / max(result["writes"], 1)), kibibytes(meters["largest"]),
        result["segments"], megabytes(server.memory("VmHWM")), result["errors"],
    )  # fmt: skip


def rate_row(scheme: str, backlog: str, plan: Plan, empty: Server, server: Server) -> Row:
    """Run whole jobs on the empty queue and on the long one, in turn."""
    base, ours, meters = Sum(), Sum(), dict.fromkeys(("largest", "own", "turn", "conflicts"), 0.0)
    for _ in range(plan.pairs):
        base.add(cycle(empty, plan.window))
        server.meters()
        ours.add(cycle(server, plan.window))
        found = server.meters()
        meters = {name: max(value, found[name]) for name, value in meters.items()}
    return (
        scheme, backlog, f"{ours.rate:,.0f}", f"{ours.rate / base.rate:.2f}",
        f"{ours.cpu_per_job * 1e6:,.0f}", f"{base.cpu_per_job / ours.cpu_per_job:.2f}",
        f"{ours['writes'] / max(ours['jobs'], 1):.3f}",
        kibibytes(ours["bytes"] / max(ours["writes"], 1)), kibibytes(meters["largest"]), ours.segments,
        megabytes(server.memory()), milliseconds(meters["own"]), milliseconds(meters["turn"]),
        int(ours["errors"] + ours["empty"]), int(meters["conflicts"]),
    )  # fmt: skip


def cycle(server: Server, window: float) -> dict[str, Any]:
    """Run whole jobs for a window."""
    [result] = server.load("rest", CLIENTS, ("cycle",), window=window, payload_bytes=PAYLOAD_BYTES)
    return result


class Sum(dict[str, float]):
    """Windows, added up."""

    segments = 0

    def add(self, result: dict[str, Any]) -> None:
        """Add a window."""
        for name in ("requests", "jobs", "seconds", "cpu", "writes", "bytes", "errors", "empty"):
            self[name] = self.get(name, 0) + result[name]
        self.segments = result["segments"]

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self["jobs"] / self["seconds"]

    @property
    def cpu_per_job(self) -> float:
        """Seconds of the server's CPU time for a job."""
        return self["cpu"] / self["jobs"]


def live_rows(plan: Plan) -> Iterator[Row]:
    """Jobs that all stand in the document, as none is ever sealed."""
    settings = json.dumps({"segment_threshold": NO_SEGMENTS})
    with tempfile.TemporaryDirectory(prefix="osqueue-bench-") as folder:
        with serving("broker", f"file:{folder}", "--settings", settings) as server:
            before = server.memory()
            [result] = server.load(
                "rest", CARRIERS, ("submit",), jobs=plan.live, batch=LOAD, payload_bytes=PAYLOAD_BYTES
            )
            grown, most = server.memory() - before, server.memory("VmHWM") - before
            document = server.meters()["largest"]
        yield (
            f"{plan.live:,}", f"{grown / plan.live:,.0f}", f"{most / plan.live:,.0f}",
            f"{document / plan.live:,.0f}", megabytes(before), result["segments"], result["errors"],
        )  # fmt: skip


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


def kibibytes(size: float) -> str:
    return f"{size / 1024:,.0f}"


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f}"
