"""The queue document: foreign ones are opened, worked on and written back with all that they hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from broker.support import FaultyStore, Refused, opened

from osqueue_broker import BrokerServer
from osqueue_client.errors import EngineStateError

A, B, C, D = (f"00000000-0000-4000-8000-00000000000{n}" for n in range(4))

FOREIGN = (
    '{"schema": {"v": [1, 2.50, 1e400]}, "broker": null, "jobs": ['
    f'{{"id": "{A}", "status": "in_progress", "payload": {{"n": 12345678901234567890123.4500}}, "type": "t",'
    ' "createdAt": 5, "attempts": 1, "workerId": "old", "heartbeat": 7, "trace": {"x": 1.0}, "tags": []},'
    f'{{"id": "{B}", "status": "unclaimed", "createdAt": 6, "attempts": 0, "maxAttempts": 2, "zz": null}},'
    f'{{"id": "{C}", "status": "unclaimed", "payload": null, "createdAt": 6, "attempts": 0, "own": "é\\u00e9"}},'
    f'{{"id": "{D}", "status": "paused", "payload": 4, "createdAt": 8, "attempts": 0}}'
    '], "brokerHeartbeat": 3, "zone": "eu", "nothing": null}'
).encode()


async def stored(body: bytes) -> FaultyStore:
    store = FaultyStore()
    await store.create("queue.json", body)
    return store


async def test_foreign_document_is_worked_on_and_keeps_what_nobody_here_knows() -> None:
    store = await stored(FOREIGN)
    async with BrokerServer(storage=store, port=0) as server, opened(server) as wire:
        first = store.now()
        assert first["broker"] == server.address
        assert first["completedTotal"] == 0
        assert first["epoch"] >= 1
        assert first["commitId"]
        assert [job["id"] for job in first["jobs"]] == [A, B, C, D]
        claimed = await wire.call("claimJob", workerId="w")
        assert claimed["jobId"] == B
        assert "payload" not in claimed
        claimed = await wire.call("claimJob", workerId="w")
        assert claimed["jobId"] == C
        assert claimed["payload"] == "null"
        assert await wire.call("claimJob", workerId="w") == {}
        # The foreign worker still holds its lease, and ends it.
        await wire.call("heartbeat", jobId=A, workerId="old")
        await wire.call("failJob", jobId=A, workerId="old", error={"type": "E", "message": "m"})
        await wire.call("completeJob", jobId=B, workerId="w")
    written = store.object()
    assert written is not None
    body = written.body.decode()
    end: dict[str, Any] = json.loads(body)
    assert end["broker"] is None
    assert end["completedTotal"] == 1
    assert end["zone"] == "eu"
    assert "nothing" in end
    assert end["nothing"] is None
    assert '{"v": [1, 2.50, 1e400]}' in body
    assert [job["id"] for job in end["jobs"]] == [A, C, D]
    a, c, d = end["jobs"]
    assert a["status"] == "unclaimed"
    assert "workerId" not in a
    assert "heartbeat" not in a
    assert a["trace"] == {"x": 1.0}
    assert a["tags"] == []
    assert "12345678901234567890123.4500" in body
    assert c["own"] == "éé"
    assert c["status"] == "in_progress"
    assert (c["attempts"], c["workerId"], type(c["heartbeat"])) == (1, "w", int)
    assert d == {"id": D, "status": "paused", "payload": 4, "createdAt": 8, "attempts": 0}


async def test_own_document_has_the_fields_of_the_contract() -> None:
    store = FaultyStore()
    async with BrokerServer(storage=store, port=0) as server, opened(server) as wire:
        await wire.call("submitJob", payload='{"a":1}')
        await wire.call("submitJob", payload="2", type="t", maxAttempts=4)
        document = store.now()
    assert isinstance(document["broker"], str)
    assert isinstance(document["brokerHeartbeat"], int)
    assert document["completedTotal"] == 0
    first, second = document["jobs"]
    assert first["status"] == "unclaimed"
    assert first["attempts"] == 0
    assert isinstance(first["createdAt"], int)
    assert not first.keys() & {"type", "maxAttempts", "workerId", "heartbeat"}
    assert (second["type"], second["maxAttempts"]) == ("t", 4)


async def test_dead_jobs_stand_outside_jobs_and_keep_foreign_fields() -> None:
    store = await stored(FOREIGN)
    async with BrokerServer(storage=store, port=0) as server, opened(server) as wire:
        await wire.call("failJob", jobId=A, workerId="old", error={"type": "E", "message": "m"}, retry=False)
        document = store.now()
        assert A not in [job["id"] for job in document["jobs"]]
        assert document["deadJobs"][0]["trace"] == {"x": 1.0}
        assert (await wire.call("listDead"))["jobs"][0]["error"] == {"type": "E", "message": "m"}
        await wire.call("requeueDead", jobId=A)
        last = store.now()["jobs"][-1]
        assert last["id"] == A
        assert last["trace"] == {"x": 1.0}
        assert last["attempts"] == 0


async def test_leases_and_answers_of_ours_that_a_foreign_broker_left_are_read_as_what_they_are() -> None:
    store = FaultyStore()
    id = {"session": "s", "number": 1, "lowest": 1}
    async with BrokerServer(storage=store, port=0) as server, opened(server) as wire:
        submitted = await wire.call("submitJob", payload="1", requestId=id)
        claimed = await wire.call("claimJob", workerId="w", requestId=id | {"number": 2})
    theirs = store.now()  # the lease has expired, and the same worker has claimed again
    assert theirs["jobs"][0]["lease"]["token"] == claimed["leaseToken"]
    theirs["jobs"][0] |= {"attempts": 2, "heartbeat": 5}
    store.put_now(theirs)
    async with BrokerServer(storage=store, port=0) as server, opened(server) as wire:
        assert await wire.call("submitJob", payload="1", requestId=id) == submitted
        job = {"jobId": submitted["jobId"], "workerId": "w"}
        with pytest.raises(Refused) as refused:
            await wire.call("completeJob", leaseToken=claimed["leaseToken"], **job)
        assert refused.value.tag == "LeaseLostError"
        assert await wire.call("claimJob", workerId="w", requestId=id | {"number": 2}) == {}
        await wire.call("completeJob", **job)


async def test_a_document_of_clients_without_ids_has_no_sessions() -> None:
    store = FaultyStore()
    async with BrokerServer(storage=store, port=0) as server, opened(server) as wire:
        await wire.call("submitJob", payload="1")
        await wire.call("claimJob", workerId="w")
        assert "sessions" not in store.now()
        await wire.call("submitJob", payload="1", requestId={"session": "s", "number": 1, "lowest": 1})
        assert [session["id"] for session in store.now()["sessions"]] == ["s"]


def job(id: str, **more: object) -> dict[str, object]:
    return {"id": id, "status": "unclaimed", "payload": 1, "createdAt": 1, "attempts": 0, **more}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"broker": None, "brokerHeartbeat": 0, "jobs": [job(A), job(A)]}).encode(),
        json.dumps({"broker": None, "jobs": [job(A)], "deadJobs": [job(A, status="dead")]}).encode(),
        b"", b"not json", b"[]", b"null", b"\xff\xfe{}", b'{"broker": null, "jobs": [', b'{"jobs": 5}',
        b'{"jobs": [5]}', b'{"jobs": [{"id": "x"}]}', b'{"broker": 5, "jobs": []}',
        b'{"jobs": [{"id": 5, "status": "unclaimed"}]}', b'{"jobs":' + b"[" * 100_000,
        b'{"jobs": [{"id": "x", "status": "unclaimed", "attempts": "one"}]}',
        b'{"jobs": [], "x": \xff}', b'{"broker": "\xff", "jobs": []}',
        b'{"broker": null, "jobs": [{"id": "x", "status": "unclaimed", "type": "\xff"}]}',
        b'{"jobs": [], "sessions": 5}', b'{"jobs": [], "sessions": [{"id": "s"}]}',
        b'{"jobs": [], "sessions": [{"id": "s", "lowest": "1"}]}',
        b'{"jobs": [], "sessions": [{"id": "s", "lowest": 1, "answers": [["1"]]}]}',
        b'{"jobs": [], "sessions": [{"id": "s", "lowest": 1, "answers": [[]]}]}',
        b'{"jobs": [], "sessions": [{"id": "s", "lowest": 1}, {"id": "s", "lowest": 2}]}',
    ],
    ids=range(24),
)  # fmt: skip
async def test_what_is_no_queue_document_is_refused_and_left_untouched(body: bytes) -> None:
    store = await stored(body)
    before = store.object()
    server = BrokerServer(storage=store, port=0)
    with pytest.raises(EngineStateError):
        await server.start()
    with pytest.raises(EngineStateError):
        await server.wait()
    assert store.object() is before
    assert store.attempts == []
