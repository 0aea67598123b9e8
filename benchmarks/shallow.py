"""The tables of a short queue: beside the echo, batches, a slow store, and a claim that waits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

from plan import Plan, Row
from serving import serving

CLIENT_BOUND = 0.8
NAMES = {"rest": "REST", "ws": "WebSocket", "connect": "Connect"}
BATCH = 100
BATCH_CLIENTS = 8
WHAT = {"submit": "submit", "work": "claim+complete"}


def echo_rows(plan: Plan) -> Iterator[Row]:
    """The broker on memory: beside the echo."""
    phases = tuple(WHAT)
    with serving("echo") as echo:
        for transport in NAMES:
            for clients in plan.clients:
                with serving("broker", "memory:") as server:
                    ours = server.load(transport, clients, phases, window=plan.window)
                theirs = echo.load(transport, clients, phases, window=plan.window)
                for what, mine, base in zip(WHAT.values(), ours, theirs, strict=True):
                    yield (
                        NAMES[transport], clients, what,
                        f"{base['cpu_per_request'] / max(mine['cpu_per_request'], 1e-9):.2f}",
                        f"{mine['rate']:,.0f}", f"{base['rate']:,.0f}",
                        f"{mine['cpu_per_request'] * 1e6:,.0f}", f"{base['cpu_per_request'] * 1e6:,.0f}",
                        mine["errors"] + mine["empty"] + base["errors"], bound(mine, base),
                    )  # fmt: skip


def batch_rows(plan: Plan) -> Iterator[Row]:
    """Many jobs in a request, on memory:."""
    for transport in NAMES:
        with serving("broker", "memory:") as server:
            results = server.load(transport, BATCH_CLIENTS, tuple(WHAT), window=plan.window, batch=BATCH)
        for phase, result in zip(WHAT, results, strict=True):
            jobs = result["requests"] * BATCH if phase == "submit" else result["jobs"]
            yield (
                NAMES[transport], WHAT[phase], f"{jobs / result['cpu']:,.0f}", f"{jobs / result['seconds']:,.0f}",
                f"{result['cpu'] / jobs * 1e6:.1f}", f"{result['busy']:.0%}",
                f"{jobs / max(result['writes'], 1):,.0f}", result["errors"] + result["empty"],
            )  # fmt: skip


def slow_rows(plan: Plan) -> Iterator[Row]:
    """Whole jobs on a store that takes its time."""
    for latency in plan.latencies:
        for clients in plan.slow_clients:
            with serving("broker", f"memory:?latency={latency}") as server:
                [result] = server.load("rest", clients, ("cycle",), window=max(plan.window, 30 * latency))
                meters = server.meters()
            most = clients / latency
            yield (
                f"{latency * 1000:g} ms", clients, f"{result['rate']:,.0f}",
                f"{result['rate'] / (most / 2):.2f}", f"{result['rate'] / most:.2f}",
                f"{result['p50'] / latency:.2f}", f"{result['p99'] / latency:.2f}", f"{result['busy']:.0%}",
                per_job(result), result["errors"] + result["empty"], int(meters["conflicts"]),
            )  # fmt: skip


def pickup_rows(plan: Plan) -> Iterator[Row]:
    """From a submit to the claim that waits for it."""
    slow = plan.latencies[0]
    with tempfile.TemporaryDirectory(prefix="osqueue-bench-") as folder:
        stores = {
            "memory:": "memory:",
            "file:": f"file:{folder}",
            f"{slow * 1000:g} ms": f"memory:?latency={slow}",
        }
        for name, url in stores.items():
            for transport in NAMES if url == "memory:" else ("rest",):
                with serving("broker", url) as server:
                    found = server.pick_up(transport, jobs=plan.pickups, window=5 * plan.window)
                trips = (
                    [found[key] / slow for key in ("claim_p50", "claim_p99")] if name.endswith("ms") else []
                )
                yield (
                    name, NAMES[transport], found["jobs"],
                    f"{found['claim_p50'] * 1e3:.2f}", f"{found['claim_p99'] * 1e3:.2f}",
                    f"{found['submit_p50'] * 1e3:.2f}",
                    *([f"{trip:.2f}" for trip in trips] or ("", "")),
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
    """Return the writes per job, over the whole row."""
    return f"{result['writes'] / max(result['jobs'], 1):.3f}"
