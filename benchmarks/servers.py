"""The servers that are measured, each in a process of its own: the broker, or the echo.

python servers.py broker STORAGE_URL [BACKLOG]
python servers.py echo

The echo is the broker's own application and listener over a service that answers constants: what it costs is
what HTTP, routing, models and JSON or protobuf cost, and the rest of the broker's cost is the queue's.
Prints `listening PORT`, serves until SIGTERM, then prints what was counted as JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import uvloop
from load import PAYLOAD
from msgspec import Raw

from osqueue_broker import BrokerServer
from osqueue_broker.allocator import keep_freed_bodies
from osqueue_broker.app import BrokerApp
from osqueue_broker.listener import Listener, bind
from osqueue_broker.origins import Origins
from osqueue_broker.readiness import Readiness
from osqueue_broker.settings import DOCUMENT_KEY, BrokerSettings
from osqueue_client import models
from osqueue_client.models import Model
from osqueue_client.operations import CLAIM_JOB, GET_STATS, SUBMIT_JOB, AnyOperation, Operation
from osqueue_storage import CASConflictError, StorageBackend, open_storage

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


def count_writes(storage: StorageBackend) -> dict[str, int]:
    """Count the writes of the queue document from now on, and those that were refused: not the broker's probe."""
    counts = {"writes": 0, "conflicts": 0}
    write = storage.write

    async def counted(key: str, body: bytes, expected_version: str) -> str:
        counts["writes"] += key == DOCUMENT_KEY
        try:
            return await write(key, body, expected_version)
        except CASConflictError:
            counts["conflicts"] += key == DOCUMENT_KEY
            raise

    storage.write = counted  # type: ignore[method-assign]  # the backend stays what it is in all else
    return counts


def backlog(jobs: int) -> bytes:
    """Return a queue document that holds so many unclaimed jobs."""
    texts = (
        f'{{"id":"{number:08d}-0000-4000-8000-000000000000","status":"unclaimed","payload":{PAYLOAD},'
        f'"type":"email:send","createdAt":1760000000000,"attempts":0}}'
        for number in range(jobs)
    )
    return f'{{"broker":null,"brokerHeartbeat":0,"completedTotal":0,"jobs":[{",".join(texts)}]}}'.encode()


async def serve_broker(url: str, jobs: int) -> None:
    """Run the broker on a storage until SIGTERM."""
    keep_freed_bodies()  # as the command does
    async with open_storage(url) as storage:
        if jobs:
            await storage.create(DOCUMENT_KEY, backlog(jobs))
        counts = count_writes(storage)
        server = BrokerServer(storage=storage, port=0)
        await server.run(on_started=lambda: say("listening " + server.address.rpartition(":")[2]))
    say(json.dumps(counts))


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
    say("{}")


def say(line: str) -> None:
    """Print a line to whoever started this."""
    print(line, flush=True)


def main() -> None:
    """Serve what the command line names."""
    what, *rest = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if what == "echo":
            runner.run(serve_echo())
        else:
            runner.run(serve_broker(rest[0], int(rest[1]) if len(rest) > 1 else 0))


if __name__ == "__main__":
    main()
