"""`queue.apply` against a model that is nothing but a list, whatever is asked of it in whatever order."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from osqueue_broker.queue.apply import Mutation, apply
from osqueue_broker.queue.document import read_document, write_document
from osqueue_broker.queue.rules import Now, Rules
from osqueue_broker.queue.state import QueueState
from osqueue_broker.queue.terms import EMPTY
from osqueue_client import models, operations
from osqueue_client.errors import JobNotFoundError, LeaseLostError, OsqueueError

RULES = Rules(heartbeat_timeout=10, max_attempts=2)
HEADER = EMPTY.takeover(commit_id="c", wall_ms=1, broker="b:1")
TYPES = ("", "a", "b")
number = st.integers(0, 12)
worker = st.sampled_from(("w", "v"))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(TYPES), st.sampled_from((None, 0, 1, 3))),
        st.tuples(st.just("claim"), st.lists(st.sampled_from(TYPES), max_size=2), worker),
        st.tuples(st.sampled_from(("beat", "complete", "retry", "bury")), number, worker),
        st.tuples(st.sampled_from(("requeue", "delete")), number, worker),
        st.tuples(st.just("pass"), st.floats(0, 12), worker),
        st.tuples(st.just("reopen"), number, worker),
    ),
    max_size=60,
)


class Model:
    """Jobs in a list of dicts; every operation a search through it."""

    def __init__(self) -> None:
        self.live: list[dict[str, Any]] = []
        self.dead: list[dict[str, Any]] = []
        self.completed = 0

    def end_attempt(self, job: dict[str, Any], *, may_retry: bool) -> None:
        limit = 2 if job["max"] is None else max(job["max"], 1)
        job["worker"] = None
        if not may_retry or job["attempts"] >= limit:
            self.live.remove(job)
            self.dead.append(job)

    def expire(self, served: float) -> None:
        due = [job for job in self.live if job["worker"] and job["deadline"] <= served]
        # The order of death is that of the deadlines, then of the list.
        for job in sorted(due, key=lambda job: job["deadline"]):
            self.end_attempt(job, may_retry=True)

    def claim(self, types: list[str], worker: str, served: float) -> dict[str, Any] | None:
        for job in self.live:
            if not job["worker"] and (not types or (job["type"] and job["type"] in types)):
                job |= {"worker": worker, "attempts": job["attempts"] + 1, "deadline": served + 10}
                return job
        return None

    def leased(self, id: str, worker: str) -> dict[str, Any] | type[OsqueueError]:
        job = next((job for job in self.live if job["id"] == id), None)
        if job is None:
            return JobNotFoundError
        return job if job["worker"] == worker else LeaseLostError


def agree(state: QueueState, model: Model) -> None:
    body = write_document(HEADER, state)
    document = json.loads(body)
    assert [(j["id"], j["attempts"], j.get("workerId"), j["status"]) for j in document["jobs"]] == [
        (j["id"], j["attempts"], j["worker"], "in_progress" if j["worker"] else "unclaimed")
        for j in model.live
    ]
    assert [j["id"] for j in document["deadJobs"]] == [j["id"] for j in model.dead]
    assert document["completedTotal"] == state.completed_total == model.completed
    running = sum(bool(job["worker"]) for job in model.live)
    assert (len(state.jobs), state.in_progress, state.unclaimed) == (
        len(model.live), running, len(model.live) - running,
    )  # fmt: skip
    assert len(state.dead) == len(model.dead)
    header, again = read_document(body, RULES, Now(1, 0))
    assert header == HEADER
    assert write_document(header, again) == body
    assert (again.in_progress, again.unclaimed) == (state.in_progress, state.unclaimed)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_the_queue_does_what_a_list_would(steps: list[tuple[str, Any, Any]]) -> None:
    state, model, served, made = QueueState(RULES), Model(), 0.0, 0

    def do(operation: Any, request: Any) -> Any:
        applied = apply(state, [Mutation(operation, request, f"j{made}")], Now(1, served))
        return applied.answers[0]

    for name, what, who in steps:
        model.expire(served)
        if name == "submit":
            answer = do(
                operations.SUBMIT_JOB,
                models.SubmitJob(payload=Raw(b"%d" % made), type=what, max_attempts=who),
            )
            assert answer.job_id == f"j{made}"
            model.live.append({"id": f"j{made}", "type": what, "max": who, "attempts": 0, "worker": None})
            made += 1
        elif name == "claim":
            answer = do(operations.CLAIM_JOB, models.ClaimJob(worker_id=who, types=tuple(what)))
            job = model.claim(what, who, served)
            assert answer.job_id == (job["id"] if job else None)
            if job:
                assert bytes(answer.payload) == job["id"][1:].encode()
                assert answer.attempt == job["attempts"]
        elif name in ("beat", "complete", "retry", "bury"):
            id = f"j{what}"
            leased = models.LeasedJob(job_id=id, worker_id=who)
            fail = models.FailJob(
                job_id=id, worker_id=who, error=models.JobError(type="E", message="m"), retry=name == "retry"
            )
            operation = {"beat": operations.HEARTBEAT, "complete": operations.COMPLETE_JOB}.get(
                name, operations.FAIL_JOB
            )
            answer = do(operation, fail if operation is operations.FAIL_JOB else leased)
            found = model.leased(id, who)
            if isinstance(found, type):
                assert type(answer) is found
            elif name == "beat":
                found["deadline"] = served + 10
            elif name == "complete":
                model.live.remove(found)
                model.completed += 1
            else:
                model.end_attempt(found, may_retry=name == "retry")
        elif name in ("requeue", "delete"):
            operation = operations.REQUEUE_DEAD if name == "requeue" else operations.DELETE_DEAD
            answer = do(operation, models.DeadJobRef(job_id=f"j{what}"))
            dead = next((job for job in model.dead if job["id"] == f"j{what}"), None)
            assert isinstance(answer, JobNotFoundError) == (dead is None)
            if dead:
                model.dead.remove(dead)
                if name == "requeue":
                    model.live.append({**dead, "attempts": 0, "worker": None})
        elif name == "reopen":  # another leader: every running job gets a fresh full lease
            do(operations.GET_STATS, models.Empty())
            _, state = read_document(write_document(HEADER, state), RULES, Now(1, served))
            for job in model.live:
                job["deadline"] = served + 10
        else:
            served += what
            model.expire(served)
            do(operations.GET_STATS, models.Empty())
        agree(state, model)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_the_same_batch_gives_the_same_bytes(steps: list[tuple[str, Any, Any]]) -> None:
    batch = [
        Mutation(operations.SUBMIT_JOB, models.SubmitJob(payload=Raw(b"1"), type=what), f"j{n}")
        if name == "submit"
        else Mutation(operations.CLAIM_JOB, models.ClaimJob(worker_id=str(who)))
        for n, (name, what, who) in enumerate(steps)
    ]
    bodies = set()
    for size in (1, 7, 1000):
        state = QueueState(RULES)
        for at in range(0, len(batch), size):
            apply(state, batch[at : at + size], Now(1, 0))
        bodies.add(write_document(HEADER, state))
    assert len(bodies) == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(500, 1200), st.integers(1, 7))
def test_long_queues_stay_in_order_across_blocks(length: int, step: int) -> None:
    state = QueueState(RULES)
    submits = [
        Mutation(operations.SUBMIT_JOB, models.SubmitJob(payload=Raw(b"1"), type="t"), f"j{n}")
        for n in range(length)
    ]
    apply(state, submits, Now(1, 0))
    claim = Mutation(operations.CLAIM_JOB, models.ClaimJob(worker_id="w"))
    claimed = [answer.job_id for answer in apply(state, [claim] * length, Now(1, 0)).answers]
    assert claimed == [f"j{n}" for n in range(length)]
    gone = set(claimed[::step])
    done = [
        Mutation(operations.COMPLETE_JOB, models.LeasedJob(job_id=id, worker_id="w"))
        for id in claimed[::step]
    ]
    apply(state, done, Now(1, 0))
    left = [id for id in claimed if id not in gone]
    assert [job["id"] for job in json.loads(write_document(HEADER, state))["jobs"]] == left
    again = apply(state, [claim] * (len(left) + 1), Now(1, 10)).answers
    assert [answer.job_id for answer in again] == [*left, None]
