"""A worker in a process of its own, which notes what it claims, what it has done, and what goes wrong.

    python worker_program.py NOTES SECONDS HEARTBEAT_INTERVAL PLACE...

It works so many seconds on each job. The places are URLs of brokers, or one of a storage. Each note is one line of
JSON, written at once, so that it outlives a kill.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import AsyncExitStack

from osqueue_storage import open_storage
from osqueue_worker import Job, OsqueueClient, Worker

JOB_TYPE = "drill"
CONCURRENCY = 10
EXPECTED = frozenset({"job_failed", "stopping"})
"""What a worker warns of that is no error here: some jobs are to fail."""


class Notes(logging.Handler):
    """Where this worker's notes go, the warnings in its log among them."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.WARNING)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, **fields: object) -> None:
        line = json.dumps({"worker": os.getpid(), "at": time.monotonic(), **fields})
        os.write(self._fd, f"{line}\n".encode())

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", "") not in EXPECTED:
            self.write(error=record.getMessage())


async def main(path: str, seconds: str, heartbeat_interval: str, *places: str) -> None:
    notes = Notes(path)
    logging.getLogger("osqueue.worker").addHandler(notes)
    ids: dict[int, str] = {}

    def on_claimed(job: Job) -> None:
        payload = json.loads(job.payload_json or b"{}")
        ids[payload["number"]] = job.id
        notes.write(claimed=job.id, number=payload["number"], attempt=job.attempt)

    async def work(payload: dict[str, int]) -> None:
        await asyncio.sleep(float(seconds))
        notes.write(ended=ids[payload["number"]])
        if payload.get("fails"):
            raise RuntimeError("as it was told to")

    async with AsyncExitStack() as stack:
        if places[0].startswith("http:"):
            client = OsqueueClient(places)
        else:
            client = OsqueueClient(storage=await stack.enter_async_context(open_storage(places[0])))
        await stack.enter_async_context(client)
        worker = Worker(
            client=client, handlers={JOB_TYPE: work}, on_job_claimed=on_claimed, poll_interval=0.05,
            concurrency=CONCURRENCY, heartbeat_interval=float(heartbeat_interval),
        )  # fmt: skip
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
