"""Pages of live jobs: complete and in order whatever comes and goes meanwhile, filtered, and bounded."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from broker.support import FaultyStore, Refused, in_fake_time, leading
from msgspec import Raw

from osqueue_broker.queue import reads
from osqueue_broker.queue.apply import answer_without_commit, apply
from osqueue_broker.queue.mutation import Mutation
from osqueue_broker.queue.rules import Now, Rules
from osqueue_broker.queue.state import QueueState
from osqueue_client import models, operations
from osqueue_client.errors import BrokerProtocolError

NOW = Now(1, 0)


class Queue:
    """A queue with jobs of the types "a", "b" and none in turn."""

    def __init__(self, length: int, payload: bytes = b"1") -> None:
        self.state = QueueState(Rules())
        self.made = 0
        self.payload = payload
        self.add(length)

    def add(self, number: int) -> None:
        batch = []
        for _ in range(number):
            type = ("a", "b", None)[self.made % 3]
            request = models.SubmitJob(payload=Raw(self.payload), type=type)
            batch.append(Mutation(operations.SUBMIT_JOB, request, f"j{self.made}"))
            self.made += 1
        apply(self.state, batch, NOW)

    def claim(self, number: int) -> list[str]:
        claim = Mutation(operations.CLAIM_JOBS, models.ClaimJobs(worker_id="w", limit=number))
        [answer] = apply(self.state, [claim], NOW).answers
        assert isinstance(answer, models.ClaimedJobs)
        return [str(job.job_id) for job in answer.jobs]

    def complete(self, *ids: str) -> None:
        leases = tuple(models.Lease(job_id=id) for id in ids)
        request = models.LeasedChanges(worker_id="w", jobs=leases)
        apply(self.state, [Mutation(operations.COMPLETE_JOBS, request)], NOW)

    def page(self, **fields: Any) -> models.JobList:
        mutation = Mutation(operations.LIST_JOBS, models.ListJobs(**fields))
        [answer] = answer_without_commit(self.state, [mutation], NOW).answers
        assert isinstance(answer, models.JobList)
        return answer

    def pages(self, **fields: Any) -> list[str]:
        ids: list[str] = []
        page = self.page(**fields)
        while True:
            ids += [job.id for job in page.jobs]
            if page.next_cursor is None:
                assert page.truncated is None
                return ids
            assert page.truncated
            assert page.jobs
            page = self.page(**fields | {"cursor": page.next_cursor})


@pytest.mark.parametrize("limit", [1, 7, 256, 1000])
def test_pages_hold_every_job_once_and_in_order(limit: int) -> None:
    queue = Queue(600)
    assert queue.pages(limit=limit) == [f"j{n}" for n in range(600)]


def test_a_page_that_is_just_full_is_the_last_one() -> None:
    assert Queue(10).page(limit=10).next_cursor is None
    assert Queue(11).page(limit=10).next_cursor is not None


def test_pages_are_complete_while_jobs_come_and_go() -> None:
    queue = Queue(500)
    chance = random.Random(7)
    stay, seen, cursor = {f"j{n}" for n in range(500)}, [], ""
    while True:
        page = queue.page(limit=40, cursor=cursor or None)
        seen += [job.id for job in page.jobs]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
        ids = queue.claim(chance.randint(1, 30))
        gone = chance.sample(ids, len(ids) // 2)
        queue.complete(*gone)
        stay -= set(gone)
        queue.add(3)
    assert stay <= set(seen)
    assert len(seen) == len(set(seen))
    numbers = [int(id[1:]) for id in seen]
    assert numbers == sorted(numbers)


def test_a_cursor_is_good_when_its_job_has_gone() -> None:
    queue = Queue(10)
    cursor = queue.page(limit=4).next_cursor
    queue.complete(*queue.claim(6))
    assert [job.id for job in queue.page(cursor=cursor).jobs] == ["j6", "j7", "j8", "j9"]


def test_filters_leave_in_what_was_asked_for_and_the_counts_are_those_of_the_whole_queue() -> None:
    queue = Queue(30)
    queue.claim(15)
    for type in ("a", "b", ""):
        place = ("a", "b", "").index(type)
        assert queue.pages(type=type, limit=3) == [f"j{n}" for n in range(place, 30, 3)]
    assert queue.pages(status="in_progress", limit=4) == [f"j{n}" for n in range(15)]
    assert queue.pages(status="unclaimed", limit=4) == [f"j{n}" for n in range(15, 30)]
    assert queue.pages(status="unclaimed", type="b", limit=2) == ["j16", "j19", "j22", "j25", "j28"]
    assert queue.pages(type="never") == []
    counts = queue.page(type="a", limit=1)
    assert (counts.total, counts.unclaimed, counts.in_progress, counts.completed_total) == (30, 15, 15, 0)


def test_an_answer_without_a_limit_is_cut_at_1000_jobs_with_the_true_totals() -> None:
    queue = Queue(1200)
    queue.complete(*queue.claim(100))
    page = queue.page()
    assert len(page.jobs) == 1000
    assert (page.truncated, page.total, page.unclaimed, page.completed_total) == (True, 1100, 1100, 100)
    assert queue.pages() == [f"j{n}" for n in range(100, 1200)]
    assert Queue(1000).page().truncated is None


def test_a_page_ends_with_the_job_that_makes_it_large() -> None:
    queue = Queue(60, b'"' + b"x" * 200_000 + b'"')
    page = queue.page()
    assert 20 <= len(page.jobs) <= 22  # 4 MiB, and one more
    assert reads.PAGE_BYTES == 4 * 1024 * 1024
    assert page.truncated
    assert queue.pages() == [f"j{n}" for n in range(60)]


# Over all transports


async def test_pages_and_filters_over_the_wire(wire: Any) -> None:
    jobs = [{"payload": "1", "type": "a"}, {"payload": "2"}] * 5
    ids = [result["jobId"] for result in (await wire.call("submitJobs", jobs=jobs))["results"]]
    first = await wire.call("listJobs", limit=4)
    assert [job["id"] for job in first["jobs"]] == ids[:4]
    assert first["truncated"]
    assert first["total"] == 10
    second = await wire.call("listJobs", limit=6, cursor=first["nextCursor"])
    assert [job["id"] for job in second["jobs"]] == ids[4:]
    assert not second.get("truncated", False)
    assert "nextCursor" not in second
    for type, wanted in (("a", ids[::2]), ("", ids[1::2])):
        assert [job["id"] for job in (await wire.call("listJobs", type=type))["jobs"]] == wanted
    await wire.call("claimJob", workerId="w")
    for status, wanted in (("in_progress", ids[:1]), ("unclaimed", ids[1:])):
        assert [job["id"] for job in (await wire.call("listJobs", status=status))["jobs"]] == wanted


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "-1"}, "cursor"),
        ({"cursor": "1"}, "cursor"),
        ({"cursor": "1-"}, "cursor"),
        ({"cursor": "1-x"}, "cursor"),
        ({"cursor": "x-1"}, "cursor"),
        ({"cursor": "9" * 30}, "cursor"),
        ({"cursor": "٣"}, "cursor"),
        ({"status": "dead"}, "status"),
    ],
)
async def test_what_is_no_page_is_refused_by_the_name_of_the_field(
    wire: Any, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(Refused) as refused:
        await wire.call("listJobs", **fields)
    assert refused.value.tag == "BrokerProtocolError"
    assert refused.value.status in (400, None)
    assert field in refused.value.message


# Cursors across a takeover


@in_fake_time
async def test_a_cursor_of_a_leader_before_is_refused_where_places_have_been_given_anew() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        for _ in range(4):
            await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"1"))
        cursor = (await leader.ask(operations.LIST_JOBS, limit=2)).next_cursor
        assert len((await leader.ask(operations.LIST_JOBS, cursor=cursor)).jobs) == 2
        await leader.stop()
    async with leading(store) as leader:
        with pytest.raises(BrokerProtocolError, match="from the start again") as caught:
            await leader.ask(operations.LIST_JOBS, cursor=cursor)
        assert caught.value.field == "cursor"


@in_fake_time
async def test_a_cursor_holds_across_a_takeover_while_jobs_say_their_order() -> None:
    store = FaultyStore()
    payload = Raw(b'"' + b"x" * 400 + b'"')
    async with leading(store, segment_threshold=4_000) as leader:
        ids = [(await leader.ask(operations.SUBMIT_JOB, payload=payload)).job_id for _ in range(40)]
        await asyncio.sleep(10)
        assert store.now()["segments"]
        page = await leader.ask(operations.LIST_JOBS, limit=20)
        await leader.stop()
    listed = [job.id for job in page.jobs]
    async with leading(store, segment_threshold=4_000) as leader:
        while page.next_cursor is not None:
            page = await leader.ask(operations.LIST_JOBS, cursor=page.next_cursor)
            listed += [job.id for job in page.jobs]
    assert listed == ids
