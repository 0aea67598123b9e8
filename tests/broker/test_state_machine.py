"""`queue.apply` against a model that is nothing but a list, whatever is asked of it in whatever order."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from osqueue_broker.queue.apply import Applied, answer_without_commit, apply
from osqueue_broker.queue.claims import undelivered
from osqueue_broker.queue.document import read_document, write_document
from osqueue_broker.queue.mutation import Mutation
from osqueue_broker.queue.rules import Now, Rules
from osqueue_broker.queue.state import QueueState
from osqueue_broker.queue.terms import EMPTY
from osqueue_client import models, operations
from osqueue_client.errors import BrokerProtocolError, JobNotFoundError, LeaseLostError, OsqueueError

RULES = Rules(heartbeat_timeout=10, max_attempts=2)
HEADER = EMPTY.takeover(commit_id="c", wall_ms=1, broker="b:1")
TYPES = ("", "a", "b")
number = st.integers(0, 12)
worker = st.sampled_from(("w", "v"))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(TYPES), st.sampled_from((None, 0, 1, 3))),
        st.tuples(st.just("claim"), st.lists(st.sampled_from(TYPES), max_size=2), worker),
        st.tuples(st.sampled_from(("beat", "complete", "retry", "bury", "lose")), number, worker),
        st.tuples(st.sampled_from(("requeue", "delete")), number, worker),
        st.tuples(st.just("pass"), st.floats(0, 12), worker),
        st.tuples(st.just("reopen"), number, worker),
    ),
    max_size=60,
)

LIST = Mutation(operations.LIST_JOBS, models.ListJobs())
HEAD = write_document(HEADER, QueueState(RULES))


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
                job |= {
                    "worker": worker,
                    "attempts": job["attempts"] + 1,
                    "deadline": served + 10,
                    "known": 0,
                }
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
    [listed] = answer_without_commit(state, [LIST], Now(1, 0)).answers
    assert isinstance(listed, models.JobList)
    assert [(j.id, j.attempts, j.worker_id) for j in listed.jobs] == [
        (j["id"], j["attempts"], j["worker"]) for j in model.live
    ]
    assert (listed.in_progress, listed.completed_total) == (running, model.completed)
    assert len(body) <= len(HEAD) + state.bytes + len(state.jobs) + len(state.dead)
    assert len(state._leases) <= 2 * running + 66
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
        goes_first = name in ("beat", "complete", "retry", "bury")  # a worker that is alive keeps its lease
        if not goes_first and name != "pass":
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
        elif goes_first:
            id = f"j{what}"
            leased = models.LeasedChange(job_id=id, worker_id=who)
            fail = models.FailJob(
                job_id=id, worker_id=who, error=models.JobError(type="E", message="m"), retry=name == "retry"
            )
            operation: operations.AnyOperation = {
                "beat": operations.HEARTBEAT,
                "complete": operations.COMPLETE_JOB,
            }.get(name, operations.FAIL_JOB)
            answer = do(operation, fail if operation is operations.FAIL_JOB else leased)
            found = model.leased(id, who)
            if isinstance(found, type):
                assert type(answer) is found
            elif name == "beat":
                found |= {"deadline": served + 10, "known": 1}
            elif name == "complete":
                model.live.remove(found)
                model.completed += 1
            else:
                model.end_attempt(found, may_retry=name == "retry")
            model.expire(served)
        elif name == "lose":  # the answer to a claim without an id
            do(operations.GET_STATS, models.Empty())
            job = next((job for job in model.live if job["id"] == f"j{what}" and job["worker"]), None)
            if job:
                claim = models.ClaimJob(worker_id=who)
                lost = undelivered(claim, state.jobs.get(job["id"]).claimed())  # type: ignore[union-attr]  # it is live
                assert lost is not None
                assert apply(state, [lost], Now(1, served)).has_changed == (not job["known"])
                if not job["known"]:
                    job |= {"worker": None, "attempts": job["attempts"] - 1}
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
                job |= {"deadline": served + 10, "known": 0}
        else:
            served += what
        agree(state, model)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_the_same_batch_gives_the_same_bytes(steps: list[tuple[str, Any, Any]]) -> None:
    def id(n: int) -> models.RequestId | None:
        number = n // 3 + 1  # some are repeats
        return models.RequestId(session=f"s{n % 2}", number=number, lowest=max(number - 5, 1))

    batch = [
        Mutation(
            operations.SUBMIT_JOB, models.SubmitJob(payload=Raw(b"1"), type=what, request_id=id(n)), f"j{n}"
        )
        if name == "submit"
        else Mutation(
            operations.CLAIM_JOB, models.ClaimJob(worker_id=str(who), request_id=id(n)), f"token-{n}"
        )
        for n, (name, what, who) in enumerate(steps)
    ]
    # Claims come after the submits of their batch: only where they do so anyhow, batches may be cut anywhere.
    in_order = sorted(batch, key=lambda mutation: mutation.operation is operations.CLAIM_JOB)
    for mutations, sizes in ((batch, (7, 7)), (batch, (1000, 1000)), (in_order, (1, 7, 1000))):
        bodies = set()
        for size in sizes:
            state = QueueState(RULES)
            for at in range(0, len(mutations), size):
                apply(state, mutations[at : at + size], Now(1, 0))
            bodies.add(write_document(HEADER, state))
        assert len(bodies) == 1


def claimed_ids(applied: Applied) -> list[str | None]:
    claims = [answer for answer in applied.answers if isinstance(answer, models.ClaimedJob)]
    assert len(claims) == len(applied.answers)
    return [claim.job_id for claim in claims]


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
    ids = [f"j{n}" for n in range(length)]
    assert claimed_ids(apply(state, [claim] * length, Now(1, 0))) == ids
    gone = set(ids[::step])
    done = [
        Mutation(operations.COMPLETE_JOB, models.LeasedChange(job_id=id, worker_id="w")) for id in ids[::step]
    ]
    apply(state, done, Now(1, 0))
    left = [id for id in ids if id not in gone]
    assert [job["id"] for job in json.loads(write_document(HEADER, state))["jobs"]] == left
    again = apply(state, [claim] * (len(left) + 1), Now(1, 10))
    assert claimed_ids(again) == [*left, None]


def test_one_long_lease_does_not_make_the_end_of_others_slow() -> None:
    state = QueueState(RULES)
    submit = Mutation(operations.SUBMIT_JOB, models.SubmitJob(payload=Raw(b"1"), max_attempts=10_000))
    claim = Mutation(operations.CLAIM_JOB, models.ClaimJob(worker_id="w"))
    apply(state, [replace(submit, new_id="long"), replace(submit, new_id="short"), claim], Now(1, 0))
    failed = models.FailJob(job_id="short", worker_id="w", error=models.JobError(type="E", message="m"))
    for _ in range(500):
        apply(state, [claim], Now(1, 0))
        apply(state, [Mutation(operations.FAIL_JOB, failed)], Now(1, 0))
        assert len(state._leases) <= 70
    assert state.next_lease_deadline() == 10


def test_an_error_that_does_not_fit_into_the_store_is_cut_and_the_queue_goes_on() -> None:
    state = QueueState(Rules(max_document_bytes=3_000))
    submit = Mutation(operations.SUBMIT_JOB, models.SubmitJob(payload=Raw(b"1")))
    claim = Mutation(operations.CLAIM_JOB, models.ClaimJob(worker_id="w"))
    for number in range(4):
        apply(state, [replace(submit, new_id=f"j{number}"), claim], Now(1, 0))
    for number in range(4):
        error = models.JobError(type="E", message="é" * 5_000)
        failed = models.FailJob(job_id=f"j{number}", worker_id="w", error=error, retry=False)
        assert apply(state, [Mutation(operations.FAIL_JOB, failed)], Now(1, 0)).answers == [models.Empty()]
    document = json.loads(write_document(HEADER, state))
    assert len(write_document(HEADER, state)) <= 3_000
    assert [job["lastError"]["message"][:10] for job in document["deadJobs"]] == ["é" * 10] * 4


def test_a_long_error_is_kept_as_far_as_8192_characters() -> None:
    state = QueueState(RULES)
    submit = Mutation(operations.SUBMIT_JOB, models.SubmitJob(payload=Raw(b"1")), "j")
    claim = Mutation(operations.CLAIM_JOB, models.ClaimJob(worker_id="w"))
    error = models.JobError(type="E" * 300, message="m" * 9_000)
    failed = models.FailJob(job_id="j", worker_id="w", error=error, retry=False)
    apply(state, [submit, claim], Now(1, 0))
    apply(state, [Mutation(operations.FAIL_JOB, failed)], Now(1, 0))
    [dead] = state.dead
    assert dead.view().error == models.JobError(type="E" * 256, message="m" * 8_192)


@pytest.mark.parametrize(
    ("request_of", "field"),
    [
        (models.ClaimJob(worker_id="w" * 1_025), "workerId"),
        (models.ClaimJob(worker_id="w", types=("t",) * 1_001), "types"),
    ],
)
def test_a_claim_has_limits(request_of: models.ClaimJob, field: str) -> None:
    [answer] = apply(QueueState(RULES), [Mutation(operations.CLAIM_JOB, request_of)], Now(1, 0)).answers
    assert isinstance(answer, BrokerProtocolError)
    assert answer.field == field


def test_a_heartbeat_and_an_end_in_the_batch_in_which_the_lease_expires_still_count() -> None:
    state = QueueState(RULES)
    submit = Mutation(operations.SUBMIT_JOB, models.SubmitJob(payload=Raw(b"1")))
    claim = Mutation(operations.CLAIM_JOB, models.ClaimJob(worker_id="w"))
    apply(state, [replace(submit, new_id=id) for id in "abcd"] + [claim] * 4, Now(1, 0))
    lease = {id: models.LeasedChange(job_id=id, worker_id="w") for id in "abcd"}
    batch = [
        Mutation(operations.CLAIM_JOB, models.ClaimJob(worker_id="other")),
        Mutation(operations.HEARTBEAT, lease["b"]),
        Mutation(operations.COMPLETE_JOB, lease["c"]),
    ]
    claimed, beat, done = apply(state, batch, Now(1, 10)).answers
    assert (beat, done) == (models.Empty(), models.Empty())
    assert isinstance(claimed, models.ClaimedJob)
    assert claimed.job_id == "a"  # it and d had expired
    assert (state.in_progress, state.unclaimed, state.completed_total) == (2, 1, 1)


def test_a_listing_shows_a_heartbeat() -> None:
    state = QueueState(RULES)
    submit = Mutation(operations.SUBMIT_JOB, models.SubmitJob(payload=Raw(b"1")), "j")
    claim = Mutation(operations.CLAIM_JOB, models.ClaimJob(worker_id="w"))
    apply(state, [submit, claim], Now(1, 0))
    apply(state, [Mutation(operations.HEARTBEAT, models.LeasedJob(job_id="j", worker_id="w"))], Now(2, 0))
    [listed] = apply(state, [LIST], Now(2, 0)).answers
    assert isinstance(listed, models.JobList)
    assert [job.heartbeat for job in listed.jobs] == [2]
