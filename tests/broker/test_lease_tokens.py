"""Lease tokens: each names one lease, and a stale one has no effect, whoever led the queue in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from broker.support import WIRES, FaultyStore, Refused, opened

from osqueue_broker import BrokerServer
from osqueue_broker.queue.apply import apply
from osqueue_broker.queue.document import read_document, write_document
from osqueue_broker.queue.leases import bury_exhausted
from osqueue_broker.queue.mutation import Mutation
from osqueue_broker.queue.rules import Now, Rules
from osqueue_broker.queue.state import QueueState
from osqueue_broker.queue.terms import EMPTY
from osqueue_client import models, operations
from osqueue_client.errors import LeaseLostError
from osqueue_client.operations import AnyOperation

RULES = Rules(heartbeat_timeout=10, max_attempts=3)
HEADER = EMPTY.takeover(commit_id="c", wall_ms=1, broker="b:1")
ERROR = models.JobError(type="E", message="m")
NEEDING_LEASE = [operations.HEARTBEAT, operations.COMPLETE_JOB, operations.FAIL_JOB]


def ask(
    state: QueueState, operation: AnyOperation, served: float = 0, new_id: str = "", **fields: Any
) -> Any:
    [answer] = apply(
        state, [Mutation(operation, operation.request(**fields), new_id)], Now(1, served)
    ).answers
    return answer


def claimed(state: QueueState, token: str, served: float = 0, worker_id: str = "w") -> models.ClaimedJob:
    answer = ask(state, operations.CLAIM_JOB, served, token, worker_id=worker_id)
    assert isinstance(answer, models.ClaimedJob)
    assert answer.lease_token == token
    return answer


def prove(state: QueueState, operation: AnyOperation, token: str | None, worker_id: str = "w") -> Any:
    """Use a lease of the job."""
    more: dict[str, Any] = {"error": ERROR} if operation is operations.FAIL_JOB else {}
    return ask(state, operation, job_id="job", worker_id=worker_id, lease_token=token, **more)


def job_of(state: QueueState) -> dict[str, Any]:
    [job] = json.loads(write_document(HEADER, state))["jobs"]
    assert isinstance(job, dict)
    return job


@pytest.fixture
def state() -> QueueState:
    state = QueueState(RULES)
    ask(state, operations.SUBMIT_JOB, 0, "job")
    return state


@pytest.mark.parametrize("operation", NEEDING_LEASE, ids=lambda operation: operation.name)
def test_the_token_of_the_lease_proves_it_and_any_other_does_not(
    state: QueueState, operation: AnyOperation
) -> None:
    claimed(state, "first")
    claimed_again = claimed(state, "second", 10)
    assert claimed_again.attempt == 2
    before = write_document(HEADER, state)
    for stale in ("first", "", "Second"):
        error = prove(state, operation, stale)
        assert isinstance(error, LeaseLostError)
        assert error.outcome == "not_applied"
    assert write_document(HEADER, state) == before
    assert prove(state, operation, "second") == models.Empty()


@pytest.mark.parametrize("operation", NEEDING_LEASE, ids=lambda operation: operation.name)
def test_without_a_token_the_workers_id_is_what_counts(state: QueueState, operation: AnyOperation) -> None:
    claimed(state, "first")
    assert isinstance(prove(state, operation, None, "v"), LeaseLostError)
    assert prove(state, operation, None) == models.Empty()


def test_a_heartbeat_with_a_stale_token_does_not_keep_the_lease(state: QueueState) -> None:
    claimed(state, "first")
    claimed(state, "second", 10)
    heartbeat = {"job_id": "job", "worker_id": "w", "lease_token": "first"}
    assert isinstance(ask(state, operations.HEARTBEAT, 19, **heartbeat), LeaseLostError)
    assert claimed(state, "third", 20).attempt == 3


def test_a_lease_is_written_while_it_runs_and_no_longer(state: QueueState) -> None:
    assert "lease" not in job_of(state)
    for attempt in (1, 2):
        claimed(state, f"t{attempt}")
        assert job_of(state)["lease"] == {"token": f"t{attempt}", "workerId": "w", "attempts": attempt}
        prove(state, operations.FAIL_JOB, f"t{attempt}")
        assert "lease" not in job_of(state)
    claimed(state, "t3")
    prove(state, operations.FAIL_JOB, "t3")
    [dead] = json.loads(write_document(HEADER, state))["deadJobs"]
    assert "lease" not in dead


@pytest.mark.parametrize("operation", NEEDING_LEASE, ids=lambda operation: operation.name)
def test_a_token_is_good_under_the_next_leader(state: QueueState, operation: AnyOperation) -> None:
    claimed(state, "first")
    for _ in range(2):
        _, state = read_document(write_document(HEADER, state), RULES, Now(1, 0))
    assert isinstance(prove(state, operation, "other"), LeaseLostError)
    assert prove(state, operation, "first") == models.Empty()


def of_another_worker(job: dict[str, Any]) -> None:
    job |= {"workerId": "v", "attempts": 2}


def of_the_same_worker(job: dict[str, Any]) -> None:
    job |= {"attempts": 2}


def of_another_worker_with_as_many_attempts(job: dict[str, Any]) -> None:
    job |= {"workerId": "v"}


def released(job: dict[str, Any]) -> None:
    del job["workerId"], job["heartbeat"]
    job |= {"status": "unclaimed"}


@pytest.mark.parametrize("operation", NEEDING_LEASE, ids=lambda operation: operation.name)
@pytest.mark.parametrize(
    "happens", [of_another_worker, of_the_same_worker, of_another_worker_with_as_many_attempts, released]
)
def test_a_token_that_a_foreign_broker_left_in_a_job_is_stale(
    state: QueueState, happens: Callable[[dict[str, Any]], None], operation: AnyOperation
) -> None:
    claimed(state, "first")
    document = json.loads(write_document(HEADER, state))
    happens(document["jobs"][0])
    assert document["jobs"][0]["lease"]["token"] == "first"
    _, state = read_document(json.dumps(document).encode(), RULES, Now(1, 0))
    assert isinstance(prove(state, operation, "first"), LeaseLostError)
    assert len(state.jobs) == 1
    if happens is not released:
        holder = document["jobs"][0]["workerId"]
        assert prove(state, operation, None, holder) == models.Empty()
        return
    # It is the next lease's token that stands in the job then.
    claimed(state, "second")
    assert job_of(state)["lease"]["token"] == "second"
    assert prove(state, operation, "second") == models.Empty()


def test_what_a_foreign_broker_left_goes_when_the_job_is_next_written(state: QueueState) -> None:
    claimed(state, "first")
    document = json.loads(write_document(HEADER, state))
    of_the_same_worker(document["jobs"][0])
    _, state = read_document(json.dumps(document).encode(), RULES, Now(1, 0))
    prove(state, operations.HEARTBEAT, None)
    assert "lease" not in job_of(state)


def test_a_job_that_nobody_runs_has_no_token_whatever_was_left_in_it() -> None:
    left = {"workerId": "w", "lease": {"token": "t", "workerId": "w", "attempts": 3}}
    job = {"id": "job", "status": "unclaimed", "createdAt": 1, "attempts": 3} | left
    _, state = read_document(json.dumps({"jobs": [job]}).encode(), RULES, Now(1, 0))
    assert isinstance(prove(state, operations.HEARTBEAT, "t"), LeaseLostError)
    bury_exhausted(state, Now(1, 0))
    [dead] = json.loads(write_document(HEADER, state))["deadJobs"]
    assert not dead.keys() & {"lease", "workerId"}


@pytest.mark.parametrize("theirs", ["x", 5, None, {"token": 5}, [], {"token": "t", "workerId": "w"}])
def test_a_field_of_somebody_else_by_the_same_name_is_no_token(theirs: object) -> None:
    job = {
        "id": "job",
        "status": "in_progress",
        "createdAt": 1,
        "attempts": 1,
        "workerId": "w",
        "lease": theirs,
    }
    _, state = read_document(json.dumps({"jobs": [job]}).encode(), RULES, Now(1, 0))
    assert isinstance(prove(state, operations.HEARTBEAT, "t"), LeaseLostError)
    assert prove(state, operations.HEARTBEAT, None) == models.Empty()


def test_an_attempt_that_foreign_brokers_began_has_no_token(state: QueueState) -> None:
    job = {"id": "theirs", "status": "in_progress", "createdAt": 1, "attempts": 1, "workerId": "w"}
    _, state = read_document(json.dumps({"jobs": [job]}).encode(), RULES, Now(1, 0))
    heartbeat: dict[str, Any] = {"job_id": "theirs", "worker_id": "w"}
    assert isinstance(ask(state, operations.HEARTBEAT, lease_token="t", **heartbeat), LeaseLostError)
    assert ask(state, operations.HEARTBEAT, **heartbeat) == models.Empty()


@pytest.mark.parametrize("name", WIRES)
async def test_a_stale_token_is_refused_on_every_wire(name: str) -> None:
    store = FaultyStore()
    async with BrokerServer(storage=store, port=0) as server, opened(server, name) as wire:
        await wire.call("submitJob", payload="1")
        first = await wire.call("claimJob", workerId="w")
        job = {"jobId": first["jobId"], "workerId": "w"}
        failed = {"error": {"type": "E", "message": "m"}}
        await wire.call("heartbeat", leaseToken=first["leaseToken"], **job)
        await wire.call("failJob", leaseToken=first["leaseToken"], **job, **failed)
        second = await wire.call("claimJob", workerId="w")
        assert second["jobId"] == first["jobId"]
        assert second["leaseToken"] != first["leaseToken"]
        assert store.now()["jobs"][0]["lease"]["token"] == second["leaseToken"]
        for method, more in (("heartbeat", {}), ("completeJob", {}), ("failJob", failed)):
            with pytest.raises(Refused) as refused:
                await wire.call(method, leaseToken=first["leaseToken"], **job, **more)
            assert refused.value.tag == "LeaseLostError"
            assert refused.value.status in (409, 400, None)
            assert refused.value.code in ("failed_precondition", None)
        await wire.call("completeJob", leaseToken=second["leaseToken"], **job)
        assert store.now()["jobs"] == []
