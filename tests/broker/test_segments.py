"""Deep queues: sealed into segments and drained again they are what a list in memory would be."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from broker.deep_queue import THRESHOLD, DeepQueue

from osqueue_broker.queue import segments
from osqueue_broker.queue.merging import Merge
from osqueue_broker.queue.rules import Rules
from osqueue_broker.queue.segment import Contents
from osqueue_broker.queue.segments import KEPT_READ
from osqueue_client import models, operations
from osqueue_client.errors import EngineStateError, JobNotFoundError, LeaseLostError, StorageBackendError


@pytest.fixture(autouse=True)
def few_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small segments are given up again, as large ones are."""
    monkeypatch.setattr(segments, "KEPT_BYTES", 0)


def deep(count: int = 120, *, types: tuple[str, ...] = (), **rules: Any) -> tuple[DeepQueue, list[str]]:
    """A queue with so many waiting jobs, sealed as it grew, and their ids."""
    queue = DeepQueue(**rules)
    ids = []
    for number in range(count):
        type = types[number % len(types)] if types else None
        ids.append(queue.submit(number, type=type))
        queue.seal()
    assert len(queue.state.segments) > 3
    assert queue.document["segments"]
    return queue, ids


def stats(queue: DeepQueue) -> tuple[int, int, int, int, int]:
    told = queue.ask(operations.GET_STATS)
    return told.total, told.unclaimed, told.in_progress, told.completed_total, told.dead


def drain(queue: DeepQueue, *types: str) -> list[str]:
    """The ids of all jobs that can be had, in the order in which they come."""
    ids = []
    while (claimed := queue.claim(*types)).job_id is not None:
        ids.append(claimed.job_id)
        queue.complete(claimed)
    return ids


# Order and counts


class Jobs:
    """What the queue should be: a list."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, str]] = []  # place and id
        self.running: dict[str, tuple[int, models.ClaimedJob]] = {}
        self.dead: list[str] = []
        self.types: dict[str, str] = {}
        self.payloads: dict[str, int] = {}
        self.attempts: dict[str, int] = {}
        self.places = self.completed = 0

    def put_last(self, id: str) -> None:
        self.waiting.append((self.places, id))
        self.attempts[id] = 0
        self.places += 1

    def first(self, types: tuple[str, ...]) -> str | None:
        return next((id for _, id in self.waiting if not types or self.types[id] in types), None)

    def counts(self) -> tuple[int, int, int, int, int]:
        waiting, running = len(self.waiting), len(self.running)
        return waiting + running, waiting, running, self.completed, len(self.dead)


@pytest.mark.parametrize("seed", range(12))
def test_a_deep_queue_does_what_a_list_would_do(seed: int) -> None:
    print(f"seed {seed}")  # pytest shows it with a failure
    chance = random.Random(seed)
    queue = DeepQueue(threshold=chance.choice([1_500, 4_000, 12_000]), max_attempts=2)
    jobs = Jobs()
    for _ in range(1000):
        what = chance.random()
        if what < 0.5:
            type = chance.choice(["", "a", "b", "c"])
            id = queue.submit(jobs.places, type=type or None)
            jobs.types[id], jobs.payloads[id] = type, jobs.places
            jobs.put_last(id)
        elif what < 0.7:
            wanted = tuple(chance.sample(["a", "b", "c"], 2)) if chance.random() < 0.5 else ()
            claimed = queue.claim(*wanted)
            assert claimed.job_id == jobs.first(wanted)
            if claimed.job_id is not None:
                [place] = [place for place, id in jobs.waiting if id == claimed.job_id]
                jobs.waiting.remove((place, claimed.job_id))
                jobs.attempts[claimed.job_id] += 1
                assert claimed.attempt == jobs.attempts[claimed.job_id]
                assert int(bytes(claimed.payload)) == jobs.payloads[claimed.job_id]
                jobs.running[claimed.job_id] = place, claimed
        elif what < 0.78 and jobs.running:
            _, claimed = jobs.running.pop(chance.choice(list(jobs.running)))
            queue.complete(claimed)
            jobs.completed += 1
        elif what < 0.86 and jobs.running:
            place, claimed = jobs.running.pop(id := chance.choice(list(jobs.running)))
            fail(queue, claimed)
            if jobs.attempts[id] < 2:
                jobs.waiting = sorted([*jobs.waiting, (place, id)])
            else:
                jobs.dead.append(id)
        elif what < 0.9 and jobs.dead:
            jobs.dead.remove(id := chance.choice(jobs.dead))
            queue.ask(operations.REQUEUE_DEAD, job_id=id)
            jobs.put_last(id)
        elif what < 0.98:
            queue.seal()
        elif what > 0.99:
            queue.take_over()
        assert stats(queue) == jobs.counts()
    expected = [id for _, id in jobs.waiting]
    assert [job.id for job in queue.pages(operations.LIST_JOBS, 7, status="unclaimed")] == expected
    assert [job.id for job in queue.pages(operations.LIST_DEAD, 3)] == jobs.dead
    assert drain(queue) == expected
    jobs.completed += len(expected)
    jobs.waiting = []
    assert stats(queue) == jobs.counts()
    assert "segments" not in queue.document


def test_what_is_claimed_while_its_segment_is_made_is_not_in_it() -> None:
    queue = DeepQueue()
    ids = [queue.submit(number) for number in range(60)]
    claimed: list[Any] = []

    def claim_one(_: object) -> None:
        claimed.append(queue.claim())

    queue.seal(between=claim_one)
    assert len(claimed) > 2
    assert [job.job_id for job in claimed] == ids[: len(claimed)]
    assert stats(queue) == (60, 60 - len(claimed), len(claimed), 0, 0)
    assert drain(queue) == ids[len(claimed) :]


def test_what_ran_and_came_back_while_its_segment_was_made_is_told_as_it_is_now() -> None:
    queue = DeepQueue()
    ids = [queue.submit(number) for number in range(40)]
    plans = 0

    def fail_some(_: object) -> None:
        nonlocal plans
        plans += 1
        if plans == 1:
            for claimed in [queue.claim() for _ in range(6)]:
                fail(queue, claimed)

    queue.seal(between=fail_some)
    first = [queue.claim() for _ in range(6)]
    assert [job.job_id for job in first] == ids[:6]
    assert {job.attempt for job in first} == {2}


def test_a_segment_that_is_not_worth_it_any_more_is_dropped() -> None:
    queue = DeepQueue()
    ids = [queue.submit(number) for number in range(40)]
    claimed: list[str] = []

    def claim_all(_: object) -> None:
        claimed.extend(drain(queue))

    queue.seal(between=claim_all)
    assert claimed == ids
    assert not len(queue.state.segments)
    assert queue.state.segments.take_dropped()


def test_what_leaves_segments_while_they_are_merged_does_not_come_back() -> None:
    queue = DeepQueue()
    taken: list[str] = []
    merges = 0

    def take_some(plan: object) -> None:
        nonlocal merges
        if not isinstance(plan, Merge):
            return
        merges += 1
        used_up, begun = plan.parts[1], plan.parts[2]
        for job in (
            json.loads(queue.objects[used_up.id])["jobs"] + json.loads(queue.objects[begun.id])["jobs"][:1]
        ):
            claimed = queue.claim(job["type"])
            taken.append(claimed.job_id)
            queue.complete(claimed)
        assert queue.state.segments.get(used_up.id) is None

    ids = []
    for number in range(200):
        ids.append(queue.submit(number, type=f"t{number}"))
        queue.seal(between=take_some)
    assert merges
    left = [id for id in ids if id not in taken]
    assert [job.id for job in queue.pages(operations.LIST_JOBS, 50)] == left
    queue.take_over()
    assert stats(queue) == (len(left), len(left), 0, len(taken), 0)
    assert drain(queue) == left


# Claims by type


def test_a_type_is_claimed_out_of_its_segment_without_reading_others() -> None:
    queue, _ = deep(100)
    rare = queue.submit("rare", type="rare")
    for number in range(100):
        queue.submit(number)
        queue.seal()
    queue.take_over()
    claimed = queue.claim("rare")
    assert claimed.job_id == rare
    assert len(queue.reads) == 1
    assert rare.encode() in queue.objects[queue.reads[0]]
    assert queue.claim("rare").job_id is None
    assert queue.claim("never").job_id is None
    assert len(queue.reads) == 1


def test_a_segment_of_more_types_than_are_told_is_claimed_from_by_type() -> None:
    queue = DeepQueue(threshold=150_000, max_attempts=1)
    ids = [queue.submit(number, type=f"t{number % 150}") for number in range(1500)]
    assert queue.seal()
    assert queue.objects
    untold = [segment for segment in queue.state.segments if segment.types is None]
    assert untold
    queue.take_over()
    assert queue.claim("t7").job_id == ids[7]
    last = [id for number, id in enumerate(ids) if number % 150 == 149]
    assert drain(queue, "t149") == last
    assert queue.claim("nothing like that").job_id is None
    assert stats(queue) == (1500 - len(last), 1500 - len(last) - 1, 1, len(last), 0)


def test_a_type_that_is_used_up_in_many_segments_of_untold_types_is_looked_for_and_not_found() -> None:
    queue = DeepQueue(threshold=150_000)
    for number in range(12_000):
        queue.submit(number, type="x" if number % 110 == 50 else f"t{number % 110}")
        if number % 330 == 0:
            queue.seal()
    assert sum(segment.types is None for segment in queue.state.segments) > KEPT_READ
    assert drain(queue, "x")
    assert queue.claim("x").job_id is None
    queue.take_over()
    assert queue.claim("x").job_id is None


def test_untyped_jobs_in_segments_are_for_those_who_take_any() -> None:
    queue, ids = deep(60)
    assert queue.claim("", "a").job_id is None
    assert queue.claim().job_id == ids[0]


# Jobs in segments, by id


def test_a_job_in_a_segment_is_leased_by_nobody() -> None:
    queue, ids = deep(120)
    id = ids[60]
    assert id not in queue.state.jobs
    for operation in (operations.COMPLETE_JOB, operations.HEARTBEAT):
        with pytest.raises(LeaseLostError):
            queue.ask(operation, job_id=id, worker_id="w")
    assert stats(queue) == (120, 120, 0, 0, 0)


def test_a_job_that_is_nowhere_is_not_found_however_many_segments_there_are() -> None:
    queue, ids = deep(200)
    unknown = ids[100][:-1] + ("0" if ids[100][-1] != "0" else "1")
    for id in ("00000000-0000-4000-8000-000000000000", "no id at all"):
        with pytest.raises(JobNotFoundError):
            queue.ask(operations.COMPLETE_JOB, job_id=id, worker_id="w")
    # It might stand in a segment, which is not read for that.
    with pytest.raises(LeaseLostError):
        queue.ask(operations.COMPLETE_JOB, job_id=unknown, worker_id="w")
    assert queue.reads == []
    while queue.claim().job_id != ids[99]:
        pass
    with pytest.raises(JobNotFoundError):
        queue.ask(operations.COMPLETE_JOB, job_id=unknown, worker_id="w")


def test_a_batch_of_leases_is_answered_though_its_jobs_stand_in_more_segments_than_are_kept_in_memory() -> (
    None
):
    queue, ids = deep(500)
    queue.take_over()
    claimed = queue.claim()
    assert len(queue.state.segments) > KEPT_READ
    reads = len(queue.reads)
    leases = tuple(models.Lease(job_id=id) for id in ids)
    for operation in (operations.HEARTBEAT_JOBS, operations.COMPLETE_JOBS):
        results = queue.ask(operation, worker_id="w", jobs=leases).results
        assert [id for id, result in zip(ids, results, strict=True) if result.error is None] == [
            claimed.job_id
        ]
    assert len(queue.reads) == reads


def test_a_job_that_came_out_of_a_segment_and_is_done_is_not_found() -> None:
    queue, _ = deep()
    done = queue.claim()
    queue.complete(done)
    for _ in range(10):
        queue.complete(queue.claim())
    with pytest.raises(JobNotFoundError):
        queue.complete(done)


@pytest.mark.parametrize("reverse", [False, True])
def test_dead_jobs_are_found_among_more_segments_that_may_hold_them_than_are_kept_in_memory(
    reverse: bool,
) -> None:
    queue = DeepQueue(max_attempts=1)
    chance = random.Random(5)
    ids = []
    for number in range(500):  # ids as other brokers make them
        queue.new_id = lambda: f"{chance.getrandbits(32):08x}-0000-4000-8000-000000000000"  # type: ignore[method-assign]
        ids.append(queue.submit(number))
        fail(queue, queue.claim())
        queue.seal()
    assert len(queue.state.dead_segments) > KEPT_READ
    queue.take_over()
    for id in reversed(ids) if reverse else ids:
        queue.ask(operations.DELETE_DEAD, job_id=id)
        with pytest.raises(JobNotFoundError):
            queue.ask(operations.DELETE_DEAD, job_id=id)
    assert stats(queue) == (0, 0, 0, 0, 0)


def test_a_segment_that_is_lost_is_passed_over_and_its_jobs_are_not_denied() -> None:
    queue, ids = deep()
    lost = list(queue.state.segments)[1]
    in_it = [json.loads(bytes(text))["id"] for text in texts(queue.objects[lost.id])]
    lost.is_lost = True
    with pytest.raises(LeaseLostError):
        queue.ask(operations.COMPLETE_JOB, job_id=in_it[0], worker_id="w")
    assert drain(queue) == [id for id in ids if id not in in_it]
    assert [job.id for job in queue.pages(operations.LIST_JOBS, 10)] == []
    assert queue.ask(operations.GET_STATS).unclaimed == len(in_it)
    queue.take_over()
    lost = next(iter(queue.state.segments))
    assert drain(queue) == in_it


def test_a_dead_job_that_may_stand_in_a_lost_segment_is_not_denied() -> None:
    queue = DeepQueue(max_attempts=1)
    ids = []
    for number in range(100):
        ids.append(queue.submit(number))
        fail(queue, queue.claim())
        queue.seal()
    next(iter(queue.state.dead_segments)).is_lost = True
    with pytest.raises(StorageBackendError) as refused:
        queue.ask(operations.REQUEUE_DEAD, job_id=ids[0])
    assert refused.value.outcome == "not_applied"


def test_jobs_that_come_back_after_the_last_segment_was_used_up_are_sealed_again() -> None:
    queue, ids = deep(120)
    claimed = [queue.claim() for _ in ids]
    assert len(queue.state.segments) == 0
    for each in claimed:
        fail(queue, each)
    assert queue.seal() > 0
    assert drain(queue) == ids


@pytest.mark.parametrize("operation", [operations.CLAIM_JOB, operations.CLAIM_JOBS])
def test_a_claim_that_only_buries_exhausted_jobs_is_answered_empty_and_not_remembered(operation: Any) -> None:
    queue = DeepQueue(max_attempts=3)
    ids = [queue.submit(number) for number in range(60)]
    for each in [queue.claim() for _ in ids]:
        fail(queue, each)
    queue.seal()
    in_document = len(queue.state.jobs)
    queue.rules = Rules(segment_threshold=THRESHOLD, max_attempts=1)
    queue.take_over()
    claim = {"worker_id": "w", "request_id": models.RequestId(session="s", number=1, lowest=1)}
    if operation is operations.CLAIM_JOBS:
        claim["limit"] = 100
    for _ in range(2):
        answer = queue.ask(operation, **claim)
        assert (answer.job_id if operation is operations.CLAIM_JOB else answer.jobs) in (None, ())
    assert 0 < stats(queue)[4] <= 60
    assert stats(queue)[4] >= 60 - in_document
    queue.submit("new")
    answer = queue.ask(operation, **claim)
    assert answer.job_id if operation is operations.CLAIM_JOB else answer.jobs


# Pages


@pytest.mark.parametrize("limit", [1, 7, 50, 1000])
@pytest.mark.parametrize("type", [None, "", "a", "rare"])
def test_pages_go_over_document_and_segments_in_the_order_of_claims(limit: int, type: str | None) -> None:
    queue = DeepQueue()
    expected = []
    for number in range(260):
        its_type = "rare" if number % 65 == 30 else ("a" if number % 2 else "")
        id = queue.submit(number, type=its_type or None)
        if type in (None, its_type):
            expected.append(id)
        queue.seal()
    running = [queue.claim().job_id for _ in range(5)]
    listed = list(queue.pages(operations.LIST_JOBS, limit, type=type))
    assert [job.id for job in listed] == expected
    assert [job.id for job in listed if job.status == "in_progress"] == [
        id for id in running if id in expected
    ]
    only_running = queue.pages(operations.LIST_JOBS, limit, status="in_progress")
    assert [job.id for job in only_running] == running


# Dead jobs


def deep_in_dead(count: int = 60) -> tuple[DeepQueue, list[str]]:
    queue = DeepQueue(max_attempts=1)
    ids = [queue.submit(number, type="t") for number in range(count)]
    for _ in range(count):
        fail(queue, queue.claim())
        queue.seal()
    assert len(queue.state.dead_segments) > 3
    assert queue.document["deadSegments"]
    assert "segments" not in queue.document
    return queue, ids


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_dead_jobs_in_segments_are_listed_in_the_order_of_their_death(limit: int) -> None:
    queue, ids = deep_in_dead()
    queue.take_over()
    listed = list(queue.pages(operations.LIST_DEAD, limit))
    assert [dead.id for dead in listed] == ids
    assert [bytes(dead.payload) for dead in listed] == [b"%d" % number for number in range(60)]
    assert {(dead.error.type, dead.attempts) for dead in listed} == {("E", 1)}
    assert queue.ask(operations.LIST_DEAD).total == 60


def test_dead_jobs_in_segments_are_put_back_and_deleted_by_id() -> None:
    queue, ids = deep_in_dead()
    queue.take_over()
    queue.ask(operations.REQUEUE_DEAD, job_id=ids[3])
    queue.ask(operations.DELETE_DEAD, job_id=ids[5])
    for gone in (ids[3], ids[5]):
        with pytest.raises(JobNotFoundError):
            queue.ask(operations.DELETE_DEAD, job_id=gone)
    left = [id for id in ids if id not in (ids[3], ids[5])]
    assert [dead.id for dead in queue.pages(operations.LIST_DEAD, 9)] == left
    assert stats(queue) == (1, 1, 0, 0, 58)
    claimed = queue.claim("t")
    assert (claimed.job_id, claimed.attempt) == (ids[3], 1)
    fail(queue, claimed)
    assert [dead.id for dead in queue.pages(operations.LIST_DEAD, 9)] == [*left, ids[3]]


# The document


def test_a_shallow_document_speaks_of_no_segment_and_no_order() -> None:
    queue = DeepQueue(threshold=1024 * 1024)
    for number in range(50):
        queue.submit(number)
        assert not queue.seal()
    document = queue.document
    assert list(document) == [
        "broker", "brokerHeartbeat", "completedTotal", "epoch", "seq", "commitId", "previousTerms", "deadTotal",
        "deadJobs", "jobs",
    ]  # fmt: skip
    assert set(document["jobs"][0]) == {"id", "status", "payload", "createdAt", "attempts"}


def test_a_queue_that_was_deep_has_the_same_document_as_one_that_never_was() -> None:
    was_deep, never_deep = DeepQueue(), DeepQueue(threshold=10**9)
    for queue in (was_deep, never_deep):
        for number in range(100):
            queue.submit(number)
            queue.seal()
    assert was_deep.state.segments.left
    while len(was_deep.state.segments):
        for queue in (was_deep, never_deep):
            queue.complete(queue.claim())
    for queue in (was_deep, never_deep):
        queue.submit("last")
    assert len(was_deep.state.jobs) > 1
    assert shape(was_deep) == shape(never_deep)


def test_a_takeover_reads_the_same_queue_without_reading_a_segment() -> None:
    queue, ids = deep(100, types=("a", "b"))
    running = [queue.claim() for _ in range(3)]
    queue.reads.clear()
    before = queue.body
    queue.take_over()
    assert shape(queue) == shape(queue, before)
    assert stats(queue) == (100, 97, 3, 0, 0)
    assert queue.reads == []
    queue.take_over()
    queue.complete(running[1])
    assert drain(queue) == ids[3:]
    assert stats(queue) == (2, 0, 2, 98, 0)


def test_what_a_foreign_broker_has_added_to_a_deep_queue_comes_last() -> None:
    queue, ids = deep(60)
    document = queue.document
    foreign = [{"id": f"foreign-{n}", "status": "unclaimed", "createdAt": 1, "attempts": 0} for n in range(2)]
    jobs = [dict(reversed(job.items())) for job in document["jobs"]] + foreign
    rewritten = {name: document[name] for name in reversed(document)} | {"jobs": jobs}
    queue.take_over(json.dumps(rewritten, indent=1).encode())
    late = queue.submit("late")
    assert drain(queue) == [*ids, "foreign-0", "foreign-1", late]


def test_jobs_that_say_the_same_order_are_all_kept() -> None:
    queue, ids = deep(60)
    document = queue.document
    document["jobs"].append(dict(document["jobs"][0], id="copy"))
    document["jobs"].append(dict(document["jobs"][0], id="below", order=-7))
    queue.take_over(json.dumps(document).encode())
    assert stats(queue)[:2] == (62, 62)
    assert [job.id for job in queue.pages(operations.LIST_JOBS, 9)] == [*ids, "copy", "below"]
    assert drain(queue) == [*ids, "copy", "below"]


def test_the_fields_and_digits_of_a_job_come_out_of_a_segment_as_they_went_in() -> None:
    queue = DeepQueue()
    jobs = [
        b'{"id":"f%d","status":"unclaimed","payload":{"n":12345678901234567890123.4500,"e":1e400},"createdAt":5,'
        b'"attempts":0,"trace":{"x":1.0},"own":null}' % number
        for number in range(80)
    ]
    queue.take_over(b'{"broker":null,"jobs":[%b],"zone":"eu"}' % b",".join(jobs))
    assert queue.seal()
    in_segments = [text for body in queue.objects.values() for text in texts(body)]
    assert len(in_segments) > 10
    id = json.loads(bytes(in_segments[0]))["id"]
    while (claimed := queue.claim()).job_id != id:
        pass
    assert bytes(claimed.payload) == b'{"n":12345678901234567890123.4500,"e":1e400}'
    [text] = [job.text() for job in queue.state.jobs if job.id == id]
    assert b'"trace":{"x":1.0}' in text
    assert b'"own":null' in text
    assert b"order" not in text
    assert queue.document["zone"] == "eu"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda body: body[:-3], id="cut"),
        pytest.param(lambda body: body.replace(b'"segment":"', b'"segment":"x'), id="another-name"),
        pytest.param(lambda body: b'{"segment":' + body[11:].split(b",")[0] + b',"jobs":[]}', id="no-jobs"),
        pytest.param(lambda body: body.replace(b'"order":', b'"order":-'), id="order"),
    ],
)
def test_an_object_that_is_not_what_the_document_says_is_refused(damage: Any) -> None:
    queue, _ = deep(60)
    segment = list(queue.state.segments)[-1]
    body = queue.objects[segment.id]
    Contents.of(segment, body)
    with pytest.raises(EngineStateError, match=segment.id):
        Contents.of(segment, damage(body))


def fail(queue: DeepQueue, claimed: models.ClaimedJob) -> None:
    error = models.JobError(type="E", message="m")
    queue.ask(
        operations.FAIL_JOB,
        job_id=claimed.job_id, worker_id="w", error=error, lease_token=claimed.lease_token,
    )  # fmt: skip


def texts(body: bytes) -> list[Any]:
    return [json.dumps(job).encode() for job in json.loads(body)["jobs"]]


def shape(queue: DeepQueue, body: bytes | None = None) -> bytes:
    """The document from its jobs' side on: what does not depend on who wrote it, and which commit."""
    text = queue.body if body is None else body
    return text[text.index(b'"deadTotal"') :]
