"""A job's field `order` is ours while there are segments; somebody else's field of that name outlives that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from broker.deep_queue import DeepQueue

from osqueue_broker.fsck import Check
from osqueue_client import models, operations
from osqueue_client.errors import EngineStateError
from osqueue_client.models import JobError

ORDERS = ['"x"', "5", "-1", "null", "{}", "5.0", "1" + "0" * 30, "true", '[{"order":1}]']


class Twice(dict[str, Any]):
    """An object in which no name stands twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        assert len(self) == len(pairs), pairs


def read(text: bytes) -> Any:
    return json.loads(text, object_pairs_hook=Twice)


def foreign_job(id: str, order: str, **fields: object) -> str:
    rest = json.dumps({"id": id, "status": "unclaimed", "createdAt": 1, "attempts": 0, **fields})
    return f'{{"zone": 1, "order": {order}, {rest[1:]}'


def opened_with(*jobs: str) -> DeepQueue:
    queue = DeepQueue()
    body = '{"broker": null, "brokerHeartbeat": 0, "completedTotal": 0, "jobs": [' + ",".join(jobs) + "]}"
    queue.take_over(body.encode())
    return queue


def job_in(queue: DeepQueue, id: str) -> Any:
    [job] = [job for job in read(queue.body)["jobs"] if job["id"] == id]
    return job


def fail(queue: DeepQueue, claimed: models.ClaimedJob, *, retry: bool) -> None:
    queue.ask(
        operations.FAIL_JOB, job_id=claimed.job_id, worker_id="w", lease_token=claimed.lease_token,
        error=JobError(type="E", message="m"), retry=retry,
    )  # fmt: skip


def drain(queue: DeepQueue, *, until: str = "") -> list[str]:
    """Complete what waits, in order, up to and without one; that one runs then."""
    ids: list[str] = []
    while (claimed := queue.claim()).job_id not in (None, until):
        ids.append(claimed.job_id)
        queue.complete(claimed)
    return ids


def grow_deep(queue: DeepQueue) -> list[str]:
    ids = []
    for number in range(60):
        ids.append(queue.submit(number))
        queue.seal()
    assert len(queue.state.segments) > 3
    return ids


@pytest.mark.parametrize("order", ORDERS)
def test_without_segments_a_foreign_order_is_kept_through_all_that_becomes_of_its_job(order: str) -> None:
    kept = json.loads(order)
    queue = opened_with(foreign_job("b", order), foreign_job("a", "0"), foreign_job("c", order, tags=[]))

    def is_kept() -> bool:
        """Also by the next leader."""
        job = job_in(queue, "b")
        queue.take_over()
        return json.dumps(job["order"]) == json.dumps(job_in(queue, "b")["order"]) == json.dumps(kept)

    assert is_kept()
    assert queue.claim().job_id == "b"  # the order is that of the list
    assert is_kept()
    fail(queue, models.ClaimedJob(job_id="b", lease_token=job_in(queue, "b")["lease"]["token"]), retry=True)
    assert is_kept()
    assert [job["id"] for job in read(queue.body)["jobs"]] == ["b", "a", "c"]
    fail(queue, queue.claim(), retry=False)
    assert read(queue.body)["deadJobs"][0]["order"] == kept
    queue.take_over()
    queue.ask(operations.REQUEUE_DEAD, job_id="b")
    assert is_kept()
    assert [job["id"] for job in read(queue.body)["jobs"]] == ["a", "c", "b"]
    assert order.encode() in queue.body


@pytest.mark.parametrize("order", ORDERS)
def test_a_foreign_order_is_put_aside_while_there_are_segments_and_comes_back(order: str) -> None:
    kept = json.loads(order)
    names = [f"foreign{number}" for number in range(30)]
    queue = opened_with(*(foreign_job(name, order, payload="x" * 100) for name in names))
    ids = names + grow_deep(queue)
    queue.take_over()
    first, second = read(queue.body)["jobs"][:2]
    assert [(job["order"], job["foreignOrder"]) for job in (first, second)] == [(0, kept), (1, kept)]
    sealed = [job for body in queue.objects.values() for job in read(body)["jobs"] if job["id"] in names]
    assert sealed
    assert all((job["order"], job["foreignOrder"]) == (names.index(job["id"]), kept) for job in sealed)
    last = names[-1]
    assert drain(queue, until=last) == ids[: ids.index(last)]
    [running] = read(queue.body)["jobs"][:1]
    assert (running["id"], running["foreignOrder"]) == (last, kept)
    queue.take_over()
    drain(queue)
    assert not len(queue.state.segments)
    [left] = read(queue.body)["jobs"]
    assert (left["id"], left["order"], "foreignOrder" in left) == (last, kept, False)
    queue.take_over()
    assert read(queue.body)["jobs"][0]["order"] == kept


@pytest.mark.parametrize("order", ORDERS)
def test_a_job_that_comes_with_a_foreign_order_while_there_are_segments_is_last_and_keeps_it(
    order: str,
) -> None:
    kept = json.loads(order)
    queue = DeepQueue()
    grow_deep(queue)
    late = foreign_job("late", order)
    queue.take_over(queue.body.replace(b'"jobs":[{', f'"jobs":[{late},{{'.encode()))
    job = job_in(queue, "late")
    if type(kept) is int and 0 <= kept < 100:  # it says so, and cannot be told from one of ours
        assert job["order"] == 5
        return
    assert (job["order"], job["foreignOrder"], job["zone"]) == (60, kept, 1)
    queue.take_over(json.dumps(read(queue.body), sort_keys=True).encode())  # as a broker may write it
    assert drain(queue, until="late")
    assert not len(queue.state.segments)
    job = job_in(queue, "late")
    assert (job["order"], "foreignOrder" in job) == (kept, False)


def test_of_our_own_order_nothing_is_left_when_the_last_segment_has_gone() -> None:
    queue = DeepQueue()
    ids = grow_deep(queue)
    queue.take_over(json.dumps(read(queue.body), sort_keys=True).encode())
    assert all(job["order"] >= 0 for job in read(queue.body)["jobs"])
    drain(queue, until=ids[-1])
    for _ in range(2):
        assert not len(queue.state.segments)
        assert job_in(queue, ids[-1]).keys().isdisjoint({"order", "foreignOrder"})
        queue.take_over()


def test_a_job_whose_place_somebody_took_out_is_last_and_has_its_foreign_order_still() -> None:
    queue = opened_with(*(foreign_job(f"foreign{number}", '"x"') for number in range(30)))
    ids = grow_deep(queue)
    document = read(queue.body)
    del document["jobs"][0]["order"]
    queue.take_over(json.dumps(document).encode())
    job = job_in(queue, "foreign0")
    assert (job["order"], job["foreignOrder"]) == (90, "x")
    assert drain(queue, until="foreign0")[-1] == ids[-1]
    assert job_in(queue, "foreign0")["order"] == "x"


@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_a_dead_job_has_its_foreign_order_still_when_it_comes_out_of_a_segment(
    order: str, is_sorted: bool
) -> None:
    queue = opened_with(*(foreign_job(f"foreign{number}", order) for number in range(40)))
    while (claimed := queue.claim()).job_id is not None:
        fail(queue, claimed, retry=False)
    if is_sorted:
        queue.take_over(json.dumps(read(queue.body), sort_keys=True).encode())
    assert queue.seal()
    assert len(queue.state.dead_segments)
    for body in queue.objects.values():
        assert all(job["order"] == job["deadNumber"] for job in read(body)["jobs"])
    queue.take_over()
    queue.ask(operations.REQUEUE_DEAD, job_id="foreign4")
    assert job_in(queue, "foreign4")["order"] == json.loads(order)
    assert "foreignOrder" not in job_in(queue, "foreign4")


@pytest.mark.parametrize(
    "text", ['{"id": 5, "status": "unclaimed"}', '{"order": "x"}', '{"id": "a", "order": "x"}']
)
def test_what_is_no_job_is_refused_whatever_its_order(text: str) -> None:
    with pytest.raises(EngineStateError):
        opened_with(text)


@pytest.mark.parametrize("order", ORDERS)
def test_fsck_finds_no_fault_with_a_foreign_order(order: str) -> None:
    queue = opened_with(foreign_job("foreign", order), foreign_job("another", order))
    assert Check(queue.body).findings == []
    grow_deep(queue)
    check = Check(queue.body)
    for name in list(check.names):
        check.see(name, queue.objects[name])
    assert check.findings == []


def test_of_our_own_order_nothing_is_left_where_fsck_gives_up_the_last_segments() -> None:
    queue = opened_with(*(foreign_job(f"foreign{number}", '"x"') for number in range(30)))
    grow_deep(queue)
    assert job_in(queue, "foreign0")["foreignOrder"] == "x"
    check = Check(queue.body)
    for name in list(check.names):
        check.see(name, None)
    queue.take_over(check.mended(drop_missing=True))
    assert not len(queue.state.segments)
    jobs = read(queue.body)["jobs"]
    assert jobs
    for job in jobs:
        assert job.get("order", "x") == "x"
        assert "foreignOrder" not in job
