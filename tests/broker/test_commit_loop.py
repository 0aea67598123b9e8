"""The commit loop against a store that loses requests and answers, and against other brokers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from broker.support import FaultyStore, Refused, opened, until

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client.errors import BrokerLeadershipError, EngineStateError

FAST = BrokerSettings(broker_heartbeat_interval=0.05, broker_heartbeat_timeout=0.3)
ELSEWHERE = "198.51.100.7:8080"


def broker(store: FaultyStore, **settings: Any) -> BrokerServer:
    return BrokerServer(storage=store, port=0, settings=BrokerSettings(**settings))


async def test_lost_answer_is_resolved_and_acknowledged_once() -> None:
    store = FaultyStore()
    async with broker(store) as server, opened(server) as wire:
        store.faults = ["answer"]
        job = await wire.call("submitJob", payload="1")
        assert [j["id"] for j in store.now()["jobs"]] == [job["jobId"]]
        assert len(store.attempts) == 1
        assert store.now()["epoch"] == 1
        assert (await wire.call("getStats"))["total"] == 1


async def test_lost_request_is_sent_again_byte_for_byte() -> None:
    store = FaultyStore()
    async with broker(store) as server, opened(server) as wire:
        store.faults = ["request", "request", "answer"]
        job = await wire.call("submitJob", payload="1")
        assert len(store.attempts) == 3
        assert len(set(store.attempts)) == 1
        assert [j["id"] for j in store.now()["jobs"]] == [job["jobId"]]


async def test_foreign_rewrite_that_keeps_our_ids_proves_our_write_and_begins_a_new_term() -> None:
    store = FaultyStore()
    async with broker(store) as server, opened(server) as wire:
        real = store._put
        seen: list[str] = []

        def put_and_rewrite(key: str, body: bytes) -> str:
            version = real(key, body)
            store._put = real  # type: ignore[method-assign]  # once only
            document = json.loads(body)
            document["jobs"].append(
                {"id": "foreign", "status": "unclaimed", "payload": 2, "createdAt": 1, "attempts": 0}
            )
            seen.append(document["commitId"])
            real(key, json.dumps(document).encode())
            return version

        store._put = put_and_rewrite  # type: ignore[method-assign]  # for what another does at once
        store.faults = ["answer"]
        job = await wire.call("submitJob", payload="1")
        await until(lambda: store.now()["epoch"] == 2)
        assert [j["id"] for j in store.now()["jobs"]] == [job["jobId"], "foreign"]
        assert (await wire.call("claimJob", workerId="w"))["jobId"] == job["jobId"]
        assert (await wire.call("claimJob", workerId="w"))["jobId"] == "foreign"
        assert store.now()["epoch"] == 2


async def test_rewrite_by_others_that_still_names_us_loses_only_what_was_not_acknowledged() -> None:
    store = FaultyStore()
    async with broker(store) as server, opened(server) as wire:
        store.put_now({**store.now(), "note": "x"})
        with pytest.raises(Refused) as refused:
            await wire.call("submitJob", payload="1")
        assert refused.value.status == 503
        assert refused.value.tag == "BrokerLeadershipError"
        assert refused.value.error["outcome"] == "not_applied"
        job = await wire.call("submitJob", payload="2")
        document = store.now()
        assert [j["id"] for j in document["jobs"]] == [job["jobId"]]
        assert document["note"] == "x"
        assert document["epoch"] == 2


async def test_another_leader_ends_the_term_and_nothing_more_is_written() -> None:
    store = FaultyStore()
    server = broker(store)
    await server.start()
    async with opened(server) as wire:
        await wire.call("submitJob", payload="1")
        store.put_now({**store.now(), "broker": ELSEWHERE})
        theirs = store.object()
        with pytest.raises(Refused) as refused:
            await wire.call("submitJob", payload="2")
        assert refused.value.status == 503
        assert refused.value.tag == "BrokerLeadershipError"
        assert refused.value.error["leader"] == ELSEWHERE
    with pytest.raises(BrokerLeadershipError, match=ELSEWHERE) as ended:
        await asyncio.wait_for(server.wait(), 5)
    assert ended.value.leader == ELSEWHERE
    with pytest.raises(BrokerLeadershipError):
        await server.stop()
    assert store.object() is theirs


async def test_deposed_while_writing_still_acknowledges_what_landed_in_its_own_term() -> None:
    store = FaultyStore()
    server = broker(store)
    await server.start()
    real = store._put

    def put_and_take_over(key: str, body: bytes) -> str:
        version = real(key, body)
        store._put = real  # type: ignore[method-assign]  # once only
        old = json.loads(body)
        term = {name: old[name] for name in ("epoch", "seq", "commitId")}
        stamp = {"epoch": old["epoch"] + 1, "seq": old["seq"] + 1, "commitId": "theirs"}
        real(key, json.dumps({**old, **stamp, "previousTerms": [term], "broker": ELSEWHERE}).encode())
        return version

    async with opened(server) as wire:
        store._put = put_and_take_over  # type: ignore[method-assign]  # for what another does at once
        store.faults = ["answer"]
        job = await wire.call("submitJob", payload="1")
        assert [j["id"] for j in store.now()["jobs"]] == [job["jobId"]]
    with pytest.raises(BrokerLeadershipError):
        await asyncio.wait_for(server.wait(), 5)


async def test_deleted_document_is_never_made_anew() -> None:
    store = FaultyStore()
    server = broker(store)
    await server.start()
    async with opened(server) as wire:
        await wire.call("submitJob", payload="1")
        await store.delete("queue.json")
        with pytest.raises(Refused) as refused:
            await wire.call("submitJob", payload="2")
        assert refused.value.tag == "EngineStateError"
        assert refused.value.status == 500
    with pytest.raises(EngineStateError, match="deleted"):
        await asyncio.wait_for(server.wait(), 5)
    assert store.object() is None
    assert store.creates == 1


async def test_one_write_in_flight_and_nothing_acknowledged_before_it_landed() -> None:
    store = FaultyStore()
    async with broker(store) as server, opened(server) as wire:
        store.gate.clear()
        first = asyncio.create_task(wire.call("submitJob", payload="1"))
        await until(lambda: store.at_gate == 1)
        more = [asyncio.create_task(wire.call("submitJob", payload="2")) for _ in range(20)]
        stats = asyncio.create_task(wire.call("getStats"))
        state = asyncio.create_task(wire.http.get("/state"))
        done, _ = await asyncio.wait([first, *more, stats, state], timeout=0.2)
        assert not done
        assert store.now()["jobs"] == []
        store.gate.set()
        ids = [(await task)["jobId"] for task in (first, *more)]
        assert store.now()["jobs"][0]["id"] == ids[0]
        assert {j["id"] for j in store.now()["jobs"]} == set(ids)
        assert (await stats)["total"] in range(1, 22)
        assert (await state).json()["jobs"][0]["id"] == ids[0]
        assert len(store.attempts) < 12
        await asyncio.gather(*(wire.call("claimJob", workerId=f"w{n}") for n in range(21)))
        assert store.most_in_flight == 1


async def test_too_many_waiting_requests_are_refused_at_once() -> None:
    store = FaultyStore()
    async with broker(store, max_pending=2) as server, opened(server) as wire:
        store.gate.clear()
        tasks = [asyncio.create_task(wire.call("submitJob", payload="1"))]
        await until(lambda: store.at_gate == 1)
        tasks += [asyncio.create_task(wire.call("submitJob", payload="2")) for _ in range(4)]
        await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        await until(lambda: sum(task.done() for task in tasks) == 2)
        store.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Refused)]
        assert len(refused) == 2
        assert {(r.status, r.tag, r.error["outcome"]) for r in refused} == {
            (429, "QueueFullError", "not_applied")
        }
        assert all(r.error["retryAfter"] > 0 for r in refused)
        assert len(store.now()["jobs"]) == 3


async def test_request_that_the_store_never_confirms_is_answered_unknown() -> None:
    store = FaultyStore()
    async with broker(store, request_timeout=0.1) as server, opened(server) as wire:
        store.gate.clear()
        first = asyncio.create_task(wire.call("submitJob", payload="1"))
        await until(lambda: store.at_gate == 1)
        second = asyncio.create_task(wire.call("submitJob", payload="2"))
        outcomes = []
        for task in (first, second):
            with pytest.raises(Refused) as refused:
                await asyncio.wait_for(task, 5)
            assert refused.value.status == 503
            assert refused.value.tag == "StorageBackendError"
            outcomes.append(refused.value.error["outcome"])
        assert outcomes == ["unknown", "not_applied"]
        store.gate.set()
    assert [j["payload"] for j in store.now()["jobs"]] == [1]


async def test_idle_queue_writes_only_its_sign_of_life() -> None:
    store = FaultyStore()
    async with broker(store, broker_heartbeat_interval=0.1, broker_heartbeat_timeout=1) as server:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await until(lambda: len(store.attempts) >= 5)
        assert loop.time() - began >= 0.4
        seqs = [json.loads(body)["seq"] for body, _ in store.attempts]
        assert seqs == list(range(2, 2 + len(seqs)))
        beats = [json.loads(body)["brokerHeartbeat"] for body, _ in store.attempts]
        assert beats == sorted(beats)
        assert beats[-1] > beats[0]
        assert {json.loads(body)["broker"] for body, _ in store.attempts} == {server.address}


async def test_what_changes_nothing_is_not_written() -> None:
    store = FaultyStore()
    async with broker(store) as server, opened(server) as wire:
        await wire.call("submitJob", payload="1")
        claimed = await wire.call("claimJob", workerId="w")
        writes = len(store.attempts)
        for _ in range(5):
            assert await wire.call("claimJob", workerId="w") == {}
            await wire.call("heartbeat", jobId=claimed["jobId"], workerId="w")
            await wire.call("getStats")
            await wire.call("listJobs")
        with pytest.raises(Refused):
            await wire.call("completeJob", jobId=claimed["jobId"], workerId="other")
        assert len(store.attempts) == writes == 2


async def test_graceful_stop_finishes_commits_and_releases() -> None:
    store = FaultyStore()
    server = broker(store)
    await server.start()
    async with opened(server) as wire:
        store.gate.clear()
        task = asyncio.create_task(wire.call("submitJob", payload="1"))
        await until(lambda: store.at_gate == 1)
        stopping = asyncio.create_task(server.stop())
        store.gate.set()
        job = await asyncio.wait_for(task, 5)
        await asyncio.wait_for(stopping, 5)
    await server.stop()
    assert store.now()["broker"] is None
    assert [j["id"] for j in store.now()["jobs"]] == [job["jobId"]]
    async with broker(store) as server, opened(server) as wire:  # at once, under any address
        assert (await wire.call("claimJob", workerId="w"))["jobId"] == job["jobId"]


async def test_restart_on_the_same_address_leads_at_once() -> None:
    store = FaultyStore()
    async with broker(store) as server, opened(server) as wire:
        job = await wire.call("submitJob", payload="1")
        address, killed = server.address, store.object()
    assert killed is not None
    store.put_now(killed.body)  # as kill -9 would have left it
    port = int(address.rsplit(":", 1)[1])
    async with asyncio.timeout(5):  # the default heartbeat timeout is 10 s
        async with BrokerServer(storage=store, port=port) as server, opened(server) as wire:
            assert (await wire.call("claimJob", workerId="w"))["jobId"] == job["jobId"]
            assert store.now()["epoch"] == 2


async def test_second_broker_names_the_leader_and_leaves_it_alone() -> None:
    store = FaultyStore()
    async with BrokerServer(storage=store, port=0, settings=FAST) as leader, opened(leader) as wire:
        second = BrokerServer(storage=store, port=0, settings=FAST)
        with pytest.raises(BrokerLeadershipError, match=leader.address) as refused:
            await asyncio.wait_for(second.start(), 5)
        assert refused.value.leader == leader.address
        await wire.call("submitJob", payload="1")
        assert store.now()["epoch"] == 1


async def test_dead_leader_is_taken_over_after_the_timeout_and_not_before() -> None:
    store = FaultyStore()
    await store.create("queue.json", json.dumps({"broker": ELSEWHERE, "jobs": []}).encode())
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with BrokerServer(storage=store, port=0, settings=FAST) as server:
        assert loop.time() - began >= 0.3
        assert store.now()["broker"] == server.address


async def test_expired_lease_is_claimable_in_its_old_place_and_dead_after_the_attempts() -> None:
    store = FaultyStore()
    async with broker(store, heartbeat_timeout=0.1, max_attempts=2) as server, opened(server) as wire:
        first = (await wire.call("submitJob", payload="1"))["jobId"]
        second = (await wire.call("submitJob", payload="2", maxAttempts=0))["jobId"]
        assert (await wire.call("claimJob", workerId="a"))["jobId"] == first
        # The alarm alone ends the lease: nobody asks.
        await until(lambda: store.now()["jobs"][0]["status"] == "unclaimed")
        expired = store.now()["jobs"][0]
        assert not expired.keys() & {"workerId", "heartbeat"}
        assert expired["attempts"] == 1
        with pytest.raises(Refused) as refused:
            await wire.call("completeJob", jobId=first, workerId="a")
        assert (refused.value.status, refused.value.tag) == (409, "LeaseLostError")
        again = await wire.call("claimJob", workerId="b")
        assert (again["jobId"], again["attempt"]) == (first, 2)
        assert (await wire.call("claimJob", workerId="b"))["jobId"] == second
        await until(lambda: store.now()["jobs"] == [])
        dead = (await wire.call("listDead"))["jobs"]
        assert {job["id"] for job in dead} == {first, second}
        assert all(job["error"]["type"] == "LeaseExpired" for job in dead)
        assert (await wire.call("getStats"))["dead"] == 2


async def test_heartbeats_keep_a_lease() -> None:
    store = FaultyStore()
    async with broker(store, heartbeat_timeout=0.4) as server, opened(server) as wire:
        job = (await wire.call("submitJob", payload="1"))["jobId"]
        await wire.call("claimJob", workerId="a")
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.0
        while loop.time() < end:
            await wire.call("heartbeat", jobId=job, workerId="a")
            await asyncio.sleep(0.02)
        await wire.call("completeJob", jobId=job, workerId="a")


async def test_a_request_that_fails_does_not_touch_its_batch() -> None:
    store = FaultyStore()
    async with broker(store) as server, opened(server) as wire:
        store.gate.clear()
        first = asyncio.create_task(wire.call("submitJob", payload="0"))
        await until(lambda: store.at_gate == 1)
        bad = asyncio.create_task(wire.call("completeJob", jobId="none", workerId="w"))
        good = asyncio.create_task(wire.call("submitJob", payload="1"))
        store.gate.set()
        with pytest.raises(Refused) as refused:
            await bad
        assert refused.value.status == 404
        ids = [(await task)["jobId"] for task in (first, good)]
        assert [j["id"] for j in store.now()["jobs"]] == ids


async def test_callers_in_two_groups_come_to_share_each_commit() -> None:
    store = FaultyStore()
    rounds = 8
    async with broker(store) as server, opened(server) as wire:
        await wire.call("submitJob", payload="0")
        store._latency = 0.1

        async def ask_again_and_again() -> None:
            for _ in range(rounds):
                await wire.call("submitJob", payload="1")

        async with asyncio.TaskGroup() as group:
            store.attempts.clear()
            group.create_task(ask_again_and_again())
            await until(lambda: len(store.attempts) == 1)
            group.create_task(ask_again_and_again())
    # Without gathering each write serves one of the two: 16 and the hand-over.
    assert len(store.attempts) <= rounds + 4


async def test_caller_who_does_not_come_back_holds_nobody_up() -> None:
    store = FaultyStore()
    async with broker(store) as server, opened(server) as wire:
        await asyncio.gather(*(wire.call("submitJob", payload="1") for _ in range(8)))
        store.gate.clear()
        asking = asyncio.create_task(wire.call("submitJob", payload="1"))
        await until(lambda: store.at_gate == 1)
        store.gate.set()
        await asyncio.wait_for(asking, 5)
