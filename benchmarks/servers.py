"""The servers that are measured, each in a process of its own: the broker, or the echo.

python servers.py broker STORAGE_URL [--settings JSON] [--pauses] [--standby]
python servers.py echo

The echo is the broker's own application and listener over a service that answers constants: what it costs is
what HTTP, routing, models and JSON or protobuf cost, and the rest of the broker's cost is the queue's.
Prints `listening PORT` and serves until SIGTERM. The broker answers each line on its standard input with what
its meters have found since the last one, as JSON; those of pauses only if asked for, as they cost CPU time. A standby
prints `leading`, and when, once it leads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from typing import Any

import uvloop
from load import PAYLOAD
from meters import Pauses, Writes
from msgspec import Raw

from osqueue_broker import BrokerServer
from osqueue_broker.allocator import keep_freed_bodies
from osqueue_broker.app import BrokerApp
from osqueue_broker.listener import Listener, bind
from osqueue_broker.origins import Origins
from osqueue_broker.readiness import Readiness
from osqueue_broker.settings import BrokerSettings
from osqueue_client import models
from osqueue_client.models import Model
from osqueue_client.operations import CLAIM_JOB, GET_STATS, SUBMIT_JOB, AnyOperation, Operation
from osqueue_storage import open_storage

JOB_ID = "6f1b7c52-0f7e-4a53-9d5c-6d3a3c1c0f5e"


class EchoService:
    """Answers every operation at once with a constant."""

    def __init__(self) -> None:
        self._answers: dict[str, Model] = {
            SUBMIT_JOB.name: models.JobSubmitted(job_id=JOB_ID),
            CLAIM_JOB.name: models.ClaimedJob(
                job_id=JOB_ID, payload=Raw(PAYLOAD), type="email:send", attempt=1
            ),
            GET_STATS.name: models.QueueStats(total=0, unclaimed=0, in_progress=0),
        }
        self._empty = models.Empty()

    async def call(self, operation: Operation[Any, Any], request: Model, /) -> Any:
        """Return the operation's constant."""
        return self._answers.get(operation.name, self._empty)

    async def document(self) -> bytes:
        """Return a document without commits."""
        return b'{"seq":0,"jobs":[]}'

    def throttle_stats(self) -> dict[str, object]:
        """Nothing is throttled."""
        return {"throttling": False}

    def readiness(self) -> Readiness:
        return Readiness("ready")

    def undelivered(self, operation: AnyOperation, request: Model, answer: Model, /) -> None:
        """Nothing was leased."""


async def serve_broker(url: str, settings: BrokerSettings, *, has_pauses: bool, standby: bool) -> None:
    """Run the broker on a storage until SIGTERM."""
    keep_freed_bodies()  # as the command does
    async with open_storage(url) as storage, asyncio.TaskGroup() as group:
        writes, pauses = Writes(storage), Pauses()
        tasks = [group.create_task(pauses.watch())] if has_pauses else []

        def report() -> None:
            if not sys.stdin.readline():
                asyncio.get_running_loop().remove_reader(sys.stdin)
                return
            say(json.dumps(writes.take() | pauses.take()))

        asyncio.get_running_loop().add_reader(sys.stdin, report)
        server = BrokerServer(storage=storage, port=0, settings=settings, standby=standby)

        async def tell_leading() -> None:
            await server.wait_leading()
            say(f"leading {time.monotonic()}")

        def started() -> None:
            say("listening " + server.address.rpartition(":")[2])
            if standby:
                tasks.append(group.create_task(tell_leading()))

        await server.run(on_started=started)
        for task in tasks:
            task.cancel()


async def serve_echo() -> None:
    """Run the echo until SIGTERM."""
    with bind("127.0.0.1", 0) as sock:
        app = BrokerApp(
            EchoService(), origins=Origins(), max_request_bytes=BrokerSettings().max_request_bytes
        )
        listener = Listener(app, sock)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, listener.stop, 0.5)
        async with asyncio.TaskGroup() as group:
            group.create_task(listener.serve())
            await listener.wait_started()
            say(f"listening {listener.address[1]}")


def say(line: str) -> None:
    """Print a line to whoever started this."""
    print(line, flush=True)


def main() -> None:
    """Serve what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("broker", "echo"))
    parser.add_argument("url", nargs="?", default="memory:")
    parser.add_argument("--settings", type=json.loads, default={}, help="of BrokerSettings, as JSON")
    parser.add_argument("--pauses", action="store_true", help="meter the pauses of the event loop")
    parser.add_argument("--standby", action="store_true", help="lead only when the leader is gone")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.what == "echo":
            runner.run(serve_echo())
        else:
            settings = BrokerSettings(**options.settings)
            runner.run(
                serve_broker(options.url, settings, has_pauses=options.pauses, standby=options.standby)
            )


if __name__ == "__main__":
    main()
