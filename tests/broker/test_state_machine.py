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
from osqueue_broker.queue.mutation import FOR_JOB, Mutation
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
CLAIM_MANY = st.tuples(st.lists(st.sampled_from(TYPES), max_size=2), st.integers(1, 4))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(TYPES), st.sampled_from((None, 0, 1, 3))),
        st.tuples(st.just("submit many"), st.lists(st.sampled_from(TYPES), min_size=1, max_size=5), worker),
        st.tuples(st.just("claim"), st.lists(st.sampled_from(TYPES), max_size=2), worker),
        st.tuples(st.just("wait"), st.lists(st.sampled_from(TYPES), max_size=2), worker),
        st.tuples(st.just("claim many"), CLAIM_MANY, worker),
        st.tuples(st.just("wait many"), CLAIM_MANY, worker),
        st.tuples(st.just("hang up"), st.integers(0, 3), worker),
        st.tuples(st.sampled_from(("beat many", "complete many")), st.lists(number, min_size=1), worker),
        st.tuples(st.sampled_from(("beat", "complete", "retry", "bury", "lose")), number, worker),
        st.tuples(st.sampled_from(("requeue", "delete")), number, worker),
        st.tuples(st.just("pass"), st.floats(0, 12), worker),
        st.tuples(st.just("reopen"), number, worker),
    ),
    max_size=60,
)

LIST = Mutation(operations.LIST_JOBS, models.ListJobs())
HEAD = write_document(HEADER, QueueState(RULES))


def named(number: int) -> str:
    """The id of a job, as a batch counts them up."""
    return f"j{number:012x}"


class Model:
    """Jobs in a list of dicts; every operation a search through it. So are the claims that wait."""

    def __init__(self) -> None:
        self.live: list[dict[str, Any]] = []
        self.dead: list[dict[str, Any]] = []
        self.waiting: list[dict[str, Any]] = []
        self.late: list[tuple[str, list[str]]] = []
        self.completed = 0

    def submit(self, type: str, max_attempts: int | None, id: str) -> None:
        self.live.append({"id": id, "type": type, "max": max_attempts, "attempts": 0, "worker": None})

    def claim_many(self, types: list[str], limit: int, worker: str, served: float) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = []
        while len(jobs) < limit and (job := self.claim(types, worker, served)) is not None:
            jobs.append(job)
        return jobs

    def serve(self, served: float) -> None:
        """Give claimable jobs, oldest first, to those who have waited longest for them."""
        for job in self.live:
            wanted = [claim for claim in self.waiting if self.fits(job, claim["types"])]
            if not job["worker"] and wanted:
                claim = wanted[0]
                self.waiting.remove(claim)
                jobs = self.claim_many(claim["types"], claim["limit"], claim["worker"], served)
                self.late.append((claim["id"], [job["id"] for job in jobs]))

    @staticmethod
    def fits(job: dict[str, Any], types: list[str]) -> bool:
        return not types or bool(job["type"] and job["type"] in types)

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
            if not job["worker"] and self.fits(job, types):
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
    state, model, served, made, tokens = QueueState(RULES), Model(), 0.0, 0, 0
    late: list[tuple[str, list[str | None]]] = []

    def do(operation: Any, request: Any) -> Any:
        nonlocal tokens
        tokens += 1
        makes_job = operation in (operations.SUBMIT_JOB, operations.SUBMIT_JOBS)
        new_id = named(made) if makes_job else f"token {tokens}"
        applied = apply(state, [Mutation(operation, request, new_id)], Now(1, served))
        late.extend((claim.new_id, ids_in(answer)) for claim, answer in applied.late)
        return applied.answers[0]

    for name, what, who in steps:
        # A worker that is alive keeps its lease.
        goes_first = name in ("beat", "complete", "retry", "bury", "beat many", "complete many")
        if not goes_first and name not in ("pass", "hang up"):
            model.expire(served)
            model.serve(served)
        if name == "submit":
            answer = do(
                operations.SUBMIT_JOB,
                models.SubmitJob(payload=Raw(b"%d" % made), type=what, max_attempts=who),
            )
            assert answer.job_id == named(made)
            model.submit(what, who, named(made))
            made += 1
        elif name == "submit many":
            jobs = tuple(
                models.NewJob(payload=Raw(b"%d" % (made + place)), type=kind)
                for place, kind in enumerate(what)
            )
            answer = do(operations.SUBMIT_JOBS, models.SubmitJobs(jobs=jobs))
            ids = [named(made + place) for place in range(len(what))]
            assert [result.job_id for result in answer.results] == ids
            for kind, id in zip(what, ids, strict=True):
                model.submit(kind, None, id)
            made += len(what)
        elif name in ("claim", "wait", "claim many", "wait many"):
            types, limit = what if name.endswith("many") else (what, 1)
            wait = 60.0 if name.startswith("wait") else None
            if name.endswith("many"):
                many = models.ClaimJobs(worker_id=who, types=tuple(types), limit=limit, wait=wait)
                answer = do(operations.CLAIM_JOBS, many)
            else:
                one = models.ClaimJob(worker_id=who, types=tuple(types), wait=wait)
                answer = do(operations.CLAIM_JOB, one)
            claimed = model.claim_many(types, limit, who, served)
            if wait and not claimed:
                assert answer is FOR_JOB
                claim = {"id": f"token {tokens}", "types": types, "limit": limit, "worker": who}
                model.waiting.append(claim)
            else:
                assert ids_in(answer) == [job["id"] for job in claimed]
            for given, job in zip(claims_in(answer), claimed, strict=True):
                assert int(bytes(given.payload)) == int(job["id"][1:], 16)  # type: ignore[arg-type]  # it has one
                assert given.attempt == job["attempts"]
        elif name == "hang up":
            for claim in model.waiting[what : what + 1]:
                model.waiting.remove(claim)
                state.waiting_claims.remove(claim["id"])
        elif name in ("beat many", "complete many"):
            leases = tuple(models.Lease(job_id=named(each)) for each in what)
            if name == "beat many":
                answer = do(operations.HEARTBEAT_JOBS, models.LeasedJobs(worker_id=who, jobs=leases))
            else:
                answer = do(operations.COMPLETE_JOBS, models.LeasedChanges(worker_id=who, jobs=leases))
            for each, result in zip(what, answer.results, strict=True):
                found = model.leased(named(each), who)
                if isinstance(found, type):
                    assert result.error.tag == found.__name__
                    continue
                assert result.error is None
                if name == "beat many":
                    found |= {"deadline": served + 10, "known": 1}
                else:
                    model.live.remove(found)
                    model.completed += 1
            model.expire(served)
        elif goes_first:
            id = named(what)
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
            running = [job for job in model.live if job["id"] == named(what) and job["worker"]]
            for job in running:
                lost = undelivered(models.ClaimJob(worker_id=who), state.jobs.get(job["id"]).claimed())  # type: ignore[union-attr]  # it is live
                assert lost is not None
                applied = apply(state, [lost], Now(1, served))
                assert applied.has_changed == (not job["known"])
                late.extend((claim.new_id, ids_in(answer)) for claim, answer in applied.late)
                if not job["known"]:
                    job |= {"worker": None, "attempts": job["attempts"] - 1}
        elif name in ("requeue", "delete"):
            operation = operations.REQUEUE_DEAD if name == "requeue" else operations.DELETE_DEAD
            answer = do(operation, models.DeadJobRef(job_id=named(what)))
            dead = next((job for job in model.dead if job["id"] == named(what)), None)
            assert isinstance(answer, JobNotFoundError) == (dead is None)
            if dead:
                model.dead.remove(dead)
                if name == "requeue":
                    model.live.append({**dead, "attempts": 0, "worker": None})
        elif name == "reopen":  # another leader: every running job gets a fresh full lease
            do(operations.GET_STATS, models.Empty())
            _, state = read_document(write_document(HEADER, state), RULES, Now(1, served))
            model.waiting.clear()
            for job in model.live:
                job |= {"deadline": served + 10, "known": 0}
        elif name == "pass":
            served += what
        else:
            raise AssertionError(name)
        if name not in ("pass", "hang up"):
            model.serve(served)
        assert late == model.late
        assert len(state.waiting_claims) == len(model.waiting)
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


def claims_in(answer: Any) -> tuple[models.ClaimedJob, ...]:
    if isinstance(answer, models.ClaimedJobs):
        return answer.jobs
    return (answer,) if isinstance(answer, models.ClaimedJob) and answer.job_id else ()


def ids_in(answer: Any) -> list[str | None]:
    return [claim.job_id for claim in claims_in(answer)]


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
