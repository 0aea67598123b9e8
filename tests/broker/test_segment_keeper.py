"""A leader's segments in a store that is slow, fails, loses answers and objects; and what becomes of garbage."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from broker.support import KEY, FaultyStore, Leader, fake_clock, in_fake_time, leading, until
from msgspec import Raw

from osqueue_broker.queue import segments
from osqueue_client import operations
from osqueue_client.errors import BrokerLeadershipError, LeaseLostError, QueueFullError, StorageBackendError
from osqueue_storage import StoredObject

DEEP = {"segment_threshold": 4_000}
RETENTION = 1000.0
REQUEST_TIMEOUT = 10.0


class Objects(FaultyStore):
    """A store with segments: some cannot be read, creates may be held up, and each commit is looked at as it lands."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: dict[str, StoredObject] = {}
        self.read_delay = 0.0
        self.failing_reads = False
        self.reads: list[str] = []
        self.deleted: list[tuple[str, float]] = []
        self.referred_too_early: list[str] = []
        self.ever_referred: set[str] = set()
        self.create_gate = asyncio.Event()
        self.create_gate.set()
        self.creates_at_gate = 0

    async def read(self, key: str) -> StoredObject | None:
        if key != KEY:
            self.reads.append(key)
            await asyncio.sleep(self.read_delay)
            if self.failing_reads:
                raise ConnectionError("no")
        return await super().read(key)

    async def create(self, key: str, body: bytes) -> str:
        if key.startswith("segments/") and not self.create_gate.is_set():
            self.creates_at_gate += 1
            await self.create_gate.wait()
        return await super().create(key, body)

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        version = await super().write(key, body, expected_version)
        for name in referred(json.loads(body)):
            self.ever_referred.add(name)
            if segment_key(name) not in self._objects and segment_key(name) not in self.hidden:
                self.referred_too_early.append(name)
        return version

    async def delete(self, key: str) -> None:
        self.deleted.append((key, asyncio.get_running_loop().time()))
        await super().delete(key)

    def hide(self, name: str) -> None:
        self.hidden[segment_key(name)] = self._objects.pop(segment_key(name))

    def show_all(self) -> None:
        self._objects.update(self.hidden)
        self.hidden.clear()

    def names(self) -> set[str]:
        """The names of all objects below segments/."""
        return {
            key.removeprefix("segments/").removesuffix(".json")
            for key in self._objects
            if key.startswith("segments/")
        }

    def put_segment(self, name: str) -> None:
        self._put(segment_key(name), b"{}")


def segment_key(name: str) -> str:
    return f"segments/{name}.json"


def referred(document: dict[str, Any]) -> list[str]:
    return [known["name"] for known in (*document.get("segments", ()), *document.get("deadSegments", ()))]


async def fill(leader: Leader, count: int = 200) -> list[str]:
    ids = []
    for number in range(count):
        ids.append((await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"%d" % number))).job_id)
    return ids


async def drain(leader: Leader) -> list[str]:
    ids = []
    while (claimed := await leader.ask(operations.CLAIM_JOB, worker_id="w")).job_id is not None:
        ids.append(claimed.job_id)
        await leader.ask(operations.COMPLETE_JOB, job_id=claimed.job_id, worker_id="w")
    return ids


async def filled(store: Objects, count: int = 200) -> list[str]:
    """Fill the queue under a leader that ends at once, and return the ids of its jobs."""
    async with leading(store, **DEEP) as leader:
        ids = await fill(leader, count)
        assert len(referred(store.now())) > 3
        await leader.stop()
    return ids


# Made before they are referred to


@in_fake_time
async def test_an_object_is_in_the_store_before_a_commit_refers_to_it() -> None:
    store = Objects()
    async with leading(store, **DEEP) as leader:
        ids = await fill(leader)
        assert len(store.names()) > 3
        assert await drain(leader) == ids
        assert store.referred_too_early == []


@in_fake_time
async def test_lost_requests_and_answers_of_creates_lose_no_job_and_double_none() -> None:
    store = Objects()
    async with leading(store, **DEEP) as leader:
        store.create_faults = ["answer", "request", "answer", "answer", "request"]
        ids = await fill(leader)
        await until(lambda: len(referred(store.now())) > 3 and not store.create_faults)
        await asyncio.sleep(10)
        assert store.names() <= store.ever_referred
        assert await drain(leader) == ids
        assert store.referred_too_early == []


@in_fake_time
async def test_submits_go_on_while_a_segment_cannot_be_made() -> None:
    store = Objects()
    async with leading(store, **DEEP) as leader:
        store.create_gate.clear()
        ids = await fill(leader)
        assert "segments" not in store.now()
        store.create_gate.set()
        ids += await fill(leader, 50)
        await until(lambda: len(referred(store.now())) > 3)
        assert await drain(leader) == ids


# Reads


@in_fake_time
async def test_claims_wait_for_a_slow_read_and_are_answered() -> None:
    store = Objects()
    ids = await filled(store)
    async with leading(store, **DEEP) as leader:
        store.read_delay = 1.0
        assert await drain(leader) == ids


@in_fake_time
async def test_a_claim_whose_segment_cannot_be_read_ends_in_an_error_in_time_and_takes_nothing() -> None:
    store = Objects()
    ids = await filled(store)
    store.failing_reads = True
    async with leading(store, request_timeout=REQUEST_TIMEOUT, **DEEP) as leader:
        in_document = len(store.now()["jobs"])
        began_at = fake_clock().now
        errors = []
        for _ in range(3):
            try:
                while (await leader.ask(operations.CLAIM_JOB, worker_id="w")).job_id is not None:
                    pass
            except StorageBackendError as error:
                errors.append(error.outcome)
        assert errors == ["not_applied"] * 3
        assert fake_clock().now - began_at <= 3 * 1.25 * REQUEST_TIMEOUT + 1
        stats = await leader.ask(operations.GET_STATS)
        assert (stats.total, stats.in_progress <= in_document) == (len(ids), True)
        assert (await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"1"))).job_id
        store.failing_reads = False
        claimed = await leader.ask(operations.CLAIM_JOB, worker_id="w")
        assert claimed.job_id in ids


@in_fake_time
async def test_a_claim_is_served_whose_segment_was_read_and_given_up_again_while_a_commit_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "KEPT_BYTES", 0)
    types = [f"type {number}" for number in range(segments.KEPT_READ + 4)]
    store = Objects()
    async with leading(store, **DEEP) as leader:
        for type in types:
            for number in range(40):
                await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"%d" % number), type=type)
        await asyncio.sleep(10)
        await leader.stop()
    async with leading(store, **DEEP) as leader:
        store.gate.clear()
        asked = [leader.put(operations.CLAIM_JOB, worker_id="w", types=(type,)) for type in types]
        leader.put(operations.SUBMIT_JOB)  # so that there is a write
        await until(lambda: store.at_gate == 1)
        await asyncio.sleep(1)
        assert len(store.reads) > segments.KEPT_READ
        store.gate.set()
        async with asyncio.timeout(5):
            claimed = await asyncio.gather(*asked)
        assert [job.type for job in claimed] == types


@in_fake_time
async def test_claims_that_were_given_up_while_their_segment_could_not_be_read_leave_room_for_others() -> (
    None
):
    store = Objects()
    await filled(store)
    store.failing_reads = True
    async with leading(
        store, max_pending=50, max_pending_bytes=10_000, request_timeout=2.0, **DEEP
    ) as leader:
        while (await asyncio.wait_for(claim_or_none(leader), 10)) is not None:
            pass  # what stands in the document
        asked = []
        for _ in range(10_000 // 500):
            asked.append(leader.put_sized(operations.CLAIM_JOB, 500, worker_id="w"))
            await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError):
            leader.put_sized(operations.CLAIM_JOB, 500, worker_id="w")
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, StorageBackendError)
        await asyncio.gather(*(leader.ask(operations.SUBMIT_JOB, payload=Raw(b"1")) for _ in range(20)))


async def claim_or_none(leader: Leader) -> str | None:
    try:
        job_id: str | None = (await leader.ask(operations.CLAIM_JOB, worker_id="w")).job_id
    except StorageBackendError:
        return None
    return job_id


@pytest.mark.parametrize("damage", [False, True], ids=["missing", "damaged"])
@in_fake_time
async def test_a_lost_segment_is_an_error_in_the_log_and_is_served_when_it_is_back(damage: bool) -> None:
    store = Objects()
    ids = await filled(store)
    records = Records()
    name = referred(store.now())[-1]  # none that is read ahead
    in_it = [job["id"] for job in json.loads(store._objects[segment_key(name)].body)["jobs"]]
    store.hide(name)
    if damage:
        store._put(segment_key(name), b'{"segment":"x","jobs":[]}')
    with records:
        async with leading(store, **DEEP) as leader:
            if not damage:  # one that is not listed is looked for at once
                await asyncio.sleep(1)
                assert ("segment_lost", name) in records.events
                assert (await leader.ask(operations.GET_STATS)).lost_jobs == len(in_it)
            assert await drain(leader) == [id for id in ids if id not in in_it]
            assert [event for event in records.events if event[0] == "segment_lost"] == [
                ("segment_lost", name)
            ]
            stats = await leader.ask(operations.GET_STATS)
            assert (stats.total, stats.unclaimed, stats.lost_jobs) == (len(in_it),) * 3
            assert name in referred(store.now())
            with pytest.raises(LeaseLostError):
                await leader.ask(operations.COMPLETE_JOB, job_id=in_it[0], worker_id="w")
            await asyncio.sleep(200)
            assert len([event for event in records.events if event[0] == "segment_lost"]) == 1
            store.show_all()
            await asyncio.sleep(31)
            assert ("segment_found", name) in records.events
            assert (await leader.ask(operations.GET_STATS)).lost_jobs == 0
            assert await drain(leader) == in_it


class Records(logging.Handler):
    """The events of the segments' log."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append((record.getMessage(), getattr(record, "segment", "")))

    def __enter__(self) -> Records:
        logging.getLogger("osqueue.broker.segments").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("osqueue.broker.segments").removeHandler(self)


# Garbage


@in_fake_time
async def test_unreferenced_segments_of_older_terms_are_deleted_after_the_retention_and_no_others() -> None:
    store = Objects()
    ids = await filled(store)
    epoch = store.now()["epoch"]
    needed = set(referred(store.now()))
    for name in (f"{epoch}-5-old", f"{epoch + 1}-5-own", f"{epoch + 2}-5-newer", "README"):
        store.put_segment(name)
    async with leading(store, segment_retention=RETENTION, **DEEP) as leader:
        assert store.now()["epoch"] == epoch + 1
        await asyncio.sleep(RETENTION - 1)
        assert store.deleted == []
        await asyncio.sleep(5 * RETENTION)
        assert f"{epoch}-5-old" not in store.names()
        assert store.names() >= needed | {f"{epoch + 1}-5-own", f"{epoch + 2}-5-newer", "README"}
        assert await drain(leader) == ids


@in_fake_time
async def test_a_segment_that_was_used_up_is_deleted_the_retention_after_that() -> None:
    store = Objects()
    async with leading(store, segment_retention=RETENTION, **DEEP) as leader:
        await fill(leader)
        await drain(leader)
        at = fake_clock().now
        assert len(store.names()) > 3
        assert store.deleted == []
        await asyncio.sleep(2 * RETENTION)
        assert store.names() == set()
        assert min(when for _, when in store.deleted) > RETENTION
        assert max(when for _, when in store.deleted) - at <= RETENTION + 10


@in_fake_time
async def test_what_a_commit_has_dropped_that_has_not_landed_is_never_deleted() -> None:
    store = Objects()
    await filled(store)
    async with leading(store, segment_retention=RETENTION, request_timeout=50_000.0, **DEEP) as leader:
        document = store.now()
        first = referred(document)[0]
        claims = 0
        while first in referred(store.now()):
            before = store.now()
            claim = leader.put(operations.CLAIM_JOB, worker_id="w")
            if left(before, first) == 1 and not claims:
                store.gate.clear()  # the commit that takes out its last job does not land
                claims += 1
                break
            await claim
        assert claims
        await asyncio.sleep(5 * RETENTION)
        assert first in referred(store.now())
        assert first in store.names()
        store.gate.set()


def left(document: dict[str, Any], name: str) -> int:
    [known] = [known for known in document["segments"] if known["name"] == name]
    return sum(known["types"].values())


@in_fake_time
async def test_a_late_create_of_a_deposed_leader_is_found_by_a_later_search() -> None:
    store = Objects()
    await filled(store)
    epoch = store.now()["epoch"]
    async with leading(store, segment_retention=RETENTION, **DEEP):
        await asyncio.sleep(RETENTION / 2)
        store.put_segment(f"{epoch}-9-late")
        came_at = fake_clock().now
        await asyncio.sleep(3 * RETENTION)
        assert f"{epoch}-9-late" not in store.names()
        [when] = [when for key, when in store.deleted if "-late" in key]
        assert when - came_at >= RETENTION


@in_fake_time
async def test_a_leader_that_was_deposed_deletes_nothing_more() -> None:
    store = Objects()
    await filled(store)
    store.put_segment(f"{store.now()['epoch']}-5-old")
    async with leading(store, segment_retention=RETENTION, **DEEP) as leader:
        await drain(leader)
        assert len(store.names()) > 3
        names = store.names()
        theirs = {**store.now(), "epoch": store.now()["epoch"] + 1, "commitId": "theirs", "broker": "them:1"}
        store.put_now(theirs)
        with pytest.raises(BrokerLeadershipError):
            await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"1"))
        await asyncio.sleep(5 * RETENTION)
        assert store.deleted == []
        assert store.names() == names
        with pytest.raises(BrokerLeadershipError):
            await leader.stop()


# Ends and takeovers


@in_fake_time
async def test_a_stop_while_a_segment_is_being_made_loses_nothing() -> None:
    store = Objects()
    async with leading(store, **DEEP) as leader:
        store.create_gate.clear()
        ids = await fill(leader)
        await until(lambda: store.creates_at_gate > 0)
        await leader.stop()
    assert store.now()["broker"] is None
    assert referred(store.now()) == []
    store.put_segment(f"{store.now()['epoch']}-5-landed-late")
    store.create_gate.set()
    async with leading(store, segment_retention=RETENTION, **DEEP) as leader:
        assert await drain(leader) == ids
        await asyncio.sleep(3 * RETENTION)
        assert store.names() == set()


@in_fake_time
async def test_two_takeovers_hand_on_all_jobs_once_and_in_order() -> None:
    store = Objects()
    ids = await filled(store)
    done = []
    for share in (60, 60):
        async with leading(store, **DEEP) as leader:  # and is cancelled: it hands nothing over
            for _ in range(share):
                claimed = await leader.ask(operations.CLAIM_JOB, worker_id="w")
                done.append(claimed.job_id)
                await leader.ask(operations.COMPLETE_JOB, job_id=claimed.job_id, worker_id="w")
            ids += await fill(leader, 20)
    async with leading(store, **DEEP) as leader:
        done += await drain(leader)
        stats = await leader.ask(operations.GET_STATS)
    assert done == ids
    assert (stats.total, stats.completed_total, stats.segments) == (0, len(ids), 0)


@in_fake_time
async def test_a_foreign_rewrite_of_a_deep_queue_begins_a_term_with_all_its_jobs() -> None:
    store = Objects()
    async with leading(store, **DEEP) as leader:
        ids = await fill(leader)
        document = store.now()
        foreign = {"id": "foreign", "status": "unclaimed", "createdAt": 1, "attempts": 0}
        store.put_now({**document, "jobs": [*document["jobs"], foreign]})
        with pytest.raises(BrokerLeadershipError):
            await leader.ask(operations.CLAIM_JOB, worker_id="w")
        assert await drain(leader) == [*ids, "foreign"]


@in_fake_time
async def test_a_claim_that_waits_for_a_segment_is_answered_in_the_term_that_begins_meanwhile() -> None:
    store = Objects()
    async with leading(store, **DEEP) as leader:
        await fill(leader)
        rare = await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"1"), type="rare")
        await fill(leader)
        await leader.stop()
    async with leading(store, **DEEP) as leader:
        await asyncio.sleep(1)  # what comes next has been read
        store.read_delay = 2.0
        reads = len(store.reads)
        claimed = leader.put(operations.CLAIM_JOB, worker_id="w", types=("rare",))
        await until(lambda: len(store.reads) > reads)
        store.put_now({**store.now(), "note": "rewritten"})
        with pytest.raises(BrokerLeadershipError):
            await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"2"))
        assert (await claimed).job_id == rare.job_id
