"""Leaders, workers and stores that are killed, paused and stopped under load, with a standby and default settings.

Nothing acknowledged is lost, no repeated request makes a second job, and no caller sees an error: each drill says so
in one line at the end of the run. A moment that is random is repeated with `DRILL_SEED=1234`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from drills.brokers import PAUSE, Broker, Brokers, brokers_on
from drills.chance import seeded
from drills.failover import Load, Tally, failover_load, workers
from drills.load import document_in
from drills.stores import StoppableStore
from drills.worker_program import CONCURRENCY, JOB_TYPE
from storage.servers.process import free_ports

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import OsqueueClient
from osqueue_storage import open_storage
from osqueue_storage.file_paths import LOCK_NAME, TEMP_PREFIX

pytestmark = [pytest.mark.timeout(150)]
on_both = pytest.mark.parametrize("storage_url", ["file", "seaweedfs"], indirect=True)
on_both_stopped = pytest.mark.parametrize("stoppable_store", ["file", "seaweedfs"], indirect=True)

HEARTBEAT_INTERVAL = BrokerSettings().broker_heartbeat_interval
HEARTBEAT_TIMEOUT = BrokerSettings().broker_heartbeat_timeout
AFTER_KILL, AFTER_TERM = 6.0, 1.0
"""Seconds after which a standby serves."""
MARGIN = 2
"""For a machine that does other things, too."""
NOTES = "notes.jsonl"

Tell = Callable[[str], None]


@asynccontextmanager
async def pair_under_load(
    storage_url: str, folder: Path, jobs: int | None = None
) -> AsyncIterator[tuple[Brokers, Broker, Broker, Load]]:
    """Run a leader and a standby, and producers and workers that know both."""
    async with brokers_on(storage_url, folder) as brokers:
        leader, standby = await brokers.start_pair(free_ports(2))
        urls = [leader.url, standby.url]
        async with failover_load(storage_url, urls, folder / NOTES, Tally(jobs)) as load:
            yield brokers, leader, standby, load


async def a_while(load: Load, chance: random.Random) -> None:
    """Let the load run for a random time, while there are answers."""
    await load.tally.acknowledged(len(load.tally.submitted) + 20)
    await asyncio.sleep(chance.uniform(0.2, 0.5))


def kill(broker: Broker, storage_url: str, *, mid_write: bool) -> float:
    """Kill a broker; return when. In a folder that is while a commit is written, or when it has just landed.

    The first is the moment for what was acknowledged too early, the second for what is sent again.
    """
    if storage_url.startswith("file:"):
        folder = Path(storage_url.removeprefix("file:"))
        document, until = folder / "queue.json", time.monotonic() + 1
        before = document.stat().st_ino
        while time.monotonic() < until:
            if mid_write and any(name.startswith(TEMP_PREFIX) for name in os.listdir(folder)):
                break
            if not mid_write and document.stat().st_ino != before:
                break
    broker.program.process.send_signal(signal.SIGKILL)
    return time.monotonic()


async def pause_process(broker: Broker, storage_url: str, chance: random.Random) -> None:
    """Stop a broker by SIGSTOP, but not while it holds the lock of a folder: nobody else could write there."""
    lock = Path(storage_url.removeprefix("file:"), LOCK_NAME)
    for _ in range(200):
        broker.program.process.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, broker.program.process.pid, os.WSTOPPED)
        if not storage_url.startswith("file:") or can_lock(lock):
            return
        broker.program.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(chance.uniform(0, 0.02))
    raise AssertionError("the broker held the folder's lock all the time")


def can_lock(path: Path) -> bool:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


async def require_deposed(broker: Broker, leader: Broker, since: float) -> float:
    """Require that a broker, from when it runs again, never says that it leads, and soon who does; return when."""
    async with asyncio.timeout(HEARTBEAT_INTERVAL):
        while True:
            status, readiness = await broker.get("/readyz")
            assert status == 503, f"two brokers lead: {readiness}"
            if readiness == {"status": "standby", "leader": leader.address}:
                break
            await asyncio.sleep(PAUSE)
    at = time.monotonic()
    assert [lost["leader"] for lost in broker.events("leadership_lost")] == [leader.address]
    status, answer = await broker.submit()
    assert (status, answer["_tag"], answer["leader"]) == (503, "BrokerLeadershipError", leader.address)
    assert (await leader.get("/readyz"))[0] == 200
    return at - since


@on_both
async def test_standby_takes_over_from_a_leader_that_is_killed_under_load(
    storage_url: str, tmp_path: Path, tell: Tell
) -> None:
    chance = seeded()
    async with pair_under_load(storage_url, tmp_path) as (_, leader, standby, load):
        await a_while(load, chance)
        mid_write = chance.random() < 0.5
        killed_at = kill(leader, storage_url, mid_write=mid_write)
        served = await load.tally.answer_of(standby.url, killed_at) - killed_at
        await a_while(load, chance)
    outcome = load.concluded()
    tell(f"kill -9 of the leader: {outcome}; the standby served {served:.2f} s after the kill")
    outcome.require_promises()
    # Behind a commit that has just landed all answers may be on their way.
    assert outcome.unanswered or not mid_write, "the kill met no request in flight"
    assert served < MARGIN * AFTER_KILL
    (silent,) = standby.events("leader_silent")
    assert silent["refused_connections"] >= 3
    assert silent["silent_for"] < HEARTBEAT_TIMEOUT, "it waited the whole time"


@on_both
async def test_leader_that_was_paused_until_another_leads_says_who_does(
    storage_url: str, tmp_path: Path, tell: Tell
) -> None:
    chance = seeded()
    async with pair_under_load(storage_url, tmp_path) as (_, leader, standby, load):
        await a_while(load, chance)
        await pause_process(leader, storage_url, chance)
        paused_at = time.monotonic()
        led = await standby.until("ready", 30) - paused_at
        continued_at = time.monotonic()
        leader.program.process.send_signal(signal.SIGCONT)
        told = await require_deposed(leader, standby, continued_at)
        served = await load.tally.answer_of(standby.url, paused_at) - paused_at
        await a_while(load, chance)
        assert (await leader.get("/readyz"))[0] == 503
    outcome = load.concluded()
    tell(
        f"SIGSTOP of the leader: {outcome}; the standby led {led:.2f} s after it and served {served:.2f} s after it; "
        f"after SIGCONT the deposed one said so within {told:.2f} s"
    )
    outcome.require_promises()
    assert len(standby.events("leadership_taken")) == 1
    assert len(leader.events("leadership_taken")) == 1


@on_both
async def test_leader_that_is_told_to_end_under_load_hands_over(
    storage_url: str, tmp_path: Path, tell: Tell
) -> None:
    chance = seeded()
    async with pair_under_load(storage_url, tmp_path) as (_, leader, standby, load):
        await a_while(load, chance)
        told_at = time.monotonic()
        leader.program.process.send_signal(signal.SIGTERM)
        served = await load.tally.answer_of(standby.url, told_at) - told_at
        assert await leader.program.process.wait() == 0
        await a_while(load, chance)
    outcome = load.concluded()
    tell(f"SIGTERM of the leader: {outcome}; the standby served {served:.2f} s after the signal")
    outcome.require_promises()
    assert served < MARGIN * AFTER_TERM
    assert leader.events("leadership_released")


@on_both
async def test_jobs_of_a_worker_that_is_killed_are_done_by_another_after_the_lease(
    storage_url: str, tmp_path: Path, tell: Tell
) -> None:
    lease = 2.0
    notes, tally = tmp_path / NOTES, Tally()
    settings = BrokerSettings(heartbeat_timeout=lease)
    async with (
        open_storage(storage_url) as storage,
        BrokerServer(storage=storage, port=0, settings=settings) as server,
        OsqueueClient(url := f"http://{server.address}") as client,
        workers(1, notes, url, seconds=600, heartbeat_interval=lease / 4) as (doomed,),
    ):
        for number in [tally.take_number() for _ in range(CONCURRENCY)]:
            tally.note_submit(number, await client.submit_job(JOB_TYPE, {"number": number}))
        doomed_ids = set(tally.submitted.values())
        load = Load(tally, notes)
        await load.until_begun(len(doomed_ids))
        async with failover_load(storage_url, [url], notes, tally) as load:
            await load.until_begun(len(doomed_ids) + 1)
            await asyncio.sleep(1.5 * lease)  # its heartbeats keep its jobs from the others
            begun = load.begun  # read once: it grows all the time
            assert len(begun) == len(set(begun))
            killed_at = time.monotonic()
            await doomed.end(signal.SIGKILL)
            await load.until_ended(doomed_ids)
    outcome = load.concluded()
    again = {note["claimed"]: note for note in load.notes() if note.get("claimed") in doomed_ids}
    took = [again[job_id]["at"] - killed_at for job_id in doomed_ids]
    tell(
        f"kill -9 of a worker with {len(doomed_ids)} jobs: {outcome}; with a lease of {lease:g} s others began its "
        f"jobs {min(took):.2f} to {max(took):.2f} s after the kill"
    )
    outcome.require_promises()
    assert set(outcome.rerun) == doomed_ids
    assert {note["attempt"] for note in again.values()} == {2}
    assert lease / 2 < min(took)
    assert max(took) < MARGIN * lease


@on_both_stopped
async def test_service_resumes_by_itself_when_a_store_that_was_stopped_is_back(
    stoppable_store: StoppableStore, tmp_path: Path, tell: Tell
) -> None:
    chance = seeded()
    async with pair_under_load(stoppable_store.url, tmp_path) as (_, leader, standby, load):
        await a_while(load, chance)
        await stoppable_store.stop()
        began_at = time.monotonic()
        await leader.until("stale")
        answers = len(load.tally.answers)
        for broker in (leader, standby):
            assert await broker.get("/healthz") == (200, {"status": "ok"})
            assert (await broker.get("/readyz"))[0] == 503
        await load.tally.some_unanswered()  # the broker has waited for the store as long as it does
        assert len(load.tally.answers) == answers
        await stoppable_store.start()
        ended_at = time.monotonic()
        await load.tally.acknowledged(len(load.tally.submitted) + 1)
        served = time.monotonic() - ended_at
        await a_while(load, chance)
        ready = [broker.address for broker in (leader, standby) if (await broker.get("/readyz"))[0] == 200]
        assert len(ready) == 1
    outcome = load.concluded()
    tell(
        f"the store stopped for {ended_at - began_at:.1f} s: {outcome}; served {served:.2f} s after the store was back"
    )
    outcome.require_promises()


@on_both
async def test_one_of_two_brokers_that_are_started_at_once_leads(
    storage_url: str, tmp_path: Path, tell: Tell
) -> None:
    async with brokers_on(storage_url, tmp_path) as brokers:
        async with asyncio.TaskGroup() as group:
            starts = [group.create_task(brokers.start(port)) for port in free_ports(2)]
        pair = [start.result() for start in starts]
        async with asyncio.timeout(20):
            while 200 not in [(await broker.get("/readyz"))[0] for broker in pair]:
                await asyncio.sleep(PAUSE)
        leader, standby = sorted(pair, key=lambda broker: not broker.events("leadership_taken"))
        await standby.until("standby")
        async with failover_load(
            storage_url, [broker.url for broker in pair], tmp_path / NOTES, Tally()
        ) as load:
            await load.tally.acknowledged(200)
            assert (await leader.get("/readyz"))[0] == 200
            assert await standby.get("/readyz") == (503, {"status": "standby", "leader": leader.address})
            status, answer = await standby.submit()
            assert (status, answer["leader"]) == (503, leader.address)
        async with open_storage(storage_url) as storage:
            document = await document_in(storage)
    outcome = load.concluded()
    tell(f"two brokers started at once: {outcome}")
    outcome.require_promises()
    assert not standby.events("leadership_taken")
    assert (document["epoch"], document["broker"]) == (1, leader.address)


@on_both
async def test_thousand_jobs_pass_through_five_failovers(
    storage_url: str, tmp_path: Path, tell: Tell
) -> None:
    chance = seeded()
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM]
    share = 1000 // (2 * len(signals))
    served: list[str] = []
    async with pair_under_load(storage_url, tmp_path, jobs=0) as (brokers, leader, standby, load):
        tally = load.tally
        for number in signals:
            known = len(tally.submitted)
            tally.allow(share)
            await tally.acknowledged(known + chance.randrange(1, share))
            tally.allow(share)
            at = time.monotonic()
            if number == signal.SIGKILL:
                at = kill(leader, storage_url, mid_write=bool(served))
            elif number == signal.SIGSTOP:
                await pause_process(leader, storage_url, chance)
                await standby.until("ready", 30)
                leader.program.process.send_signal(signal.SIGCONT)
                await require_deposed(leader, standby, at)
            else:
                leader.program.process.send_signal(number)
            served.append(f"{number.name} {await tally.answer_of(standby.url, at) - at:.2f} s")
            if number != signal.SIGSTOP:
                await leader.program.process.wait()
                leader = await brokers.start(leader.port)
            await leader.until("standby")
            leader, standby = standby, leader
        await tally.acknowledged(1000)
    outcome = load.concluded()
    tell(f"{len(signals)} failovers: {outcome}; served after {', '.join(served)}")
    outcome.require_promises()
    assert outcome.unanswered, "no failover met a request in flight"
    assert outcome.acknowledged == 1000
