"""`osqueue-broker fsck`: what it finds wrong with a queue, what it mends, and that it leaves a led queue alone."""

from __future__ import annotations

import asyncio
import errno
import json
import subprocess
import sys
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from broker.deep_queue import DeepQueue
from broker.support import KEY, FaultyStore, fake_clock, in_fake_time, leading, opened
from msgspec import Raw

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_broker.clock import SystemClock
from osqueue_broker.fsck import Check, Mend
from osqueue_broker.fsck_cli import main
from osqueue_broker.fsck_run import Fsck, Report
from osqueue_client import operations
from osqueue_client.errors import BrokerLeadershipError, ConfigError, EngineStateError, StorageBackendError
from osqueue_client.models import JobError
from osqueue_storage import FileBackend, open_storage

COMMAND = [sys.executable, "-m", "osqueue_broker", "fsck"]
DEAD_LEADER = "us:1"


def deep_queue() -> tuple[DeepQueue, list[str]]:
    """A queue with segments of which some jobs have left, some jobs that run, and the ids of those that wait."""
    queue = DeepQueue(max_attempts=1)
    ids = []
    for number in range(150):
        ids.append(queue.submit(number, type="odd" if number % 2 else None))
        queue.seal()
    for _ in range(3):
        queue.complete(queue.claim("odd"))
    for _ in range(2):
        queue.claim("odd")
    assert len(queue.state.segments) > 3
    assert any("gone" in segment for segment in queue.document["segments"])
    return queue, [id for id in ids if id not in ids[1:10:2]]


def stored(queue: DeepQueue, document: dict[str, Any] | None = None) -> FaultyStore:
    """The queue in a store, as its leader has left it that is dead."""
    store = FaultyStore()
    store.put_now(queue.body if document is None else document)
    for name, body in queue.objects.items():
        store._put(key(name), body)
    return store


def key(name: str) -> str:
    return f"segments/{name}.json"


def fsck(store: FaultyStore) -> Fsck:
    return Fsck(store, fake_clock())


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def all_waiting(store: FaultyStore) -> list[str]:
    """The ids of what waits, as a broker would hand it out that begins with what is in the store."""
    queue = DeepQueue()
    bodies = {name: found.body for name, found in store._objects.items()}
    queue.objects = {
        name.removeprefix("segments/").removesuffix(".json"): body for name, body in bodies.items()
    }
    queue.take_over(bodies[KEY])
    ids = []
    while (claimed := queue.claim()).job_id is not None:
        ids.append(claimed.job_id)
    return ids


# What is well


@in_fake_time
async def test_a_deep_queue_as_it_should_be_is_well_and_is_only_read() -> None:
    queue, _ = deep_queue()
    store = stored(queue)
    before = dict(store._objects)
    report = await fsck(store).check()
    assert report.is_well
    assert not report.has_moved
    assert report.leader == DEAD_LEADER
    assert report.counts.jobs_in_segments + report.counts.jobs_in_document == 147
    assert report.counts.segments == len(queue.document["segments"])
    assert store._objects == before


@in_fake_time
async def test_a_shallow_queue_and_a_foreign_document_are_well() -> None:
    store = FaultyStore()
    store.put_now({"jobs": [{"id": "a", "status": "unclaimed"}], "zone": "eu"})
    report = await fsck(store).check()
    assert report.is_well
    assert (report.epoch, report.counts.jobs_in_document) == (0, 1)


@in_fake_time
async def test_dead_jobs_in_segments_are_checked_too() -> None:
    queue = DeepQueue(max_attempts=1)
    for number in range(60):
        queue.submit(number)
        claimed = queue.claim()
        error = JobError(type="E", message="m")
        queue.ask(operations.FAIL_JOB, job_id=claimed.job_id, worker_id="w", error=error)
        queue.seal()
    assert queue.document["deadSegments"]
    report = await fsck(stored(queue)).check()
    assert report.is_well
    assert report.counts.dead_in_segments + report.counts.dead_in_document == 60
    document = queue.document
    document["deadSegments"][0]["jobs"] += 1
    assert kinds(await fsck(stored(queue, document)).check()) == ["summaryWrong"]


# Summaries


@pytest.mark.parametrize(
    ("field", "value"),
    [("first", 3), ("last", 10**6), ("jobs", 2), ("jobs", 400), ("bytes", 1), ("firstId", "zz"), ("lastId", "00"),
     ("types", {"odd": 1}), ("types", {"other": 1})],
)  # fmt: skip
@in_fake_time
async def test_a_wrong_summary_is_found_and_made_anew_from_its_segment(field: str, value: object) -> None:
    queue, waiting = deep_queue()
    document = queue.document
    assert document["segments"][-1][field] != value
    document["segments"][-1][field] = value
    store = stored(queue, document)
    report = await fsck(store).check()
    assert kinds(report) == ["summaryWrong"]
    assert report.findings[0].segment == document["segments"][-1]["name"]
    assert report.findings[0].mend is Mend.REPAIR
    report = await fsck(store).repair()
    assert report.is_well
    assert [finding.kind for finding in report.mended] == ["summaryWrong"]
    assert store.now()["segments"] == queue.document["segments"]
    assert all_waiting(store) == waiting


@in_fake_time
async def test_bits_of_jobs_that_a_segment_does_not_hold_are_taken_off() -> None:
    queue, waiting = deep_queue()
    document = queue.document
    document["segments"][-1]["gone"] = "A" * 20 + "/w=="
    store = stored(queue, document)
    assert "goneWrong" in kinds(await fsck(store).check())
    assert (await fsck(store).repair()).is_well
    assert all_waiting(store) == waiting


def with_a_stray_character(text: str) -> str:
    """The same base64 to a broker, which reads past what is none of it."""
    return f"{text.rstrip('=')}!{'=' * text.count('=')}"


@in_fake_time
async def test_bits_that_a_broker_can_read_are_kept_when_something_else_is_mended() -> None:
    queue, waiting = deep_queue()
    document = queue.document
    left = next(segment for segment in document["segments"] if segment.get("gone"))
    left["gone"] = with_a_stray_character(left["gone"])
    document["segments"][-1]["bytes"] += 1
    store = stored(queue, document)
    assert all_waiting(store) == waiting
    assert kinds(await fsck(store).check()) == ["summaryWrong"]
    report = await fsck(store).repair()
    assert [finding.kind for finding in report.mended] == ["summaryWrong"]
    assert report.is_well
    assert all_waiting(store) == waiting, "no job runs again that was completed"


@in_fake_time
async def test_bits_that_nobody_can_read_are_left_to_a_person() -> None:
    queue, _ = deep_queue()
    document = queue.document
    left = next(segment for segment in document["segments"] if segment.get("gone"))
    left["gone"] = "A"
    document["segments"][-1]["bytes"] += 1
    store = stored(queue, document)
    before = dict(store._objects)
    report = await fsck(store).repair()
    assert ("goneWrong", Mend.HAND) in [(finding.kind, finding.mend) for finding in report.findings]
    assert store._objects == before
    check = Check(store._objects[KEY].body)
    for name in check.names:
        check.see(name, queue.objects[name])
    [mended] = [
        s for s in json.loads(check.mended(drop_missing=False))["segments"] if s["name"] == left["name"]
    ]
    assert mended == left


# Jobs that stand twice


@in_fake_time
async def test_a_job_in_the_document_and_in_a_segment_is_gone_in_the_segment_after_a_repair() -> None:
    queue, waiting = deep_queue()
    document = queue.document
    segment = document["segments"][-1]
    twice = json.loads(queue.objects[segment["name"]])["jobs"][1]
    document["jobs"].append({name: value for name, value in twice.items() if name != "order"})
    store = stored(queue, document)
    report = await fsck(store).check()
    assert kinds(report) == ["duplicateId"]
    assert report.findings[0].job_id == twice["id"]
    report = await fsck(store).repair()
    assert report.is_well
    waiting.remove(twice["id"])
    assert all_waiting(store) == [*waiting, twice["id"]]


@in_fake_time
async def test_a_job_in_two_segments_counts_in_the_first() -> None:
    queue, waiting = deep_queue()
    document = queue.document
    name = document["segments"][-1]["name"]
    copy = json.loads(queue.objects[name])
    copy["segment"] = "1-99-copy"
    copy["jobs"] = [
        {**copy["jobs"][0], "order": 10_000},
        {"id": "only here", "status": "unclaimed", "order": 10_001},
    ]
    queue.objects["1-99-copy"] = json.dumps(copy).encode()
    summary = {
        "name": "1-99-copy", "first": 10_000, "last": 10_001, "jobs": 2,
        "bytes": len(queue.objects["1-99-copy"]), "firstId": copy["jobs"][0]["id"], "lastId": "only here",
    }  # fmt: skip
    document["segments"].append(summary)
    store = stored(queue, document)
    report = await fsck(store).check()
    assert kinds(report) == ["duplicateId"]
    assert report.findings[0].segment == "1-99-copy"
    assert (await fsck(store).repair()).is_well
    assert all_waiting(store) == [*waiting, "only here"]


@in_fake_time
async def test_a_job_with_the_order_of_another_comes_last_after_a_repair() -> None:
    queue, waiting = deep_queue()
    document = queue.document
    order = document["segments"][-1]["first"]
    document["jobs"].append(
        {"id": "late", "status": "unclaimed", "createdAt": 1, "attempts": 0, "order": order}
    )
    store = stored(queue, document)
    assert kinds(await fsck(store).check()) == ["orderTwice"]
    assert (await fsck(store).repair()).is_well
    assert all_waiting(store) == [*waiting, "late"]


@in_fake_time
async def test_a_document_with_two_jobs_of_one_id_is_left_to_a_person() -> None:
    queue, _ = deep_queue()
    document = queue.document
    document["jobs"].append(document["jobs"][0])
    document["segments"][0]["bytes"] = 1
    store = stored(queue, document)
    before = store.object()
    report = await fsck(store).repair()
    assert {"documentUnreadable", "duplicateId", "summaryWrong"} <= set(kinds(report))
    assert not report.mended
    assert store.object() == before


@in_fake_time
async def test_what_is_no_queue_document_is_said_to_be_none() -> None:
    store = FaultyStore()
    with pytest.raises(EngineStateError, match="no queue document"):
        await fsck(store).check()
    store.put_now(b'{"jobs":[')
    assert kinds(await fsck(store).check()) == ["documentUnreadable"]
    assert kinds(await fsck(store).repair()) == ["documentUnreadable"]


# Segments that cannot be read


def cut(body: bytes) -> bytes:
    return body[:-5]


either_damage = pytest.mark.parametrize("damage", [None, cut], ids=["missing", "damaged"])


def queue_with_a_spoilt_segment(
    damage: Callable[[bytes], bytes] | None,
) -> tuple[DeepQueue, list[str], FaultyStore, str]:
    """A deep queue, the ids of its waiting jobs, its store, and the name of its last segment, which is spoilt."""
    queue, waiting = deep_queue()
    store = stored(queue)
    name = queue.document["segments"][-1]["name"]
    spoil(store, name, damage)
    return queue, waiting, store, name


@either_damage
@in_fake_time
async def test_a_segment_that_cannot_be_read_is_still_referred_to_after_a_repair(
    damage: Callable[[bytes], bytes] | None,
) -> None:
    queue, waiting, store, name = queue_with_a_spoilt_segment(damage)
    report = await fsck(store).check()
    [finding] = report.findings
    assert finding.kind == ("segmentDamaged" if damage else "segmentMissing")
    assert finding.mend is Mend.DROP_MISSING
    assert key(name) in finding.text
    report = await fsck(store).repair(delete_garbage=True)
    assert kinds(report) == [finding.kind]
    assert name in [segment["name"] for segment in store.now()["segments"]]
    store._put(key(name), queue.objects[name])
    assert (await fsck(store).check()).is_well
    assert all_waiting(store) == waiting


@in_fake_time
async def test_it_is_still_referred_to_when_something_else_is_mended() -> None:
    queue, _ = deep_queue()
    document = queue.document
    document["segments"][-2]["bytes"] = 1
    store = stored(queue, document)
    spoil(store, document["segments"][-1]["name"], None)
    report = await fsck(store).repair()
    assert [finding.kind for finding in report.mended] == ["summaryWrong"]
    assert kinds(report) == ["segmentMissing"]
    assert store.now()["segments"] == queue.document["segments"]


@either_damage
@in_fake_time
async def test_its_jobs_are_given_up_only_if_that_is_asked_for(
    damage: Callable[[bytes], bytes] | None,
) -> None:
    queue, waiting, store, name = queue_with_a_spoilt_segment(damage)
    report = await fsck(store).repair(drop_missing=True, delete_garbage=True)
    assert report.is_well
    assert [finding.segment for finding in report.mended] == [name]
    lost = {job["id"] for job in json.loads(queue.objects[name])["jobs"]}
    assert all_waiting(store) == [id for id in waiting if id not in lost]
    assert (key(name) in store._objects) == (damage is not None), "what is damaged is kept for a person"


@either_damage
@in_fake_time
async def test_what_was_given_up_is_told_as_lost_with_the_number_of_jobs(
    damage: Callable[[bytes], bytes] | None,
) -> None:
    queue, _ = deep_queue()
    store = stored(queue)
    lost = 0
    for segment in queue.document["segments"][-2:]:
        spoil(store, segment["name"], damage)
        lost += len(json.loads(queue.objects[segment["name"]])["jobs"])
    assert [finding.jobs for finding in (await fsck(store).check()).findings] == [
        segment["jobs"] for segment in queue.document["segments"][-2:]
    ]
    report = await fsck(store).repair(drop_missing=True)
    assert report.dropped_jobs == lost
    name = queue.document["segments"][-1]["name"]
    told = report.mended[-1].text
    assert told.startswith(f"{queue.document['segments'][-1]['jobs']} jobs of segment {name}: gone for good")
    assert (key(name) in told) == (damage is not None), "only what is there can be looked at"
    assert "restored" not in told
    assert (await fsck(store).repair()).dropped_jobs == 0


@in_fake_time
async def test_what_is_mended_without_loss_gives_up_no_job() -> None:
    queue, _ = deep_queue()
    document = queue.document
    document["segments"][0]["bytes"] = 1
    store = stored(queue, document)
    spoil(store, document["segments"][-1]["name"], None)
    report = await fsck(store).repair()
    assert [finding.kind for finding in report.mended] == ["summaryWrong"]
    assert report.dropped_jobs == 0


def spoil(store: FaultyStore, name: str, damage: Callable[[bytes], bytes] | None) -> None:
    whole = store._objects.pop(key(name))
    if damage is not None:
        store._put(key(name), damage(whole.body))


# Garbage


@in_fake_time
async def test_garbage_is_told_by_epoch_and_deleted_only_if_that_is_asked_for() -> None:
    queue, waiting = deep_queue()
    queue.take_over()  # a second epoch: what was dropped in the first is garbage
    store = stored(queue)
    for name in ("1-5-old", "2-7-new", "README"):
        store._put(key(name), b"{}")
    report = await fsck(store).check()
    assert report.is_well
    assert "1-5-old" in report.garbage.old
    assert report.garbage.recent == ["2-7-new"]
    assert report.garbage.unknown == ["README"]
    before = dict(store._objects)
    assert (await fsck(store).repair()).is_well
    assert store._objects == before, "there was nothing to mend"
    report = await fsck(store).repair(delete_garbage=True)
    assert set(report.deleted) >= {"1-5-old", "2-7-new"}
    assert store.now()["epoch"] == 3
    left = {segment["name"] for segment in store.now()["segments"]}
    assert {name for name in store._objects if name != KEY} == {key(name) for name in (*left, "README")}
    assert all_waiting(store) == waiting


@in_fake_time
async def test_what_a_killed_start_has_left_is_garbage_of_its_own() -> None:
    queue, waiting = deep_queue()
    store = stored(queue)
    store._put("segments/osqueue-probe-9f", b"1")
    report = await fsck(store).check()
    assert report.is_well
    assert (report.garbage.probes, report.garbage.unknown) == (["osqueue-probe-9f"], [])
    assert (await fsck(store).repair()).is_well
    assert "segments/osqueue-probe-9f" in store._objects
    report = await fsck(store).repair(delete_garbage=True)
    assert "osqueue-probe-9f" in report.deleted
    assert "segments/osqueue-probe-9f" not in store._objects
    assert all_waiting(store) == waiting


@pytest.mark.parametrize("later", ["9-1-later", "1-100000-later"])
@in_fake_time
async def test_a_later_segment_shows_that_the_document_is_an_older_copy_and_nothing_is_deleted(
    later: str,
) -> None:
    queue, _ = deep_queue()
    store = stored(queue)
    for name in (later, "0-1-old", "1-2-same"):
        store._put(key(name), b"{}")
    before = dict(store._objects)
    report = await fsck(store).check()
    assert kinds(report) == ["documentOld"]
    report = await fsck(store).repair(drop_missing=True, delete_garbage=True)
    assert kinds(report) == ["documentOld"]
    assert store._objects == before


@in_fake_time
async def test_an_older_copy_is_left_as_it_is_whatever_else_is_wrong_with_it() -> None:
    """Mended, it would begin an epoch after those segments: they would be garbage."""
    queue, _ = deep_queue()
    document = queue.document
    document["segments"][0]["bytes"] = 1
    store = stored(queue, document)
    spoil(store, document["segments"][-1]["name"], None)
    store._put(key("1-100000-later"), b"{}")
    before = dict(store._objects)
    report = await fsck(store).repair(drop_missing=True, delete_garbage=True)
    assert {"documentOld", "summaryWrong", "segmentMissing"} == set(kinds(report))
    assert not report.mendable
    assert store._objects == before


# Beside a leader


@in_fake_time
async def test_a_check_beside_a_leader_finds_a_queue_that_moves_well() -> None:
    store = SlowReads()
    async with leading(store, segment_threshold=4_000) as leader:
        for number in range(150):
            await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"%d" % number))
        assert store.now()["segments"]
        checking = asyncio.create_task(fsck(store).check())
        for _ in range(100):
            claimed = await leader.ask(operations.CLAIM_JOB, worker_id="w")
            await leader.ask(operations.COMPLETE_JOB, job_id=claimed.job_id, worker_id="w")
            await asyncio.sleep(0.02)
        report = await checking
        assert report.is_well
        assert report.has_moved
        assert report.leader == leader.address


@in_fake_time
async def test_a_segment_that_is_used_up_and_deleted_while_it_is_checked_is_not_missing() -> None:
    queue, _ = deep_queue()
    store = Moving()
    for name, found in stored(queue)._objects.items():
        store._put(name, found.body)
    document = queue.document
    used_up = document["segments"].pop()["name"]
    spoil(store, used_up, None)
    moved = {**document, "commitId": "moved", "seq": document["seq"] + 1}
    store.after_document = [lambda: store.put_now(moved)]
    report = await fsck(store).check()
    assert report.has_moved
    assert kinds(report) == []


class Moving(FaultyStore):
    """Things happen right after the document was read."""

    def __init__(self) -> None:
        super().__init__()
        self.after_document: list[Callable[[], object]] = []

    async def read(self, key: str) -> Any:
        found = await super().read(key)
        if key == KEY and self.after_document:
            self.after_document.pop(0)()
        return found


class SlowReads(FaultyStore):
    """Takes its time for each read."""

    async def read(self, key: str) -> Any:
        await asyncio.sleep(0.05)
        return await super().read(key)


@in_fake_time
async def test_a_repair_beside_a_leader_is_refused_and_the_leader_leads_on() -> None:
    store = FaultyStore()
    async with leading(store, segment_threshold=4_000) as leader:
        for number in range(150):
            await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"%d" % number))
        name = store.now()["segments"][-1]["name"]
        spoil(store, name, cut)
        epoch = store.now()["epoch"]
        with pytest.raises(BrokerLeadershipError, match=leader.address) as refused:
            await fsck(store).repair(drop_missing=True)
        assert refused.value.leader == leader.address
        await leader.ask(operations.SUBMIT_JOB, payload=Raw(b"1"))
        assert store.now()["epoch"] == epoch
        assert name in [segment["name"] for segment in store.now()["segments"]]


@in_fake_time
async def test_a_repair_begins_an_epoch_of_its_own_so_that_a_leader_which_slept_writes_no_more() -> None:
    queue, _ = deep_queue()
    document = queue.document
    document["segments"][-1]["bytes"] = 1
    store = stored(queue, document)
    started_at = fake_clock().now
    await fsck(store).repair()
    assert fake_clock().now - started_at >= 10.0
    epochs = [(json.loads(body)["epoch"], json.loads(body)["broker"]) for body, _ in store.attempts]
    assert epochs == [(2, None), (2, None)]
    taken, mended = (json.loads(body) for body, _ in store.attempts)
    assert taken["segments"] == document["segments"]
    assert mended["segments"] == queue.document["segments"]
    assert store.now()["previousTerms"][-1]["epoch"] == 1


@in_fake_time
async def test_a_repair_tells_for_how_long_it_watches_a_leader_that_may_live_and_only_then() -> None:
    queue, _ = deep_queue()
    document = queue.document
    document["segments"][-1]["bytes"] = 1
    store = stored(queue, document)
    told: list[tuple[str, float, float]] = []

    def watch(leader: str, seconds: float) -> None:
        told.append((leader, seconds, fake_clock().now))

    patient = Fsck(store, fake_clock(), heartbeat_timeout=20.0)
    await patient.repair(on_watch=watch)
    [(leader, seconds, told_at)] = told
    assert (leader, seconds) == (DEAD_LEADER, 20.0)
    assert fake_clock().now - told_at >= seconds, "before it watches, not after"
    await patient.repair(on_watch=watch)
    store.put_now({**store.now(), "segments": document["segments"]})
    assert (await patient.repair(on_watch=watch)).mended, "nobody leads any more"
    assert len(told) == 1


@pytest.mark.parametrize("before", [0, 1], ids=["epoch", "mend"])
@in_fake_time
async def test_a_repair_gives_up_when_somebody_takes_over_meanwhile(before: int) -> None:
    queue, _ = deep_queue()
    document = queue.document
    document["segments"][-1]["bytes"] = 1
    store = stored(queue, document)
    theirs: list[dict[str, Any]] = []

    def take_over() -> None:
        theirs.append({**store.now(), "epoch": 7, "commitId": "theirs", "broker": "them:1"})
        store.put_now(theirs[0])

    store.meanwhile = [*[lambda: None] * before, take_over]
    with pytest.raises(BrokerLeadershipError):
        await fsck(store).repair(delete_garbage=True)
    assert store.now() == theirs[0]
    assert set(store._objects) == {KEY, *map(key, queue.objects)}


def caused(cause: OSError) -> StorageBackendError:
    """The error of a backend, raised from what the system said."""
    error = StorageBackendError(f"cannot read: {cause.strerror}", outcome="not_applied")
    error.__cause__ = cause
    return error


@in_fake_time
async def test_a_store_that_does_not_answer_is_an_error_in_bounded_time() -> None:
    queue, _ = deep_queue()
    store = Broken()
    store.put_now(queue.body)
    with pytest.raises(StorageBackendError):
        await fsck(store).check()
    store.hangs = True
    with pytest.raises(StorageBackendError, match="no answer in time"):
        await fsck(store).check()


@pytest.mark.parametrize(
    ("failure", "tries"),
    [
        (ConfigError("the client cannot be made"), 1),
        (caused(NotADirectoryError(errno.ENOTDIR, "Not a directory")), 1),
        (caused(PermissionError(errno.EACCES, "Permission denied")), 1),
        (caused(OSError(errno.EIO, "Input/output error")), 3),
        (caused(ConnectionRefusedError(errno.ECONNREFUSED, "refused")), 3),
        (StorageBackendError("503", outcome="not_applied"), 3),
    ],
    ids=str,
)
@in_fake_time
async def test_only_what_another_try_may_mend_is_tried_again(failure: Exception, tries: int) -> None:
    store = Refusing(failure)
    with pytest.raises(type(failure)):
        await fsck(store).check()
    assert store.tries == tries


async def test_a_file_where_a_folder_should_be_ends_the_check_at_once(tmp_path: Path) -> None:
    (tmp_path / "queue.json").write_bytes(b"{}")
    async with CountingFiles(tmp_path / "queue.json") as store:
        with pytest.raises(StorageBackendError, match="name another folder"):
            await Fsck(store, SystemClock()).check()
        assert store.listings == 1


class CountingFiles(FileBackend):
    """Counts how often it is asked what there is."""

    listings = 0

    def list(self, prefix: str) -> AsyncIterator[str]:
        self.listings += 1
        return super().list(prefix)


class Refusing(FaultyStore):
    """Fails always."""

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self._failure = failure
        self.tries = 0

    async def read(self, key: str) -> Any:
        self.tries += 1
        raise self._failure


class Broken(FaultyStore):
    """Its reads fail, or never end."""

    hangs = False

    async def read(self, key: str) -> Any:
        if self.hangs:
            await asyncio.Event().wait()
        raise ConnectionError("broken")


# The command


def run(*arguments: str) -> tuple[int, str, str]:
    ended = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stdout, ended.stderr


async def put(url: str, bodies: dict[str, bytes]) -> None:
    async with open_storage(url) as storage:
        for key, body in bodies.items():
            await storage.delete(key)
            await storage.create(key, body)


def test_the_command_tells_by_its_status_how_it_is(tmp_path: Path) -> None:
    queue, _ = deep_queue()
    url = f"file:{tmp_path}"
    status, told, why = run(url)
    assert (status, told) == (2, "")
    assert "no queue document" in why
    asyncio.run(put(url, {KEY: queue.body, **{key(name): body for name, body in queue.objects.items()}}))
    status, told, _ = run(url)
    assert status == 0, told
    assert told.endswith("all is well\n")
    assert run(url, "--repair")[1].endswith("all is well, there was nothing to mend\n")
    document = queue.document
    document["broker"] = None
    document["segments"][-1]["bytes"] = 1
    asyncio.run(put(url, {KEY: json.dumps(document).encode()}))
    status, told, _ = run(url, "--json")
    assert status == 1
    fields = json.loads(told)
    assert not fields["isWell"]
    assert [finding["kind"] for finding in fields["findings"]] == ["summaryWrong"]
    assert fields["counts"]["segments"] == len(document["segments"])
    status, told, _ = run(url, "--repair")
    assert status == 0, told
    assert "MENDED: segment" in told
    assert run(url)[0] == 0


async def test_the_command_beside_a_leader_finds_all_well_and_repairs_nothing(tmp_path: Path) -> None:
    url = f"file:{tmp_path}"
    async with open_storage(url) as storage:
        settings = BrokerSettings(segment_threshold=20_000, broker_heartbeat_interval=0.5)
        async with BrokerServer(storage=storage, port=0, settings=settings) as server, opened(server) as wire:
            for number in range(10):
                await wire.call(
                    "submitJobs", jobs=[{"payload": f'{{"n":{number},"k":{k}}}'} for k in range(100)]
                )
            assert (await wire.call("getStats"))["segments"]
            status, told = await beside(wire, url, "--json")
            assert (status, told["isWell"], told["leader"]) == (0, True, server.address)
            assert told["counts"]["segments"] > 0
            await storage.create(key("0-1-old"), b"{}")
            status, told = await beside(wire, url, "--json", "--repair", "--delete-garbage")
            assert (status, told["error"]["_tag"]) == (2, "BrokerLeadershipError")
            assert server.address in told["error"]["message"]
            assert await storage.read(key("0-1-old")) is not None
            assert server.is_leading


async def beside(wire: Any, *arguments: str) -> tuple[int | None, dict[str, Any]]:
    """Run the command while the queue is worked on; return its status, and what it told."""
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdout=asyncio.subprocess.PIPE)
    ended = asyncio.create_task(process.communicate())
    while not ended.done():
        await wire.call("submitJob", payload="1")
        claimed = await wire.call("claimJob", workerId="w")
        await wire.call("completeJob", jobId=claimed["jobId"], workerId="w")
    return process.returncode, json.loads((await ended)[0])


def test_the_command_refuses_options_that_go_with_a_repair_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["memory:", "--drop-missing"])
    assert ended.value.code == 2
    assert "--repair" in capsys.readouterr().err
    assert main(["nonsense://x", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["_tag"]


def fill(folder: Path, objects: dict[str, bytes]) -> str:
    """Put objects where a queue lives; return its URL."""
    asyncio.run(put(f"file:{folder}", objects))
    return f"file:{folder}"


def objects_of(queue: DeepQueue, **changes: Any) -> dict[str, bytes]:
    """All objects of a queue, its document with changes."""
    return {
        KEY: json.dumps({**queue.document, **changes}).encode(),
        **{key(name): body for name, body in queue.objects.items()},
    }


def test_the_command_says_how_many_jobs_it_gave_up_and_not_that_all_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue, _ = deep_queue()
    objects = objects_of(queue, broker=None)
    name = queue.document["segments"][-1]["name"]
    jobs = queue.document["segments"][-1]["jobs"]
    del objects[key(name)]
    url = fill(tmp_path, objects)
    assert main([url, "--repair"]) == 1
    assert f"WRONG: segment {name} is not in the store: {jobs} jobs of it" in capsys.readouterr().out
    assert main([url, "--repair", "--drop-missing"]) == 0
    told = capsys.readouterr().out
    assert f"DROPPED: {jobs} jobs of segment {name}: gone for good\n" in told
    assert told.endswith(f"\nwhat is left is well\ngiven up: {jobs} jobs\n")
    assert "MENDED" not in told
    assert "all is well" not in told


def test_the_command_gives_up_several_segments_in_one_line_and_counts_their_jobs_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue, _ = deep_queue()
    objects = objects_of(queue, broker=None)
    lost = queue.document["segments"]
    for segment in lost:
        del objects[key(segment["name"])]
    jobs = sum(segment["jobs"] - gone(segment) for segment in lost)
    url = fill(tmp_path / "a", objects)
    assert main([url, "--repair", "--drop-missing"]) == 0
    told = capsys.readouterr().out
    assert (
        f"DROPPED: {jobs} jobs of {len(lost)} segments that are not in the store, {lost[0]['name']}, " in told
    )
    assert told.count("DROPPED") == 1
    assert told.endswith(f"given up: {jobs} jobs\n")
    assert main([fill(tmp_path / "b", objects), "--repair", "--drop-missing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["droppedJobs"] == jobs


def gone(segment: dict[str, Any]) -> int:
    return int.from_bytes(b64decode(segment.get("gone", "")), "little").bit_count()


def test_the_command_tells_what_is_alike_in_one_line_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue, _ = deep_queue()
    later = {key(f"1-{1_000 + number}-later"): b"{}" for number in range(195)}
    assert main([fill(tmp_path, objects_of(queue) | later)]) == 1
    told = capsys.readouterr().out
    [wrong] = [line for line in told.splitlines() if line.startswith("WRONG")]
    assert wrong == (
        "WRONG: 195 segments that were made after the document, 1-1000-later, 1-1001-later, 1-1002-later, …: "
        "the document is an older copy. Stop the brokers and restore the newer queue.json; until then fsck mends and "
        "deletes nothing"
    )
    assert told.endswith("195 wrong, 0 of them --repair can mend\n")


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"broker": None}, "; --repair --delete-garbage removes them"),
        (
            {},
            "; the leader deletes what has been out of use for an hour (segment_retention); if no broker runs, "
            "--repair --delete-garbage does",
        ),
    ],
    ids=["nobody leads", "somebody may lead"],
)
def test_the_command_says_what_to_do_about_garbage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], advice: str
) -> None:
    queue, _ = deep_queue()
    objects = {KEY: objects_of(queue, segments=[], **change)[KEY], key("0-1-a"): b"", key("1-2-b"): b""}
    assert main([fill(tmp_path, objects)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("garbage")]
    assert line == f"garbage: 2 objects, 0-1-a, 1-2-b{advice}"


def test_the_command_says_on_stderr_that_it_watches_the_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue, _ = deep_queue()
    document = queue.document
    document["segments"][-1]["bytes"] = 1
    url = fill(tmp_path, objects_of(queue, segments=document["segments"]))
    assert main([url, "--repair", "--json", "--broker-heartbeat-timeout", "0.1"]) == 0
    told = capsys.readouterr()
    assert told.err == f"watching the document for 0.1 s: the broker {DEAD_LEADER} may lead\n"
    assert json.loads(told.out)["isWell"]


def test_the_command_takes_queue_and_timeout_from_the_environment_where_the_options_do_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue, _ = deep_queue()
    document = queue.document
    document["segments"][-1]["bytes"] = 1
    url = fill(tmp_path, objects_of(queue, segments=document["segments"]))
    environment = {"OSQUEUE_STORAGE": url, "OSQUEUE_BROKER_HEARTBEAT_TIMEOUT": "0.1"}
    assert main([], environment) == 1
    assert main(["file:/nonexistent/queue"], environment) == 2
    assert main(["--repair"], environment) == 0
    assert "for 0.1 s" in capsys.readouterr().err
    for nothing in ({}, {"OSQUEUE_STORAGE": " "}):
        with pytest.raises(SystemExit) as ended:
            main([], nothing)
        assert ended.value.code == 2
        assert "OSQUEUE_STORAGE" in capsys.readouterr().err
