"""Requests with an id: a repeat gets the first answer, and what is remembered for that stays small."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from broker.support import WIRES, FaultyStore, Refused, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from osqueue_broker import BrokerServer
from osqueue_broker.queue import once, sessions
from osqueue_broker.queue.apply import apply
from osqueue_broker.queue.document import read_document, write_document
from osqueue_broker.queue.mutation import Mutation
from osqueue_broker.queue.rules import Now, Rules
from osqueue_broker.queue.state import QueueState
from osqueue_broker.queue.terms import EMPTY
from osqueue_client import models, operations
from osqueue_client.errors import (
    BrokerProtocolError,
    JobNotFoundError,
    LeaseLostError,
    OsqueueError,
    QueueFullError,
    RequestExpiredError,
)
from osqueue_client.models import ClaimedJob, Model, RequestId
from osqueue_client.operations import AnyOperation
from osqueue_storage import MemoryBackend

RULES = Rules(heartbeat_timeout=10, max_attempts=3)
HEADER = EMPTY.takeover(commit_id="c", wall_ms=1, broker="b:1")
ERROR = models.JobError(type="E", message="m")


class Queue:
    """A queue and a client of it that counts its requests."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.state = QueueState(rules)
        self.served = 0.0
        self.has_changed = False
        self._made = 0

    def ask(self, operation: AnyOperation, number: int | None = None, **fields: Any) -> Any:
        """Ask in a batch of its own. `number` is that of the request's id, if it has one."""
        [answer] = self.batch(self.mutation(operation, number, **fields))
        return answer

    def mutation(
        self,
        operation: AnyOperation,
        number: int | None = None,
        *,
        lowest: int = 1,
        session: str = "s",
        age_ms: int = 0,
        **fields: Any,
    ) -> Mutation:
        self._made += 1
        if number is not None:
            fields["request_id"] = RequestId(session=session, number=number, lowest=lowest, age_ms=age_ms)
        return Mutation(operation, operation.request(**fields), f"id-{self._made}")

    def batch(self, *mutations: Mutation) -> list[Any]:
        applied = apply(self.state, mutations, Now(1, self.served))
        self.has_changed = applied.has_changed
        return applied.answers

    def submit(self, number: int | None = None, **fields: Any) -> Any:
        return self.ask(operations.SUBMIT_JOB, number, payload=Raw(b'{"n": 1.50}'), **fields)

    def claim(self, number: int | None = None, worker_id: str = "w", **fields: Any) -> Any:
        return self.ask(operations.CLAIM_JOB, number, worker_id=worker_id, **fields)

    def take_over(self) -> None:
        """Go on as the next leader does."""
        _, self.state = read_document(self.body(), self.state.rules, Now(1, 0))
        self.served = 0.0

    def body(self) -> bytes:
        return write_document(HEADER, self.state)

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body())
        return document


@pytest.fixture
def queue() -> Queue:
    return Queue()


# The first answer


def test_a_repeated_submit_makes_no_second_job(queue: Queue) -> None:
    first = queue.submit(1)
    assert queue.submit(1, age_ms=100) == first
    assert not queue.has_changed
    queue.take_over()
    assert queue.submit(1, age_ms=200) == first
    assert [job["id"] for job in queue.document()["jobs"]] == [first.job_id]
    assert queue.submit(2) != first


def test_a_repeat_in_the_batch_of_the_first_gets_the_same_answer(queue: Queue) -> None:
    submit = queue.mutation(operations.SUBMIT_JOB, 1)
    first, second = queue.batch(submit, replace(submit, new_id="other"))
    assert first == second
    claim = queue.mutation(operations.CLAIM_JOB, 2, worker_id="w")
    first, second = queue.batch(claim, replace(claim, new_id="other"))
    assert first == second
    assert first.lease_token == claim.new_id
    end = queue.mutation(operations.COMPLETE_JOB, 3, job_id=first.job_id, worker_id="w")
    assert queue.batch(end, end) == [models.Empty()] * 2
    assert queue.state.completed_total == 1


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_a_repeated_claim_gets_its_lease_again_to_the_letter(queue: Queue, is_taken_over: bool) -> None:
    queue.submit(type="t")
    queue.submit()
    first = queue.claim(1)
    assert first.lease_token
    assert (first.attempt, first.type, bytes(first.payload)) == (1, "t", b'{"n": 1.50}')
    if is_taken_over:
        queue.take_over()
    again = queue.claim(1, age_ms=10)
    assert again == first
    assert bytes(again.payload) == bytes(first.payload)
    assert not queue.has_changed
    assert (queue.state.in_progress, queue.state.unclaimed) == (1, 1)


def test_a_repeated_claim_renews_its_lease(queue: Queue) -> None:
    queue.submit()
    first = queue.claim(1)
    queue.served = 9
    assert queue.claim(1, age_ms=9_000) == first
    queue.served = 18
    assert queue.claim(2) == ClaimedJob()
    queue.served = 19
    assert queue.claim(2).attempt == 2


def test_a_repeated_claim_whose_lease_is_over_is_done_anew(queue: Queue) -> None:
    first_job, second_job = queue.submit().job_id, queue.submit().job_id
    first = queue.claim(1)
    queue.ask(operations.COMPLETE_JOB, job_id=first_job, worker_id="w")
    again = queue.claim(1, age_ms=10)
    assert (first.job_id, again.job_id) == (first_job, second_job)
    assert again.lease_token != first.lease_token
    assert queue.claim(1, age_ms=20) == again
    queue.served = 10  # expired, and claimed anew
    assert queue.claim(1, age_ms=10_000).attempt == 2
    [session] = queue.document()["sessions"]
    assert len(session["answers"]) == 1
    size = queue.state.sessions.bytes
    queue.take_over()
    assert queue.state.sessions.bytes == size


def test_a_repeated_claim_that_finds_nothing_any_more_is_forgotten(queue: Queue) -> None:
    job_id = queue.submit().job_id
    queue.claim(1)
    queue.ask(operations.COMPLETE_JOB, job_id=job_id, worker_id="w")
    assert queue.claim(1, age_ms=10) == ClaimedJob()
    assert queue.document()["sessions"] == [{"id": "s", "lowest": 1, "answers": []}]


def ended(queue: Queue, operation: AnyOperation) -> tuple[dict[str, Any], type[OsqueueError]]:
    """Make a job that the operation can end; return its fields, and what it answers when there is none."""
    job_id = queue.submit().job_id
    queue.claim()
    if operation in (operations.REQUEUE_DEAD, operations.DELETE_DEAD):
        queue.ask(operations.FAIL_JOB, job_id=job_id, worker_id="w", error=ERROR, retry=False)
        return {"job_id": job_id}, JobNotFoundError
    fields: dict[str, Any] = {"job_id": job_id, "worker_id": "w"}
    if operation is operations.FAIL_JOB:
        return fields | {"error": ERROR}, LeaseLostError
    return fields, JobNotFoundError


@pytest.mark.parametrize(
    "operation",
    [operations.COMPLETE_JOB, operations.FAIL_JOB, operations.REQUEUE_DEAD, operations.DELETE_DEAD],
    ids=lambda operation: operation.name,
)
def test_what_ends_something_is_done_once(queue: Queue, operation: AnyOperation) -> None:
    fields, error = ended(queue, operation)
    assert queue.ask(operation, 1, **fields) == models.Empty()
    done = queue.body()
    assert queue.ask(operation, 1, age_ms=5, **fields) == models.Empty()
    queue.take_over()
    assert queue.ask(operation, 1, age_ms=5, **fields) == models.Empty()
    assert not queue.has_changed
    assert queue.body() == done
    assert isinstance(queue.ask(operation, 2, **fields), error)
    assert isinstance(queue.ask(operation, **fields), error)


def test_what_had_no_effect_is_not_remembered(queue: Queue) -> None:
    assert queue.claim(1) == ClaimedJob()
    done = {"job_id": "none", "worker_id": "w"}
    assert isinstance(queue.ask(operations.COMPLETE_JOB, 2, **done), JobNotFoundError)
    assert not queue.has_changed
    assert len(queue.state.sessions) == 0
    assert "sessions" not in queue.document()
    job_id = queue.submit().job_id
    assert queue.claim(1, age_ms=5).job_id == job_id
    assert queue.document()["sessions"][0]["answers"] == [[1, None, "id-4"]]


def test_clients_have_numbers_of_their_own(queue: Queue) -> None:
    assert queue.submit(1, session="one") != queue.submit(1, session="two")
    assert len(queue.state.jobs) == 2


# What is refused


def refused(answer: object, error: type[OsqueueError]) -> Any:
    assert isinstance(answer, error)
    return answer


def test_a_request_below_the_lowest_number_that_its_client_waits_for_is_never_done(queue: Queue) -> None:
    queue.submit(5, lowest=5)
    error = refused(queue.submit(4, lowest=3), RequestExpiredError)
    assert error.outcome == "unknown"
    assert not queue.has_changed
    queue.take_over()
    refused(queue.submit(4, lowest=3), RequestExpiredError)
    assert len(queue.state.jobs) == 1


def test_the_lowest_number_never_falls(queue: Queue) -> None:
    queue.submit(9, lowest=9)
    queue.submit(10, lowest=2)
    refused(queue.submit(8, lowest=2), RequestExpiredError)


def test_a_request_may_be_repeated_for_a_minute(queue: Queue) -> None:
    refused(queue.submit(1, age_ms=60_001), RequestExpiredError)
    first = queue.submit(1, age_ms=60_000)
    assert queue.submit(1, age_ms=60_000) == first
    refused(queue.submit(1, age_ms=60_001), RequestExpiredError)
    assert len(queue.state.jobs) == 1


def test_a_number_below_the_lowest_of_its_own_request_is_malformed(queue: Queue) -> None:
    error = refused(queue.submit(3, lowest=4, age_ms=99_999), BrokerProtocolError)
    assert error.field == "requestId.number"
    assert len(queue.state.jobs) == 0


def test_the_number_of_another_request_is_malformed(queue: Queue) -> None:
    job_id = queue.submit(1).job_id
    queue.claim(2)
    end = {"job_id": job_id, "worker_id": "w"}
    answers = [
        queue.claim(1),
        queue.submit(2),
        queue.ask(operations.COMPLETE_JOB, 1, **end),
        queue.ask(operations.COMPLETE_JOB, 2, **end),
    ]
    queue.ask(operations.COMPLETE_JOB, 3, **end)
    answers += [queue.claim(3), queue.submit(3)]
    assert [refused(answer, BrokerProtocolError).field for answer in answers] == ["requestId.number"] * 6
    assert (len(queue.state.jobs), queue.state.completed_total) == (0, 1)


# What is remembered


def test_only_what_may_be_asked_for_again_is_remembered(queue: Queue) -> None:
    jobs = [queue.submit(number).job_id for number in (3, 1, 2)]
    assert queue.document()["sessions"] == [
        {"id": "s", "lowest": 1, "answers": [[3, jobs[0]], [1, jobs[1]], [2, jobs[2]]]}
    ]
    claimed = queue.claim(4, lowest=3)
    queue.ask(operations.COMPLETE_JOB, 5, lowest=3, job_id=claimed.job_id, worker_id="w")
    assert queue.document()["sessions"] == [
        {"id": "s", "lowest": 3, "answers": [[3, jobs[0]], [4, None, claimed.lease_token], [5]]}
    ]
    queue.claim(6, lowest=6, types=("none",))
    assert not queue.has_changed  # it is written with the next change
    assert queue.document()["sessions"] == [{"id": "s", "lowest": 6, "answers": []}]
    queue.claim(9, lowest=9, types=("none",))
    assert queue.document()["sessions"] == [{"id": "s", "lowest": 9, "answers": []}]


def test_what_is_remembered_adds_up_to_what_is_forgotten(queue: Queue) -> None:
    queue.submit()
    for number in range(1, 400):
        queue.submit(number, session=f"é{number % 7}")
        queue.claim(number + 1000, session=f"é{number % 7}", worker_id="w")
    assert len(queue.body()) <= len(write_document(HEADER, QueueState(RULES))) + queue.state.bytes + 400
    for job in list(queue.state.jobs)[:-1]:
        queue.ask(operations.COMPLETE_JOB, job_id=job.id, worker_id="w")
    assert len(queue.body()) <= len(write_document(HEADER, QueueState(RULES))) + queue.state.bytes
    queue.served = 200
    queue.claim(types=("none",))
    assert len(queue.state.sessions) == 0
    assert queue.state.sessions.bytes == 0
    assert queue.state.bytes == sum(job.size for job in queue.state.jobs)


def test_a_session_is_kept_for_two_minutes_after_its_last_request(queue: Queue) -> None:
    first = queue.submit(1, session="old")
    queue.served = 60
    queue.submit(1, session="other")
    queue.served = 119
    assert queue.claim(2, session="old", types=("none",)) == ClaimedJob()
    queue.served = 181
    queue.claim(types=("none",))
    assert [session["id"] for session in queue.document()["sessions"]] == ["old"]
    queue.served = 238
    assert queue.submit(1, session="old") == first
    queue.served = 358
    queue.claim(types=("none",))
    assert not queue.has_changed
    assert "sessions" not in queue.document()


def test_a_takeover_gives_every_session_two_minutes(queue: Queue) -> None:
    queue.submit(1)
    queue.served = 100
    queue.take_over()
    queue.served = 119
    queue.claim(types=("none",))
    assert len(queue.state.sessions) == 1
    queue.served = 120
    queue.claim(types=("none",))
    assert len(queue.state.sessions) == 0


def test_a_client_that_never_moves_its_lowest_number_is_stopped(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "ANSWERS_LIMIT", 3)
    first, *_ = [queue.submit(number) for number in (1, 2, 3)]
    error = refused(queue.submit(4), QueueFullError)
    assert error.outcome == "not_applied"
    assert queue.submit(1) == first
    assert queue.submit(4, lowest=2).job_id
    assert len(queue.state.jobs) == 4


def test_clients_without_end_are_stopped(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "SESSIONS_LIMIT", 2)
    first = queue.submit(1, session="a")
    queue.submit(1, session="b")
    refused(queue.submit(1, session="c"), QueueFullError)
    assert queue.submit(1, session="a") == first
    assert queue.submit().job_id
    queue.served = 120
    assert queue.submit(1, session="c").job_id


def test_answers_without_end_are_stopped_by_their_bytes_and_whatever_ends_a_job_is_not(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue.submit().job_id
    queue.claim()
    first = queue.submit(1, session="a")
    monkeypatch.setattr(once, "BYTES_LIMIT", queue.state.sessions.bytes + 1)
    queue.submit(1, session="b")
    for answer in (queue.submit(1, session="c"), queue.claim(1, session="d")):
        assert refused(answer, QueueFullError).retry_after == 1.0
    assert queue.submit(1, session="a") == first
    done = queue.ask(operations.COMPLETE_JOB, 1, session="e", job_id=job_id, worker_id="w")
    assert done == models.Empty()
    queue.served = 120
    assert queue.submit(1, session="c").job_id


def test_a_full_document_takes_no_claim_that_it_could_not_remember_and_every_end() -> None:
    limit = 12_000
    queue = Queue(Rules(max_document_bytes=limit))
    jobs = []
    while isinstance(answer := queue.submit(), models.JobSubmitted):
        jobs.append(answer.job_id)
    refused(answer, QueueFullError)
    number = 0
    while isinstance(answer := queue.claim(number := number + 1), ClaimedJob) and answer.job_id:
        assert len(queue.body()) <= limit
    error = refused(answer, QueueFullError)
    assert error.outcome == "not_applied"
    assert queue.claim().job_id
    assert queue.ask(operations.COMPLETE_JOB, number, job_id=jobs[0], worker_id="w") == models.Empty()
    assert queue.claim(number + 1, lowest=number).job_id
    assert len(queue.body()) <= limit


def test_the_lowest_number_may_jump_anywhere_at_once(queue: Queue) -> None:
    for number in range(1, 50):
        queue.submit(number)
    queue.submit(2**53, lowest=2**53)
    [session] = queue.document()["sessions"]
    assert (session["lowest"], len(session["answers"])) == (2**53, 1)
    assert len(queue.body()) <= len(write_document(HEADER, QueueState(RULES))) + queue.state.bytes + 60


# Whatever is asked

number = st.integers(1, 6)
session = st.sampled_from(("s", "t" * 64, '"é\n'))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("submit", "claim", "complete", "fail")), session, st.none()),
        st.tuples(st.just("repeat"), session, number),
        st.tuples(st.just("done with"), session, number),
        st.tuples(st.just("pass"), session, st.integers(0, 12)),
        st.tuples(st.just("take over"), session, st.none()),
    ),
    max_size=50,
)


class Client:
    """What a client remembers of its own requests."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.sent: dict[int, tuple[AnyOperation, dict[str, Any]]] = {}
        self.answers: dict[int, Model | OsqueueError] = {}
        self.number = 0
        self.lowest = 1

    def ids(self, number: int) -> dict[str, Any]:
        return {"session": self.session, "number": number, "lowest": min(self.lowest, number)}


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_every_repeat_gets_the_first_answer_and_has_no_second_effect(
    steps: list[tuple[str, str, int | None]],
) -> None:
    queue = Queue(Rules(heartbeat_timeout=10, max_attempts=100))
    clients: dict[str, Client] = {}
    leases: dict[str, ClaimedJob] = {}
    for name, who, what in steps:
        client = clients.setdefault(who, Client(who))
        if name == "pass":
            queue.served += what or 0
        elif name == "take over":
            queue.take_over()
        elif name == "done with":
            client.lowest = min(max(client.lowest, what or 1), client.number + 1)
        elif name == "repeat" and what in client.answers:
            assert what is not None
            operation, fields = client.sent[what]
            first = client.answers[what]
            before = len(queue.state.jobs), queue.state.completed_total, len(queue.state.dead)
            answer = queue.ask(operation, **client.ids(what), **fields)
            kept = queue.state.sessions.get(who)
            if what < (kept.lowest if kept else 1):
                assert isinstance(answer, RequestExpiredError)
            elif isinstance(first, OsqueueError) or first == ClaimedJob():
                client.answers[what] = answer  # it had no effect: this one counts
            elif isinstance(first, ClaimedJob):
                if answer != first:  # then that lease was over
                    client.answers[what] = answer
                    job = queue.state.jobs.get(str(first.job_id))
                    assert job is None or job.lease_token != first.lease_token
            else:
                assert answer == first
                assert (len(queue.state.jobs), queue.state.completed_total, len(queue.state.dead)) == before
            if isinstance(answer, ClaimedJob):
                leases[who] = answer
        elif name in ("submit", "claim", "complete", "fail"):
            client.number += 1
            fields = {"payload": Raw(b"1")} if name == "submit" else {"worker_id": who}
            if name in ("complete", "fail"):
                lease = leases.get(who, ClaimedJob())
                fields |= {"job_id": lease.job_id or "none", "lease_token": lease.lease_token}
            if name == "fail":
                fields["error"] = ERROR
            operation = {
                "submit": operations.SUBMIT_JOB,
                "claim": operations.CLAIM_JOB,
                "complete": operations.COMPLETE_JOB,
                "fail": operations.FAIL_JOB,
            }[name]
            answer = queue.ask(operation, **client.ids(client.number), **fields)
            client.sent[client.number] = operation, fields
            client.answers[client.number] = answer
            if isinstance(answer, ClaimedJob):
                leases[who] = answer
        state, body = queue.state, queue.body()
        room = len(write_document(HEADER, QueueState(RULES))) + state.bytes
        assert len(body) <= room + len(state.jobs) + len(state.dead)
        header, again = read_document(body, RULES, Now(1, 0))
        assert write_document(header, again) == body
        assert again.sessions.bytes == state.sessions.bytes
        tokens = [job.lease_token for job in state.jobs if job.status == "in_progress"]
        assert len(set(tokens)) == len(tokens)


# The document


def test_a_broker_that_keeps_what_it_does_not_know_keeps_the_answers(queue: Queue) -> None:
    job_id = queue.submit(1).job_id
    document = queue.document()
    document["jobs"].append({"id": "theirs", "status": "unclaimed", "createdAt": 1, "attempts": 0})
    _, queue.state = read_document(json.dumps(document).encode(), RULES, Now(1, 0))
    assert queue.submit(1, age_ms=9_000).job_id == job_id
    assert len(queue.state.jobs) == 2


def test_the_answers_limit_is_large_and_the_document_stays_readable(queue: Queue) -> None:
    assert sessions.ANSWERS_LIMIT >= 10_000
    for number in range(1, 600):
        queue.submit(number, session=f"s{number}")
    queue.take_over()
    assert len(queue.state.sessions) == 599
    assert queue.submit(1, session="s1").job_id == "id-1"


# On every wire


@pytest.mark.parametrize("name", WIRES)
async def test_a_repeat_after_a_takeover_gets_the_first_answer(name: str) -> None:
    store = FaultyStore()
    id = {"session": "0123456789abcdef", "number": 1, "lowest": 1}
    ids = [id, id | {"number": 2}, id | {"number": 3}]
    repeats = [each | {"ageMs": 1_000} for each in ids]
    async with BrokerServer(storage=store, port=0) as server, opened(server, name) as wire:
        assert {"requestIds", "leaseTokens"} <= set((await wire.call("getStats"))["features"])
        submitted = await wire.call("submitJob", payload="[1.0]", requestId=ids[0])
        assert await wire.call("submitJob", payload="[1.0]", requestId=repeats[0]) == submitted
        claimed = await wire.call("claimJob", workerId="w", requestId=ids[1])
        assert await wire.call("claimJob", workerId="w", requestId=repeats[1]) == claimed
    async with BrokerServer(storage=store, port=0) as server, opened(server, name) as wire:
        assert await wire.call("submitJob", payload="[1.0]", requestId=repeats[0]) == submitted
        assert await wire.call("claimJob", workerId="w", requestId=repeats[1]) == claimed
        end = {"jobId": submitted["jobId"], "workerId": "w", "leaseToken": claimed["leaseToken"]}
        for request_id in (ids[2], repeats[2]):
            assert await wire.call("completeJob", requestId=request_id, **end) == {}
        assert (await wire.call("getStats"))["completedTotal"] == 1
        with pytest.raises(Refused) as refused:
            await wire.call("submitJob", payload="1", requestId=ids[0] | {"ageMs": 60_001})
        assert refused.value.tag == "RequestExpiredError"
        assert refused.value.status in (410, 409, None)
        assert refused.value.code in ("aborted", None)


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"session": ""}, "requestId.session"),
        ({"session": "s" * 65}, "requestId.session"),
        ({"number": 0}, "requestId.number"),
        ({"number": -1}, "requestId.number"),
        ({"number": 2**53 + 1}, "requestId.number"),
        ({"number": 1, "lowest": 2}, "requestId.number"),
        ({"lowest": 0}, "requestId.lowest"),
        ({"ageMs": -1}, "requestId.ageMs"),
        ({"ageMs": 2**53 + 1}, "requestId.ageMs"),
    ],
)
async def test_a_malformed_id_is_refused_by_the_name_of_its_field(
    server: BrokerServer, name: str, wrong: dict[str, Any], field: str
) -> None:
    id = {"session": "s", "number": 1, "lowest": 1} | wrong
    async with opened(server, name) as wire:
        for method, fields in (("submitJob", {"payload": "1"}), ("claimJob", {"workerId": "w"})):
            with pytest.raises(Refused) as refused:
                await wire.call(method, requestId=id, **fields)
            assert refused.value.tag == "BrokerProtocolError"
            assert refused.value.status in (400, None)
            assert field in refused.value.message
        assert (await wire.call("getStats")).get("total", 0) == 0


async def test_a_number_that_no_float_can_hold_is_refused_and_ends_nobodys_service() -> None:
    async with (
        BrokerServer(storage=MemoryBackend(), port=0) as server,
        httpx.AsyncClient(base_url=f"http://{server.address}", trust_env=False) as http,
    ):
        for field in ("number", "lowest", "ageMs"):
            id = {"session": "s", "number": 1, "lowest": 1} | {field: 10**400}
            answer = await http.post("/v1/jobs", json={"payload": 1, "requestId": id})
            assert answer.status_code == 400, answer.text
        assert (await http.post("/v1/jobs", json={"payload": 1})).status_code == 200
