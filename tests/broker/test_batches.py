"""Many jobs in one request and one commit, each entry with an answer of its own."""

from __future__ import annotations

import asyncio
import json
import uuid
from itertools import count
from typing import Any

import pytest
from broker.support import WIRES, FaultyStore, Refused, opened, until
from msgspec import Raw

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_broker.queue import claims
from osqueue_broker.queue.apply import Applied, apply
from osqueue_broker.queue.claims import undelivered
from osqueue_broker.queue.document import read_document, write_document
from osqueue_broker.queue.ids import numbered
from osqueue_broker.queue.mutation import Mutation
from osqueue_broker.queue.rules import Now, Rules
from osqueue_broker.queue.state import QueueState
from osqueue_broker.queue.terms import EMPTY
from osqueue_client import models, operations
from osqueue_client.errors import BrokerProtocolError, QueueFullError
from osqueue_client.models import Lease, NewJob, RequestId

HEADER = EMPTY.takeover(commit_id="c", wall_ms=1, broker="b:1")


class Queue:
    """A queue that is asked for batches; what is new gets UUIDs that count."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules(heartbeat_timeout=30)
        self.state = QueueState(self.rules)
        self.served = 0.0
        self.applied = Applied([], [], [], has_changed=False)
        self._ids = count(1)

    def do(self, operation: operations.AnyOperation, **fields: Any) -> Any:
        new_id = str(uuid.UUID(int=next(self._ids) << 64))
        mutation = Mutation(operation, operation.request(**fields), new_id)
        self.applied = apply(self.state, [mutation], Now(1, self.served))
        return self.applied.answers[0]

    def submit(self, *payloads: str, type: str | None = None, **fields: Any) -> list[str | None]:
        jobs = tuple(NewJob(payload=Raw(text.encode()), type=type) for text in payloads)
        return [result.job_id for result in self.do(operations.SUBMIT_JOBS, jobs=jobs, **fields).results]

    def claim(self, limit: int, **fields: Any) -> tuple[models.ClaimedJob, ...]:
        answer = self.do(operations.CLAIM_JOBS, worker_id="w", limit=limit, **fields)
        assert isinstance(answer, models.ClaimedJobs)
        return answer.jobs

    def complete(self, *leases: Lease, **fields: Any) -> list[str | None]:
        return tags(self.do(operations.COMPLETE_JOBS, worker_id="w", jobs=leases, **fields))

    def reopen(self) -> None:
        """Have another broker lead."""
        _, self.state = read_document(write_document(HEADER, self.state), self.rules, Now(1, self.served))


def tags(answer: Any) -> list[str | None]:
    return [None if result.error is None else result.error.tag for result in answer.results]


def lease_of(job: models.ClaimedJob) -> Lease:
    return Lease(job_id=str(job.job_id), lease_token=job.lease_token)


def id(number: int) -> RequestId:
    return RequestId(session="s", number=number, lowest=1)


# The queue


def test_jobs_of_a_batch_are_added_in_order_under_ids_that_grow() -> None:
    queue = Queue()
    ids = queue.submit("1", "2", "3")
    assert ids == sorted(set(ids), key=str)
    assert [str(uuid.UUID(each)) for each in ids] == ids
    assert [(job.job_id, bytes(job.payload)) for job in queue.claim(3)] == list(  # type: ignore[arg-type]  # they have one
        zip(ids, (b"1", b"2", b"3"), strict=True)
    )


def test_ids_at_the_end_of_their_digits_begin_again_and_are_ids_still() -> None:
    ids = list(numbered("00000000-0000-4000-8000-fffffffffffe", 4))
    assert [each[-12:] for each in ids] == ["fffffffffffe", "ffffffffffff", "0" * 12, "0" * 11 + "1"]
    assert len({str(uuid.UUID(each)) for each in ids}) == 4


def test_a_batch_of_claims_gets_the_oldest_of_its_types_up_to_the_limit_under_one_token() -> None:
    queue = Queue()
    a = queue.submit("1", "2", type="a")
    queue.submit("3")
    b = queue.submit("4", type="b")
    claimed = queue.claim(10, types=("b", "a"))
    assert [job.job_id for job in claimed] == [*a, *b]
    assert len({job.lease_token for job in claimed}) == 1
    assert len(queue.claim(10)) == 1
    assert queue.claim(10) == ()
    assert not queue.applied.has_changed


def test_a_claim_without_a_limit_gets_one() -> None:
    queue = Queue()
    queue.submit("1", "2")
    assert len(queue.do(operations.CLAIM_JOBS, worker_id="w").jobs) == 1


def test_a_batch_of_claims_ends_with_the_job_that_makes_it_large() -> None:
    queue = Queue()
    payload = '"' + "x" * 300_000 + '"'
    for _ in range(3):
        queue.submit(*[payload] * 3)
    assert len(queue.claim(1000)) == 4  # those before the last one have less than 1 MiB
    assert claims.ANSWER_BYTES == 1024 * 1024
    assert len(queue.claim(1000)) == 4
    assert len(queue.claim(1000)) == 1


def test_each_lease_of_a_batch_has_its_own_answer() -> None:
    queue = Queue()
    queue.submit("1", "2", "3", "4")
    claimed = [lease_of(job) for job in queue.claim(3)]
    [other] = queue.do(operations.CLAIM_JOBS, worker_id="other").jobs
    leases = (
        claimed[0],
        Lease(job_id="nowhere"),
        Lease(job_id=str(other.job_id)),
        Lease(job_id=claimed[1].job_id, lease_token="another"),
        Lease(job_id=claimed[1].job_id),
        claimed[0],
    )
    lost, gone = "LeaseLostError", "JobNotFoundError"
    assert tags(queue.do(operations.HEARTBEAT_JOBS, worker_id="w", jobs=leases)) == [
        None, gone, lost, lost, None, None,
    ]  # fmt: skip
    assert not queue.applied.has_changed
    assert queue.complete(*leases) == [None, gone, lost, lost, None, gone]
    assert (queue.state.completed_total, queue.state.in_progress) == (2, 2)


def test_a_batch_of_heartbeats_keeps_every_lease() -> None:
    queue = Queue()
    queue.submit(*"123456")
    claimed = queue.claim(3)
    queue.claim(3)
    queue.served = 29
    queue.do(operations.HEARTBEAT_JOBS, worker_id="w", jobs=tuple(map(lease_of, claimed)))
    queue.served = 31
    assert len(queue.claim(10)) == 3
    queue.served = 59
    assert len(queue.claim(10)) == 3


def test_what_does_not_fit_is_refused_with_all_that_follows_and_a_batch_of_which_nothing_fits_as_a_whole() -> (
    None
):
    queue = Queue(Rules(max_document_bytes=4_000))
    small, large = NewJob(payload=Raw(b"1")), NewJob(payload=Raw(b'"' + b"x" * 4_000 + b'"'))
    answer = queue.do(operations.SUBMIT_JOBS, jobs=(small, small, large, small))
    assert tags(answer) == [None, None, "QueueFullError", "QueueFullError"]
    assert [result.job_id is None for result in answer.results] == [False, False, True, True]
    assert "4,000" in answer.results[2].error.message
    assert answer.results[2].error.outcome == "not_applied"
    assert len(queue.state.jobs) == 2
    assert isinstance(queue.do(operations.SUBMIT_JOBS, jobs=(large, small)), QueueFullError)
    assert len(queue.state.jobs) == 2


def test_a_repeated_batch_of_submits_gets_the_first_ids_also_from_another_leader() -> None:
    queue = Queue()
    first = queue.submit("1", "2", request_id=id(1))
    assert queue.submit("1", "2", request_id=id(1)) == first
    queue.reopen()
    assert queue.submit("1", "2", request_id=id(1)) == first
    assert len(queue.state.jobs) == 2


def test_a_repeated_batch_of_submits_that_was_refused_in_part_is_refused_in_the_same_part() -> None:
    queue = Queue(Rules(max_document_bytes=4_000))
    jobs = (
        NewJob(payload=Raw(b"1")),
        NewJob(payload=Raw(b'"' + b"x" * 4_000 + b'"')),
        NewJob(payload=Raw(b"1")),
    )
    first = queue.do(operations.SUBMIT_JOBS, jobs=jobs, request_id=id(1))
    queue.reopen()
    again = queue.do(operations.SUBMIT_JOBS, jobs=jobs, request_id=id(1))
    assert tags(again) == tags(first) == [None, "QueueFullError", "QueueFullError"]
    assert again.results[0] == first.results[0]
    assert len(queue.state.jobs) == 1


def test_a_repeated_batch_of_claims_gets_those_that_still_run_and_anew_when_none_does() -> None:
    queue = Queue()
    queue.submit(*"12345")
    first = queue.claim(3, request_id=id(1))
    assert queue.claim(3, request_id=id(1)) == first
    queue.reopen()
    assert queue.claim(3, request_id=id(1)) == first
    queue.complete(lease_of(first[1]))
    assert queue.claim(3, request_id=id(1)) == (first[0], first[2])
    queue.complete(lease_of(first[0]), lease_of(first[2]))
    assert len(queue.claim(3, request_id=id(1))) == 2
    assert queue.state.in_progress == 2


def test_a_repeated_batch_of_completions_ends_only_what_was_refused_before() -> None:
    queue = Queue()
    queue.submit(*"123")
    held = [lease_of(job) for job in queue.claim(3)]
    stranger = Lease(job_id="nowhere")
    leases = (held[0], stranger, Lease(job_id=held[1].job_id, lease_token="another"))
    first = [None, "JobNotFoundError", "LeaseLostError"]
    assert queue.complete(*leases, request_id=id(1)) == first
    queue.reopen()
    assert queue.complete(*leases, request_id=id(1)) == first
    assert queue.state.completed_total == 1
    assert queue.complete(held[0], stranger, held[1], request_id=id(1)) == [None, "JobNotFoundError", None]
    assert queue.applied.has_changed
    assert queue.complete(held[0], stranger, held[1], request_id=id(1)) == [None, "JobNotFoundError", None]
    assert (queue.state.completed_total, queue.state.in_progress) == (2, 1)


def test_a_number_of_another_batch_is_malformed() -> None:
    queue = Queue()
    queue.submit("1", "2", request_id=id(1))
    for operation, fields in (
        (operations.CLAIM_JOBS, {"worker_id": "w"}),
        (operations.COMPLETE_JOBS, {"worker_id": "w", "jobs": (Lease(job_id="j"),)}),
        (operations.SUBMIT_JOB, {}),
    ):
        answer = queue.do(operation, request_id=id(1), **fields)
        assert isinstance(answer, BrokerProtocolError)
        assert answer.field == "requestId.number"
    assert len(queue.state.jobs) == 2


@pytest.mark.parametrize("had_id", [False, True])
def test_leases_of_a_batch_whose_answer_reached_nobody_are_all_taken_back(had_id: bool) -> None:
    queue = Queue()
    ids = queue.submit(*"123")
    request_id = id(1) if had_id else None
    lost = queue.claim(3, request_id=request_id)
    mutation = undelivered(
        models.ClaimJobs(worker_id="w", request_id=request_id), models.ClaimedJobs(jobs=lost)
    )
    assert mutation is not None
    apply(queue.state, [mutation], Now(1, queue.served))
    assert len(queue.claim(3)) == (0 if had_id else 3)
    if had_id:
        queue.served = 10
        again = queue.claim(3)
        assert [(job.job_id, job.attempt) for job in again] == [(each, 1) for each in ids]


def test_a_large_batch_of_claims_with_an_id_is_taken_from_a_document_that_is_almost_full() -> None:
    queue = Queue(Rules(max_document_bytes=60_000))
    while isinstance(queue.do(operations.SUBMIT_JOB, payload=Raw(b"1")), models.JobSubmitted):
        pass
    assert len(queue.claim(1000, request_id=id(1))) > 100
    assert len(write_document(HEADER, queue.state)) < 60_000


# Over all transports


async def test_a_batch_of_jobs_lives_from_submit_to_complete(wire: Any) -> None:
    jobs = [{"payload": f'{{"n":{n}.50}}', "type": "t", "maxAttempts": n + 1} for n in range(3)]
    ids = [result["jobId"] for result in (await wire.call("submitJobs", jobs=jobs))["results"]]
    assert [str(uuid.UUID(each)) for each in ids] == ids
    listed = (await wire.call("listJobs"))["jobs"]
    assert [(job["id"], job["maxAttempts"]) for job in listed] == list(zip(ids, (1, 2, 3), strict=True))
    claimed = (await wire.call("claimJobs", workerId="w", types=["t"], limit=2))["jobs"]
    assert [(job["jobId"], job["payload"], job["type"], job["attempt"]) for job in claimed] == [
        (ids[0], '{"n":0.50}', "t", 1), (ids[1], '{"n":1.50}', "t", 1),
    ]  # fmt: skip
    leases = [{"jobId": job["jobId"], "leaseToken": job["leaseToken"]} for job in claimed]
    leases.append({"jobId": ids[2]})
    for method in ("heartbeatJobs", "completeJobs"):
        results = (await wire.call(method, workerId="w", jobs=leases))["results"]
        assert results[:2] == [{}, {}]
        assert results[2]["error"]["_tag"] == "LeaseLostError"
        assert results[2]["error"]["outcome"] == "not_applied"
        assert ids[2] in results[2]["error"]["message"]
    [rest] = (await wire.call("claimJobs", workerId="w"))["jobs"]
    assert rest["jobId"] == ids[2]
    assert (await wire.call("claimJobs", workerId="w", limit=1000)).get("jobs", []) == []
    stats = await wire.call("getStats")
    assert (stats["completedTotal"], stats["inProgress"]) == (2, 1)
    assert {"batch", "wait", "pages"} <= set(stats["features"])


async def test_absent_payloads_of_a_batch_stay_absent(server: BrokerServer, wire: Any) -> None:
    async with opened(server) as rest:
        await rest.call("submitJobs", jobs=[{}, {"payload": "null"}])
    first, second = (await wire.call("claimJobs", workerId="w", limit=2))["jobs"]
    assert "payload" not in first
    assert second["payload"] == "null"


LEASES = [{"jobId": "j"}]


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("submitJobs", {"jobs": []}, "jobs"),
        ("submitJobs", {"jobs": [{"payload": "1"}] * 1001}, "jobs"),
        ("submitJobs", {"jobs": [{"payload": "1", "maxAttempts": -1}]}, "maxAttempts"),
        ("claimJobs", {"workerId": "w", "limit": 0}, "limit"),
        ("claimJobs", {"workerId": "w", "limit": 1001}, "limit"),
        ("claimJobs", {"workerId": ""}, "workerId"),
        ("claimJobs", {"workerId": "w" * 1025}, "workerId"),
        ("claimJobs", {"workerId": "w", "types": ["t"] * 1001}, "types"),
        ("claimJobs", {"workerId": "w", "wait": 60.1}, "wait"),
        ("claimJob", {"workerId": "w", "wait": -0.1}, "wait"),
        ("completeJobs", {"workerId": "w", "jobs": []}, "jobs"),
        ("completeJobs", {"workerId": "", "jobs": LEASES}, "workerId"),
        ("completeJobs", {"workerId": "w", "jobs": LEASES * 1001}, "jobs"),
        ("heartbeatJobs", {"workerId": "w", "jobs": LEASES * 1001}, "jobs"),
        ("heartbeatJobs", {"workerId": "w", "jobs": [{"jobId": ""}]}, "jobId"),
    ],
)
async def test_limits_are_refused_by_the_name_of_the_field(
    wire: Any, method: str, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(Refused) as refused:
        await wire.call(method, **fields)
    assert refused.value.tag == "BrokerProtocolError"
    assert refused.value.status in (400, None)
    assert refused.value.code in ("invalid_argument", None)
    assert method in refused.value.message
    assert field in refused.value.message


async def test_a_batch_of_the_largest_size_is_taken(wire: Any) -> None:
    answer = await wire.call("submitJobs", jobs=[{"payload": "1"}] * 1000)
    ids = [result["jobId"] for result in answer["results"]]
    assert len(set(ids)) == 1000
    claimed = (await wire.call("claimJobs", workerId="w", limit=1000))["jobs"]
    assert [job["jobId"] for job in claimed] == ids
    done = await wire.call("completeJobs", workerId="w", jobs=[{"jobId": each} for each in ids])
    assert done["results"] == [{}] * 1000


@pytest.mark.parametrize("name", WIRES)
async def test_a_full_document_refuses_a_part_of_a_batch_on_every_transport(name: str) -> None:
    store = FaultyStore()
    store.max_object_bytes = 8_000
    payload = '"' + "x" * 2_000 + '"'
    async with BrokerServer(storage=store, port=0) as server, opened(server, name) as wire:
        store.takes_segments = False
        results = (await wire.call("submitJobs", jobs=[{"payload": payload}] * 5))["results"]
        errors = [result["error"]["_tag"] for result in results if "error" in result]
        assert 0 < len(errors) < 5
        assert set(errors) == {"QueueFullError"}
        assert all("jobId" in result for result in results[: -len(errors)])
        with pytest.raises(Refused) as refused:
            await wire.call("submitJobs", jobs=[{"payload": payload}] * 5)
        assert refused.value.tag == "QueueFullError"
        assert refused.value.status in (429, None)


async def test_a_batch_is_one_commit() -> None:
    store = FaultyStore()
    async with BrokerServer(storage=store, port=0) as server, opened(server) as wire:
        before = len(store.attempts)
        await wire.call("submitJobs", jobs=[{"payload": "1"}] * 100)
        jobs = (await wire.call("claimJobs", workerId="w", limit=100))["jobs"]
        await wire.call("completeJobs", workerId="w", jobs=[{"jobId": job["jobId"]} for job in jobs])
        changed = [json.loads(body)["completedTotal"] for body, _ in store.attempts[before:]]
        assert len(changed) <= 4  # and perhaps a sign of life
        assert changed[-1] == 100


async def test_entries_count_towards_what_may_wait_however_small_they_are(waiting: Any) -> None:
    store = FaultyStore()
    settings = BrokerSettings(max_pending_bytes=100_000)
    async with (
        BrokerServer(storage=store, port=0, settings=settings) as server,
        opened(server) as wire,
        asyncio.TaskGroup() as group,
    ):
        store.gate.clear()
        group.create_task(wire.call("submitJob", payload="1"))
        await until(lambda: store.at_gate == 1)
        group.create_task(wire.call("submitJobs", jobs=[{"payload": "1"}] * 500))
        await until(lambda: waiting() == 1)
        with pytest.raises(Refused) as refused:
            await wire.call("submitJobs", jobs=[{"payload": "1"}] * 500)
        assert refused.value.tag == "QueueFullError"
        store.gate.set()
