"""Producers and workers that know several brokers, and what became of what they were told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from drills.brokers import PAUSE
from drills.load import Submits, document_in
from drills.programs import Program, running
from drills.worker_program import JOB_TYPE

from osqueue_client import OsqueueClient, OsqueueError, Transport
from osqueue_client.models import Model
from osqueue_client.operations import SUBMIT_JOB, SUBMIT_JOBS, Operation
from osqueue_client.transports import TransportName, open_transport
from osqueue_storage import StorageBackend, open_storage

PRODUCERS = 4
"""For each of the clients."""
BREATH = 0.01
"""Seconds for which a producer rests after each submit."""
FAILING = 25
"""Every so many-th job fails, and has no second attempt."""

WORKER_PROGRAM = Path(__file__).with_name("worker_program.py")

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)


class Tally(Submits):
    """What was acknowledged, when and by whom, and what callers saw of the failures in between."""

    def __init__(self, jobs: int | None = None) -> None:
        super().__init__()
        self.answers: list[tuple[float, str]] = []
        """The moment of each acknowledgement, and the URL of the broker that gave it."""
        self.unanswered = 0
        """Submits that were sent and may have had an effect, for all that is known: the client sends them again."""
        self.errors: list[str] = []
        self.allowed = jobs
        """How many jobs are submitted before producers pause; None: as many as they can."""
        self.has_ended = False

    def note_answer(self, url: str) -> None:
        self.answers.append((time.monotonic(), url))

    def note_unanswered(self) -> None:
        self.unanswered += 1
        self.tell()

    async def next_number(self) -> int | None:
        """Return the number of the next job to submit; None when there is no other one."""
        while self.allowed is not None and self.count >= self.allowed and not self.has_ended:
            await self.news.wait()
        return None if self.has_ended else self.take_number()

    def allow(self, jobs: int) -> None:
        """Have so many jobs more submitted."""
        self.allowed = (self.allowed or 0) + jobs
        self.tell()

    async def acknowledged(self, count: int) -> None:
        """Return when so many submits have been acknowledged in all."""
        async with asyncio.timeout(40):
            while len(self.submitted) < count:
                await self.news.wait()

    async def answer_of(self, url: str, since: float) -> float:
        """Return the moment of the first acknowledgement that this broker gave after another moment."""
        async with asyncio.timeout(40):
            while True:
                for at, by in self.answers:
                    if by == url and at >= since:
                        return at
                await self.news.wait()

    async def some_unanswered(self) -> None:
        """Return when a submit got no answer of which anybody could tell whether it had an effect, or after 15 s.

        By then brokers have told so. There is none if the store stopped just after a write, and nothing was on its way.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15):
                while not self.unanswered:
                    await self.news.wait()

    @property
    def longest_gap(self) -> float:
        """The longest time, in seconds, without an acknowledgement."""
        return max(later - earlier for (earlier, _), (later, _) in pairwise(self.answers))

    def end(self) -> None:
        """Have no more jobs submitted."""
        self.has_ended = True
        self.tell()


@dataclass
class Outcome:
    """What became of the jobs in the end."""

    acknowledged: int
    lost: list[int]
    """Numbers of submits that were acknowledged with an id under which no job ended."""
    doubled: list[int]
    """Numbers of submits that made more than one job."""
    rerun: list[str]
    """Ids of jobs that were begun more than once, which may be."""
    made: int
    """Jobs that there ever were, as the queue counts them."""
    errors: list[str]
    longest_gap: float
    unanswered: int
    facts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} acknowledged, {len(self.lost)} lost, {len(self.doubled)} doubled, {len(self.rerun)} "
            f"begun again, {len(self.errors)} errors seen by callers ({self.unanswered} submits of unknown "
            f"outcome sent again); "
            + "; ".join([f"longest time without an answer {self.longest_gap:.2f} s", *self.facts])
        )

    def require_promises(self) -> None:
        """Fail if a job was lost or doubled, or if a caller saw an error."""
        assert not self.lost, f"lost: {self.lost[:10]}"
        assert not self.doubled, f"doubled: {self.doubled[:10]}"
        assert not self.errors, self.errors[:10]
        assert self.made == self.acknowledged, f"{self.made} jobs were made"


class Load:
    """Producers in this process, workers in others, and what is found in the end."""

    def __init__(self, tally: Tally, notes: Path) -> None:
        self.tally = tally
        self.outcome: Outcome | None = None
        """Known when the load has ended."""
        self._notes = notes

    def notes(self) -> list[dict[str, Any]]:
        """Return what the workers have noted so far."""
        text = self._notes.read_text() if self._notes.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    @property
    def begun(self) -> list[str]:
        """The ids of the jobs that were claimed so far, one for each claim."""
        return [note["claimed"] for note in self.notes() if "claimed" in note]

    async def until_begun(self, count: int) -> None:
        """Return when the workers have claimed so many jobs."""
        async with asyncio.timeout(30):
            while len(self.begun) < count:
                await asyncio.sleep(PAUSE)

    async def until_ended(self, job_ids: Collection[str]) -> None:
        """Return when the workers have ended these jobs."""
        async with asyncio.timeout(30):
            while not {note.get("ended") for note in self.notes()}.issuperset(job_ids):
                await asyncio.sleep(PAUSE)

    def concluded(self) -> Outcome:
        """Return the outcome, once the load has ended."""
        assert self.outcome is not None
        return self.outcome

    def conclude(self, document: dict[str, Any]) -> Outcome:
        """Compare what was told with what was done, when nothing is left to do."""
        tally, notes = self.tally, self.notes()
        claims = [note for note in notes if "claimed" in note]
        ended = {note["ended"] for note in notes if "ended" in note}
        dead = {job["id"]: job["payload"]["number"] for job in document["deadJobs"]}
        ids: dict[int, set[str]] = defaultdict(set)
        for number, job_id in (
            *tally.submitted.items(),
            *((claim["number"], claim["claimed"]) for claim in claims),
            *((number, job_id) for job_id, number in dead.items()),
        ):
            ids[number].add(job_id)
        begun = Counter(claim["claimed"] for claim in claims)
        made = document["completedTotal"] + len(dead) + len(document["jobs"])
        return Outcome(
            acknowledged=len(tally.submitted),
            lost=[number for number, job_id in tally.submitted.items() if job_id not in ended | dead.keys()],
            doubled=[number for number, known in ids.items() if len(known) > 1],
            rerun=[job_id for job_id, times in begun.items() if times > 1],
            made=made,
            errors=tally.errors + [note["error"] for note in notes if "error" in note],
            longest_gap=tally.longest_gap,
            unanswered=tally.unanswered,
        )


_SUBMITS = (SUBMIT_JOB, SUBMIT_JOBS)
"""Those of one moment are joined into one request."""


class Noting:
    """A transport that notes which broker acknowledged a submit, and how many got no answer."""

    def __init__(self, transport: Transport, url: str, tally: Tally) -> None:
        self._transport = transport
        self._url = url
        self._tally = tally

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        try:
            answer = await self._transport.call(operation, request)
        except (OsqueueError, asyncio.CancelledError) as error:  # cancelled: the client waits no longer
            if operation in _SUBMITS and getattr(error, "outcome", None) != "not_applied":
                self._tally.note_unanswered()
            raise
        if operation in _SUBMITS:
            self._tally.note_answer(self._url)
        return answer

    async def aclose(self) -> None:
        await self._transport.aclose()


@asynccontextmanager
async def workers(
    count: int, notes: Path, *places: str, seconds: float = 0.0, heartbeat_interval: float = 5.0
) -> AsyncIterator[list[Program]]:
    """Run worker processes; at the end of the context those that live finish what they have begun, and stop."""
    arguments = (str(WORKER_PROGRAM), str(notes), str(seconds), str(heartbeat_interval), *places)
    async with AsyncExitStack() as stack:
        programs = [
            await stack.enter_async_context(running(*arguments, cwd=notes.parent)) for _ in range(count)
        ]
        yield programs
        for program in programs:
            if program.process.returncode is None:
                assert await program.end(signal.SIGTERM) == 0


@asynccontextmanager
async def failover_load(
    storage_url: str, urls: Sequence[str], notes: Path, tally: Tally
) -> AsyncIterator[Load]:
    """Submit and work while the context is open; at its end all jobs are done, and the outcome is known.

    Producers and workers know the brokers' URLs, or find the leader through the storage. `notes` is what workers
    write to, and `tally` what the producers do; they may hold something already.
    """
    load = Load(tally, notes)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        storage = await enter(open_storage(storage_url))
        clients = [
            await enter(_client(tally, "connect", urls)),
            await enter(_client(tally, "rest", urls)),
            await enter(_client(tally, "ws", storage)),
        ]
        await enter(workers(1, notes, *urls))
        await enter(workers(1, notes, storage_url))
        async with asyncio.TaskGroup() as producers:
            for client in clients * PRODUCERS:
                producers.create_task(_produce(client, tally))
            yield load
            tally.end()
        async with asyncio.timeout(60):
            while (await clients[0].get_stats()).total:
                await asyncio.sleep(PAUSE)
        load.outcome = load.conclude(await document_in(storage))


def _client(tally: Tally, transport: TransportName, brokers: Sequence[str] | StorageBackend) -> OsqueueClient:
    def open_noting(url: str) -> Transport:
        return Noting(open_transport(transport, url), url, tally)

    if isinstance(brokers, Sequence):
        return OsqueueClient(brokers, transport=open_noting)
    return OsqueueClient(storage=brokers, transport=open_noting)


async def _produce(client: OsqueueClient, tally: Tally) -> None:
    while (number := await tally.next_number()) is not None:
        fails = number % FAILING == 0
        payload = {"number": number, "fails": fails}
        try:
            job_id = await client.submit_job(JOB_TYPE, payload, max_attempts=1 if fails else None)
        except OsqueueError as error:
            tally.errors.append(f"submit {number}: {error.tag}: {error.message} (outcome: {error.outcome})")
        else:
            tally.note_submit(number, job_id)
        await asyncio.sleep(BREATH)
