"""What waits and what is kept is bounded: over the limit 429 at once, and nothing else is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from broker.support import WIRES, FaultyStore, Refused, opened, until

from osqueue_broker import BrokerServer, BrokerSettings

PAYLOAD = '"' + "x" * 398 + '"'
"""400 bytes."""


async def submit_until_full(wire: Any, ids: list[str]) -> Refused | None:
    try:
        ids.append((await wire.call("submitJob", payload=PAYLOAD, type="t"))["jobId"])
    except Refused as error:
        return error
    return None


async def refused(call: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await asyncio.wait_for(call, 5)
    return caught.value


@pytest.mark.parametrize("name", WIRES)
async def test_payload_bytes_that_wait_are_bounded_and_what_has_none_still_gets_through(
    name: str, waiting: Callable[[], int]
) -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0, settings=BrokerSettings(max_pending_bytes=1000))
    async with server, opened(server) as rest, opened(server, name) as wire, asyncio.TaskGroup() as group:
        store.gate.clear()
        tasks = [group.create_task(rest.call("submitJob", payload=PAYLOAD))]
        await until(lambda: store.at_gate == 1)  # this one is on its way: what waits behind it counts
        tasks += [group.create_task(rest.call("submitJob", payload=PAYLOAD)) for _ in range(2)]
        await until(lambda: waiting() == 2)

        error = await refused(wire.call("submitJob", payload=PAYLOAD))
        assert error.tag == "QueueFullError"
        assert error.status == (None if name == "ws" else 429)
        assert error.code == ("resource_exhausted" if name.startswith("connect") else None)
        if "detail" not in error.error:  # over Connect it is in there
            assert (error.error["outcome"], error.error["retryAfter"]) == ("not_applied", 1.0)
        assert not any(task.done() for task in tasks)

        tasks += [group.create_task(wire.call("submitJob", payload="1"))]  # there is room for a small one
        await until(lambda: waiting() == 3)
        stats = group.create_task(rest.call("getStats"))
        await until(lambda: waiting() == 4)
        store.gate.set()
        ids = [(await task)["jobId"] for task in tasks]
        assert (await stats)["total"] <= 4
        assert {job["id"] for job in store.now()["jobs"]} == set(ids)
        await rest.call("submitJob", payload=PAYLOAD)  # what has been taken no longer counts
    assert len(store.now()["jobs"]) == 5


async def test_a_request_that_was_withdrawn_leaves_its_room_to_others(waiting: Callable[[], int]) -> None:
    store = FaultyStore()
    settings = BrokerSettings(max_pending_bytes=400, request_timeout=0.1)
    async with BrokerServer(storage=store, port=0, settings=settings) as server, opened(server) as wire:
        store.gate.clear()
        taken = asyncio.create_task(refused(wire.call("submitJob", payload="1")))
        await until(lambda: store.at_gate == 1)
        behind = asyncio.create_task(refused(wire.call("submitJob", payload=PAYLOAD)))
        assert (await behind).tag == "StorageBackendError"
        assert (await taken).tag == "StorageBackendError"
        again = asyncio.create_task(wire.call("submitJob", payload=PAYLOAD))
        await until(lambda: waiting() == 1)
        store.gate.set()
        assert "jobId" in await again


@pytest.mark.parametrize("name", WIRES)
async def test_a_full_document_refuses_submits_and_goes_on_with_all_the_rest(
    name: str, waiting: Callable[[], int]
) -> None:
    store = FaultyStore()
    store.max_object_bytes = 8000
    async with BrokerServer(storage=store, port=0) as server, opened(server, name) as wire:
        store.takes_segments = False
        ids = [(await wire.call("submitJob", payload=PAYLOAD, type="t"))["jobId"] for _ in range(8)]
        while (error := await submit_until_full(wire, ids)) is None:
            assert len(ids) < 20
        assert error.tag == "QueueFullError"
        assert error.status == (None if name == "ws" else 429)
        assert "8,000" in error.message
        assert [job["id"] for job in store.now()["jobs"]] == ids

        # In one batch: the submit is refused alone.
        async with opened(server) as rest, asyncio.TaskGroup() as group:
            store.gate.clear()
            first = group.create_task(wire.call("claimJob", workerId="w", types=["t"]))
            await until(lambda: store.at_gate == 1)
            full = group.create_task(refused(rest.call("submitJob", payload=PAYLOAD)))
            second = group.create_task(rest.call("claimJob", workerId="w"))
            await until(lambda: waiting() == 2)
            store.gate.set()
        assert [first.result()["jobId"], second.result()["jobId"]] == ids[:2]
        assert full.result().tag == "QueueFullError"

        for id in ids[:2]:
            await wire.call("completeJob", jobId=id, workerId="w")
        await wire.call("submitJob", payload=PAYLOAD)  # there is room again
        assert (await wire.call("getStats"))["total"] == len(ids) - 1
    assert store.now()["broker"] is None
