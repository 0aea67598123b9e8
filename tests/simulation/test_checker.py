"""The checker sees each broken promise in histories made by hand, and none in good ones."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Raw
from simulation.checker import check
from simulation.history import Call, Deletion, Delivery, History, Landing

from osqueue_client import models as m
from osqueue_client.errors import LeaseLostError, OsqueueError, TransportConnectionError
from osqueue_client.models import Model

Job = dict[str, Any]


class Story:
    """A history told step by step: one second a step, one broker unless another is named."""

    def __init__(self) -> None:
        self.history = History(heartbeat_timeout=10.0, max_attempts=3, worker_types={"w1": (), "w2": ()})
        self.now = -1.0
        self.epoch, self.seq = 1, 0
        self.completed = 0
        self.previous: list[dict[str, Any]] = []
        self.history.ports = {"b1:8080": [[0.0, 1e9]], "b2:8080": [[0.0, 1e9]]}
        self.lands()  # at 0: the first commit of the first term

    def lands(
        self,
        *jobs: Job,
        dead: tuple[Job, ...] = (),
        completed: int = 0,
        writer: str = "b1.1",
        is_foreign: bool = False,
        **fields: Any,
    ) -> Story:
        """Have a document land, a second after what was before."""
        self.now += 1
        if not is_foreign:
            self.seq += 1
        self.completed += completed
        document = {
            "broker": "b1:8080",
            "epoch": self.epoch,
            "seq": self.seq,
            "commitId": f"c{self.seq}",
            "previousTerms": self.previous,
            "completedTotal": self.completed,
            "jobs": jobs,
            "deadJobs": dead,
        } | fields
        body = json.dumps(document).encode()
        self.history.landings.append(Landing(self.now, str(self.now), body, writer, self.now, is_foreign))
        return self

    def term(self, *jobs: Job, writer: str = "b2.1", address: str = "b2:8080", **fields: Any) -> Story:
        """Have another broker take over, after the silence that it takes."""
        self.now += self.history.broker_timeout
        self.previous = [{"epoch": self.epoch, "seq": self.seq, "commitId": f"c{self.seq}"}]
        self.epoch += 1
        return self.lands(*jobs, writer=writer, broker=address, **fields)

    def ask(
        self,
        operation: str,
        request: Model,
        answer: Model | OsqueueError,
        *,
        began: float,
        broker: str = "b1.1",
    ) -> Story:
        """Have a request be answered now that arrived then."""
        history = self.history
        call = Call(len(history.calls), "p1", operation, request, began, ended_at=self.now + 0.2)
        delivery = Delivery(call, operation, request, broker, began, began, self.now + 0.1)
        if isinstance(answer, OsqueueError):
            call.error = delivery.error = answer
        else:
            call.answer = delivery.answer = answer
        if isinstance(request, m.SubmitJob):
            call.mark = int(bytes(request.payload)) if isinstance(request.payload, Raw) else None
        call.deliveries.append(delivery)
        history.calls.append(call)
        history.deliveries.append(delivery)
        return self

    def submits(
        self, mark: int, answer: Model | OsqueueError | None = None, began: float | None = None
    ) -> Story:
        """Have a submit be answered."""
        request = m.SubmitJob(payload=Raw(str(mark).encode()))
        answer = answer or m.JobSubmitted(job_id=f"j{mark}")
        return self.ask("submitJob", request, answer, began=self.now - 0.5 if began is None else began)

    def claims(self, mark: int, worker: str = "w1", attempt: int = 1, token: str = "t1") -> Story:
        """Have a claim be answered with a job."""
        answer = m.ClaimedJob(job_id=f"j{mark}", attempt=attempt, lease_token=token)
        return self.ask("claimJob", m.ClaimJob(worker_id=worker), answer, began=self.now - 0.5)

    def leased(self, operation: str, answer: Model | OsqueueError, **lease: Any) -> Story:
        """Have something be answered that needs a lease of job 1."""
        fields = {"job_id": "j1", "worker_id": "w1", "lease_token": "t1"} | lease
        request = m.LeasedChange(**fields) if operation == "completeJob" else m.LeasedJob(**fields)
        return self.ask(operation, request, answer, began=self.now - 0.5)

    def submits_many(self, *marks: int, answered: tuple[int, ...]) -> Story:
        """Have a batch of submits be answered: those with a mark that is not `answered` were refused."""
        request = m.SubmitJobs(jobs=tuple(m.NewJob(payload=Raw(str(mark).encode())) for mark in marks))
        refused = m.SubmittedEntry(
            error=m.EntryError(tag="QueueFullError", message="", outcome="not_applied")
        )
        results = tuple(
            m.SubmittedEntry(job_id=f"j{mark}") if mark in answered else refused for mark in marks
        )
        return self.ask("submitJobs", request, m.JobsSubmitted(results=results), began=self.now - 0.5)

    def claims_many(self, *marks: int, worker: str = "w1", token: str = "t1") -> Story:
        """Have a batch of claims be answered with these jobs."""
        jobs = tuple(m.ClaimedJob(job_id=f"j{mark}", attempt=1, lease_token=token) for mark in marks)
        request = m.ClaimJobs(worker_id=worker, limit=2)
        return self.ask("claimJobs", request, m.ClaimedJobs(jobs=jobs), began=self.now - 0.5)

    def completes_many(self, *marks: int) -> Story:
        """Have w1 be told that it has completed these jobs."""
        leases = tuple(m.Lease(job_id=f"j{mark}", lease_token="t1") for mark in marks)
        request = m.LeasedChanges(worker_id="w1", jobs=leases)
        answer = m.LeasedResults(results=(m.LeasedEntry(),) * len(marks))
        return self.ask("completeJobs", request, answer, began=self.now - 0.5)

    def waits(self, answer: Model, began: float, wait: float = 5.0) -> Story:
        """Have a claim that waited be answered."""
        return self.ask("claimJob", m.ClaimJob(worker_id="w1", wait=wait), answer, began=began)

    def holds(self, name: str, *jobs: Job) -> Story:
        """Have the object of a segment be made."""
        ordered = [job | {"order": place} for place, job in enumerate(jobs)]
        self.history.segments[name] = json.dumps({"segment": name, "jobs": ordered}).encode()
        return self

    def deletes(self, name: str, *, is_referred_to: bool = False) -> Story:
        """Have the object of a segment be deleted, half a second after the last commit."""
        self.history.deletions.append(Deletion(self.now + 0.5, name, "b1.1", is_referred_to))
        return self

    def misses(self, name: str) -> Story:
        """Have no object of a segment be there when the last document landed."""
        self.history.landings[-1].missing = (name,)
        return self

    def finds(self, text: str) -> None:
        """Say what the checker must find."""
        found = check(self.history)
        assert any(text in violation for violation in found), found


def waiting(mark: int, attempts: int = 0) -> Job:
    return {"id": f"j{mark}", "status": "unclaimed", "payload": mark, "attempts": attempts, "createdAt": 1}


def running(mark: int, worker: str = "w1", attempts: int = 1, token: str | None = "t1") -> Job:
    job = waiting(mark, attempts) | {"status": "in_progress", "workerId": worker}
    if token is not None:
        job["lease"] = {"token": token, "workerId": worker, "attempts": attempts}
    return job


def segment(name: str, jobs: int, *gone: int) -> dict[str, Any]:
    """What a document says of a segment."""
    bits = sum(1 << place for place in gone)
    return {"name": name, "jobs": jobs, "gone": b64encode(bits.to_bytes(1, "little")).decode()}


OK = m.Empty()


def claimed() -> Story:
    """Job 1 was submitted, and is run by w1 under t1."""
    return Story().lands(waiting(1)).submits(1).lands(running(1)).claims(1)


def test_a_good_history_has_no_violation() -> None:
    story = claimed().leased("heartbeat", OK)
    story.lands(completed=1).leased("completeJob", OK)
    story.term()
    stats = m.QueueStats(total=0, unclaimed=0, in_progress=0, completed_total=1, dead=0)
    story.ask("getStats", m.Empty(), stats, began=story.now, broker="b2.1")
    story.history.must_be_empty = True
    assert check(story.history) == []


def sealed(*, retention: float = 0.2) -> Story:
    """Jobs 1 and 2 were submitted in a batch, and moved to a segment."""
    story = Story().lands(waiting(1), waiting(2)).submits_many(1, 2, answered=(1, 2))
    story.history.retention = retention
    return story.holds("s", waiting(1), waiting(2)).lands(segments=[segment("s", 2)])


def test_a_good_history_with_batches_and_a_segment_has_no_violation() -> None:
    story = sealed().term(segments=[segment("s", 2)])
    running_both = (running(1) | {"order": 0}, running(2) | {"order": 1})
    story.lands(*running_both, writer="b2.1", broker="b2:8080").deletes("s")
    story.claims_many(1, 2)
    story.history.deliveries[-1].broker = "b2.1"
    story.lands(completed=2, writer="b2.1", broker="b2:8080").completes_many(1, 2)
    story.history.deliveries[-1].broker = "b2.1"
    assert check(story.history) == []


def test_what_a_broker_without_terms_does_needs_nobody_who_asked() -> None:
    story = claimed().lands(running(1, "fw", 2), is_foreign=True)
    assert check(story.history) == []


CLAIMED = m.ClaimedJob(job_id="j1", attempt=1, lease_token="t1")

BAD: dict[str, tuple[Callable[[], Story], str]] = {
    "an acknowledged submit that is nowhere": (
        lambda: Story().lands().submits(1),
        "there is no such job",
    ),
    "a submit acknowledged before its commit": (
        lambda: Story().lands().submits(1).lands(waiting(1)),
        "before its commit",
    ),
    "a submit done twice": (
        lambda: Story().lands(waiting(1), waiting(1) | {"id": "j9"}).submits(1),
        "made 2 jobs",
    ),
    "a submit that happened though its caller was told that it did not": (
        lambda: Story().lands(waiting(1)).submits(1, TransportConnectionError("no", outcome="not_applied")),
        "told that nothing happened",
    ),
    "a job of nobody": (lambda: Story().lands(waiting(1)), "nobody submitted"),
    "an acknowledged job that is lost": (
        lambda: claimed().lands(completed=1),
        "no holder of its lease completed it",
    ),
    "a job that vanishes without ever having run": (
        lambda: Story().lands(waiting(1)).submits(1).lands(),
        "became nothing",
    ),
    "a job completed under a stale token": (
        lambda: claimed().lands(completed=1).leased("completeJob", OK, lease_token="t0"),
        "no holder of its lease completed it",
    ),
    "a token kept across a foreign claim": (
        lambda: (
            claimed()
            .lands(running(1) | {"attempts": 2}, is_foreign=True)
            .term(running(1) | {"attempts": 2})
            .lands(completed=1, writer="b2.1", broker="b2:8080")
            .ask(
                "completeJob",
                m.LeasedChange(job_id="j1", worker_id="w1", lease_token="t1"),
                OK,
                began=14.5,
                broker="b2.1",
            )
        ),
        "no holder of its lease completed it",
    ),
    "a completion acknowledged without a commit": (
        lambda: claimed().lands(running(1)).leased("completeJob", OK),
        "no commit in that time did it",
    ),
    "two completions of one job": (
        lambda: claimed().lands(completed=1).leased("completeJob", OK).leased("completeJob", OK),
        "no commit in that time did it",
    ),
    "a heartbeat taken from who holds no lease": (
        lambda: claimed().lands(running(1, "w2", token="t2")).lands().leased("heartbeat", OK),
        "held no lease",
    ),
    "a holder who is told that it lost its lease": (
        lambda: claimed().lands(running(1)).leased("heartbeat", LeaseLostError("lost")),
        "that is not so",
    ),
    "two claims given the same lease": (
        lambda: claimed().claims(1),
        "both given",
    ),
    "a lease that nobody asked for": (
        lambda: Story().lands(waiting(1)).submits(1).lands(running(1)),
        "unasked",
    ),
    "a claim acknowledged before its commit": (
        lambda: Story().lands(waiting(1)).submits(1).claims(1).lands(running(1)),
        "no commit in that time leased it",
    ),
    "a token used for two claims": (
        lambda: claimed().lands(running(1, attempts=2)).claims(1, attempt=2),
        "is used for two claims",
    ),
    "a lease that expires too early": (
        lambda: claimed().lands(waiting(1, 1)),
        "its lease has ended",
    ),
    "a lease that expires with the leader's pause counted": (
        lambda: _expiring_after_a_pause(),
        "its lease has ended",
    ),
    "leases dropped at a takeover": (
        lambda: claimed().term(waiting(1, 1)),
        "in the first commit of a term",
    ),
    "a claim taken back that was delivered": (
        lambda: claimed().lands(waiting(1, 0)),
        "whose answer was delivered",
    ),
    "one attempt too many": (
        lambda: Story().lands(waiting(1, 0)).submits(1).lands(running(1, attempts=4)),
        "in attempt 4",
    ),
    "a younger job claimed first": (
        lambda: (
            Story()
            .lands(waiting(1), waiting(2))
            .submits(1)
            .submits(2)
            .lands(waiting(1), running(2))
            .claims(2)
        ),
        "which is older",
    ),
    "an empty answer though a job was claimable": (
        lambda: (
            Story()
            .lands(waiting(1))
            .submits(1)
            .lands(waiting(1))
            .ask("claimJob", m.ClaimJob(worker_id="w1"), m.ClaimedJob(), began=1.5)
        ),
        "was claimable",
    ),
    "a change of a job's payload": (
        lambda: Story().lands(waiting(1)).submits(1).lands(waiting(1) | {"payload": 2}),
        "has changed",
    ),
    "jobs in another order": (
        lambda: Story().lands(waiting(1), waiting(2)).submits(1).submits(2).lands(waiting(2), waiting(1)),
        "the order of the jobs",
    ),
    "a completion that is not counted": (
        lambda: claimed().lands().leased("completeJob", OK),
        "completedTotal",
    ),
    "a sequence number used again": (lambda: Story().lands().lands(seq=1), "seq 1 after 2"),
    "a commit of an old term after a newer one": (
        lambda: Story().lands().term().lands(epoch=1, writer="b1.1"),
        "epoch 1 after 2",
    ),
    "two writers in one term": (lambda: Story().lands().lands(writer="b2.1"), "was written by b2.1"),
    "a term that goes on over a foreign rewrite": (
        lambda: Story().lands().lands(is_foreign=True).lands(),
        "went on over",
    ),
    "a leader deposed while it lived": (
        lambda: _deposed_early(),
        "was silent for",
    ),
    "an answer of a broker that leads no more": (
        lambda: _answered_by_the_deposed(),
        "while b2.1 led",
    ),
    "counts that never were": (
        lambda: (
            Story()
            .lands()
            .ask(
                "getStats",
                m.Empty(),
                m.QueueStats(total=5, unclaimed=5, in_progress=0, dead=0),
                began=1.0,
            )
        ),
        "never stood there",
    ),
    "a segment that is not there": (lambda: sealed().misses("s"), "is not in the store"),
    "a segment that is deleted though it is referred to": (
        lambda: sealed().deletes("s", is_referred_to=True),
        "which the document refers to",
    ),
    "a segment that is deleted too early": (
        lambda: sealed(retention=2).lands(running(1), running(2)).claims_many(1, 2).deletes("s"),
        "after it was dropped",
    ),
    "a segment that is referred to again": (
        lambda: sealed().lands(running(1), running(2)).lands(segments=[segment("s", 2)]),
        "is referred to again",
    ),
    "a job that stands in a segment and beside it": (
        lambda: sealed().lands(running(1), segments=[segment("s", 2)]).claims(1),
        "is there twice",
    ),
    "a job that is lost with its segment": (lambda: sealed().lands(), "became nothing"),
    "a job that is gone from a segment, and nowhere": (
        lambda: sealed().lands(segments=[segment("s", 2, 0)]),
        "became nothing",
    ),
    "a claim of a younger job than one in a segment": (
        lambda: sealed().lands(running(2), segments=[segment("s", 2, 1)]).claims(2),
        "which is older",
    ),
    "a job of a batch that is nowhere": (
        lambda: Story().lands(waiting(1)).submits_many(1, 2, answered=(1, 2)),
        "there is no such job",
    ),
    "a job of a batch that was refused": (
        lambda: Story().lands(waiting(1), waiting(2)).submits_many(1, 2, answered=(1,)),
        "told that nothing happened",
    ),
    "a batch that is half done": (
        lambda: (
            Story()
            .lands(waiting(1), waiting(2))
            .submits_many(1, 2, answered=(1, 2))
            .lands(running(1), running(2))
            .claims_many(1, 2)
            .lands(running(2), completed=1)
            .completes_many(1, 2)
        ),
        "no commit in that time did it",
    ),
    "a waiting claim that is answered before its commit": (
        lambda: Story().lands(waiting(1)).submits(1).waits(CLAIMED, began=0.5).lands(running(1)),
        "no commit in that time leased it so",
    ),
    "a wait that ends too soon": (
        lambda: Story().lands().waits(m.ClaimedJob(), began=0.5),
        "with nothing after",
    ),
    "a waiting claim that is passed over": (
        lambda: (
            Story()
            .lands()
            .lands()
            .lands(waiting(1))
            .submits(1)
            .lands(waiting(1))
            .lands(running(1))
            .waits(CLAIMED, began=0.5, wait=9.0)
        ),
        "was left, though",
    ),
    "an attempt that nobody was told of": (
        lambda: _counted_unheard(),
        "of which nobody was told",
    ),
    "work that is left at the end": (lambda: _unfinished(), "are left at the end"),
}


def _expiring_after_a_pause() -> Story:
    story = claimed()
    story.history.pauses["b1.1"] = [(story.now + 1, story.now + 9)]
    story.now += 9.5
    return story.lands(waiting(1, 1))


def _counted_unheard() -> Story:
    story = Story().lands(waiting(1)).submits(1)
    story.waits(CLAIMED, began=story.now - 0.5)
    delivery = story.history.deliveries[-1]
    delivery.answer, delivery.answered_at, delivery.hung_up_at = None, None, story.now
    story.lands(running(1))
    story.now += 20
    return story.lands(waiting(1, 1))


def _deposed_early() -> Story:
    story = Story().lands()
    story.now -= story.history.broker_timeout
    story.now += 5
    return story.term()


def _answered_by_the_deposed() -> Story:
    story = Story().lands().term()
    story.now += 1
    stats = m.QueueStats(total=0, unclaimed=0, in_progress=0, dead=0)
    return story.ask("getStats", m.Empty(), stats, began=story.now, broker="b1.1")


def _unfinished() -> Story:
    story = Story().lands(waiting(1)).submits(1)
    story.history.must_be_empty = True
    return story


@pytest.mark.parametrize("name", BAD)
def test_the_checker_sees(name: str) -> None:
    story, text = BAD[name]
    story().finds(text)
