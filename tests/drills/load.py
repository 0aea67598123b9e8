"""Submitters and workers that note what they were told, and whether the queue kept its word in the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from osqueue_client import (
    BrokerLeadershipError,
    Job,
    JobError,
    JobNotFoundError,
    OsqueueClient,
    QueueStats,
    StorageBackendError,
    Transport,
    TransportConnectionError,
)
from osqueue_client.models import Model
from osqueue_client.operations import Operation
from osqueue_client.transports import open_transport
from osqueue_storage import StorageBackend

SUBMITTERS, WORKERS = 6, 12
BURIED = 25
"""Every so many-th job fails for good."""

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

Disturbances = (TransportConnectionError, StorageBackendError, BrokerLeadershipError)
"""What a caller must expect of a broker, or of its store, that is killed. Anything else fails the drill."""


class Submits:
    """The submits that were acknowledged. Jobs are numbered in their payload: one number for each submit."""

    def __init__(self) -> None:
        self.submitted: dict[int, str] = {}
        """The id with which each submit was acknowledged."""
        self.count = 0
        """Submits that were begun."""
        self.news = asyncio.Event()

    def take_number(self) -> int:
        self.count += 1
        return self.count - 1

    def note_submit(self, number: int, job_id: str) -> None:
        self.submitted[number] = job_id
        self.tell()

    def tell(self) -> None:
        """Wake those who wait for a submit, or for the end."""
        self.news.set()
        self.news = asyncio.Event()

    async def next_submit(self) -> None:
        """Return when one more submit has been acknowledged."""
        async with asyncio.timeout(30):
            await self.news.wait()


class Ledger(Submits):
    """What the callers were told."""

    def __init__(self) -> None:
        super().__init__()
        self.unclear: set[int] = set()
        """Submits of which nobody knows: the job may be there."""
        self.refused: set[int] = set()
        """Submits that surely had no effect, as the caller was told."""
        self.claimed: dict[str, int] = {}
        self.unclear_claims = 0
        self.unclear_ends = 0
        self.completed: set[str] = set()
        self.buried: set[str] = set()
        self.can_call = asyncio.Event()
        """Set while there is a broker to call."""
        self.is_over = False

    def note_failed_submit(self, number: int, outcome: str | None) -> None:
        (self.refused if outcome == "not_applied" else self.unclear).add(number)

    def note_claim(self, job: Job) -> int:
        number: int = json.loads(job.payload_json or b"{}")["number"]
        assert job.id not in self.claimed, f"job {number} was given out again: {self._told(job.id)}"
        self.claimed[job.id] = number
        return number

    def check(self, document: dict[str, Any]) -> None:
        """Fail if the queue has lost, doubled, or given back a job against what its callers were told."""
        numbers = {job["id"]: job["payload"]["number"] for job in document["jobs"] + document["deadJobs"]}
        live = {job["id"] for job in document["jobs"]}
        dead = {job["id"] for job in document["deadJobs"]}
        assert len(live) + len(dead) == len(numbers) == len(document["jobs"]) + len(document["deadJobs"])
        acknowledged = set(self.submitted.values())
        assert len(acknowledged) == len(self.submitted)
        lost = acknowledged - self.completed - live - dead
        assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged jobs are lost"
        back = self.completed & (live | dead)
        assert not back, f"{len(back)} of {len(self.completed)} completed jobs are back"
        assert dead == self.buried
        assert document["completedTotal"] == len(self.completed)
        # Whatever is there was submitted, once, by somebody who was not told that it was not.
        numbers |= self.claimed
        assert len(set(numbers.values())) == len(numbers)
        assert set(numbers.values()) <= self.submitted.keys() | self.unclear
        for job_id, number in numbers.items():
            assert self.submitted.get(number, job_id) == job_id
        # Who asked for a job and got no answer may hold a lease; nobody else does when all work is done.
        leased = [job for job in document["jobs"] if job["status"] == "in_progress"]
        assert len(leased) <= self.unclear_claims

    def __str__(self) -> str:
        return (
            f"{len(self.submitted)} submits acknowledged, {len(self.unclear)} unclear, {len(self.refused)} refused; "
            f"{len(self.claimed)} claims, {self.unclear_claims} unclear; {len(self.completed)} completed and "
            f"{len(self.buried)} buried, {self.unclear_ends} answers to these lost"
        )

    def _told(self, job_id: str) -> str:
        ended = job_id in self.completed or job_id in self.buried
        return "its end was acknowledged" if ended else "it is being worked on"


class WithoutIds:
    """A transport to a broker that seems to know no request ids: what got no answer is not sent again."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        answer = await self._transport.call(operation, request)
        return msgspec.structs.replace(answer, features=()) if isinstance(answer, QueueStats) else answer

    async def aclose(self) -> None:
        await self._transport.aclose()


@asynccontextmanager
async def load_on(url: str) -> AsyncIterator[Ledger]:
    """Submit and work, without request ids, while the context is open; at its end, finish what was claimed."""
    ledger = Ledger()

    def open_without_ids(url: str) -> Transport:
        return WithoutIds(open_transport("rest", url))

    async with (
        OsqueueClient(url, transport=open_without_ids, timeout=10) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(SUBMITTERS):
            group.create_task(_submit(client, ledger))
        for number in range(WORKERS):
            group.create_task(_work(client, ledger, f"worker-{number}"))
        yield ledger
        ledger.is_over = True
        ledger.tell()


async def document_in(storage: StorageBackend) -> dict[str, Any]:
    """Return the queue document as the store has it."""
    found = await storage.read("queue.json")
    assert found is not None
    document: dict[str, Any] = json.loads(found.body)
    return document


async def _submit(client: OsqueueClient, ledger: Ledger) -> None:
    while not ledger.is_over:
        await ledger.can_call.wait()
        number = ledger.take_number()
        try:
            ledger.note_submit(number, await client.submit_job(None, {"number": number}))
        except Disturbances as error:
            ledger.note_failed_submit(number, error.outcome)


async def _work(client: OsqueueClient, ledger: Ledger, worker_id: str) -> None:
    while not ledger.is_over:
        await ledger.can_call.wait()
        news = ledger.news
        try:
            job = await client.claim_job(worker_id)
        except Disturbances as error:
            ledger.unclear_claims += error.outcome != "not_applied"
            continue
        if job is not None:
            await _finish(client, ledger, worker_id, job)
        elif not ledger.is_over:
            await news.wait()


async def _finish(client: OsqueueClient, ledger: Ledger, worker_id: str, job: Job) -> None:
    """End a job, and ask again until the answer is clear; its lease lasts longer than the drill."""
    must_fail = ledger.note_claim(job) % BURIED == 0
    was_unclear = False
    while True:
        await ledger.can_call.wait()
        try:
            if must_fail:
                error = JobError(type="Drill", message="for good")
                await client.fail_job(job.id, worker_id, error, retry=False)
            else:
                await client.complete_job(job.id, worker_id)
            break
        except Disturbances as disturbance:
            if disturbance.outcome != "not_applied":
                was_unclear = True
                ledger.unclear_ends += 1
        except JobNotFoundError:
            assert was_unclear, f"job {job.id} vanished while {worker_id} held it"
            break  # the answer that was lost was a good one
    (ledger.buried if must_fail else ledger.completed).add(job.id)
