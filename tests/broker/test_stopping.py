"""Stopping when something is in the way: a store that hangs, a leader that is still watched."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Any

import pytest
from broker.support import FaultyStore, Refused, in_fake_time, leading, opened, until
from msgspec import Raw

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import operations
from osqueue_client.errors import BrokerLeadershipError, StorageBackendError

HANGING_COMMAND = """
import asyncio, sys
from osqueue_broker import MemoryBackend, cli

class Hanging(MemoryBackend):
    async def write(self, key, body, expected_version):
        await asyncio.Event().wait()

cli.open_storage = lambda url: Hanging()
sys.exit(cli.main(["--port", "0", "--no-storage-probe"]))
"""


async def test_waiting_requests_are_answered_when_the_broker_stops_on_a_store_that_hangs() -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0)
    await server.start()
    async with opened(server) as wire, asyncio.TaskGroup() as group:
        store.gate.clear()
        taken = group.create_task(_refusal(wire))
        await until(lambda: store.at_gate == 1)
        stopping = group.create_task(_failure_of_stop(server))
        assert (await taken).error["outcome"] == "unknown"
        await asyncio.wait_for(stopping, 3)  # stop_timeout is 1.5 s
    assert store.in_flight == 0


async def test_stop_says_that_the_leadership_was_not_handed_over() -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0)
    await server.start()
    async with opened(server) as wire:
        await wire.call("submitJob", payload="1")
        store.gate.clear()
        failure = await asyncio.wait_for(_failure_of_stop(server), 3)
        assert failure.outcome == "unknown"
        assert "10 s" in failure.message  # broker_heartbeat_timeout
        assert await _failure_of_stop(server) is failure  # as often as it is asked
    assert store.now()["broker"] == server.address
    assert [job["payload"] for job in store.now()["jobs"]] == [1]
    host, port = server.address.rsplit(":", 1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


async def test_the_command_says_so_in_one_line_and_by_its_exit_status() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HANGING_COMMAND,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert (await process.stdout.readline()).startswith(b"Broker listening on ")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            out, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out) == (1, b"")
    assert b"Traceback" not in log
    last = log.decode().splitlines()[-1]
    assert last.startswith(
        "osqueue-broker: StorageBackendError: stopped, but the leadership was not handed over"
    )


@in_fake_time
async def test_all_that_waits_is_committed_however_much_it_is() -> None:
    store = FaultyStore()
    payload = Raw(b'"' + b"x" * 3_000 + b'"')
    async with leading(store, segment_threshold=8_000) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        asked = [leader.put_sized(operations.SUBMIT_JOB, 3_000, payload=payload) for _ in range(8)]
        await leader.stop()
        ids = [(await each).job_id for each in asked]
    assert [job["id"] for job in store.now()["jobs"]][1:] == ids


async def test_a_store_that_answers_again_while_the_broker_stops_gets_the_hand_over() -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0)
    await server.start()
    store.gate.clear()
    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(server.stop())
        await until(lambda: store.at_gate == 1)
        store.gate.set()
        await asyncio.wait_for(stopping, 3)
    assert store.now()["broker"] is None


async def test_stop_ends_a_broker_that_still_watches_another_leader() -> None:
    store = FaultyStore()
    first = BrokerServer(storage=store, port=0)
    await first.start()
    second = BrokerServer(storage=store, port=0, settings=BrokerSettings(broker_heartbeat_timeout=600))
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(_failure_of_start(second))
        await asyncio.sleep(0)
        await asyncio.wait_for(second.stop(), 3)
        assert isinstance(await starting, BrokerLeadershipError)
    await first.stop()
    assert store.now()["epoch"] == 1


async def test_store_that_never_answers_fails_the_start() -> None:
    class Silent(FaultyStore):
        async def read(self, key: str) -> None:
            raise ConnectionError("nobody there")

    server = BrokerServer(
        storage=Silent(), port=0, settings=BrokerSettings(request_timeout=0.1, probe_storage=False)
    )
    with pytest.raises(StorageBackendError, match=r"no good answer for 0\.1 s: nobody there"):
        await asyncio.wait_for(server.start(), 5)


async def _failure_of_stop(server: BrokerServer) -> StorageBackendError:
    with pytest.raises(StorageBackendError, match="not handed over") as failed:
        await server.stop()
    return failed.value


async def _refusal(wire: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        await wire.call("submitJob", payload="1")
    assert refused.value.tag == "StorageBackendError"
    return refused.value


async def _failure_of_start(server: BrokerServer) -> BaseException:
    with pytest.raises(BrokerLeadershipError) as failed:
        await server.start()
    return failed.value


async def test_a_cancelled_run_hands_over_and_leaves_nothing_behind() -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0)
    started = asyncio.Event()
    running = asyncio.create_task(server.run(on_started=started.set))
    await asyncio.wait_for(started.wait(), 5)
    host, port = server.address.rsplit(":", 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 5)
    assert store.now()["broker"] is None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


async def test_a_cancelled_start_ends_when_all_of_it_has_ended() -> None:
    store = FaultyStore()
    store.put_now({"broker": "198.51.100.7:80", "brokerHeartbeat": 1, "completedTotal": 0, "jobs": []})
    server = BrokerServer(storage=store, port=0)
    starting = asyncio.create_task(server.start())
    async with asyncio.timeout(5):
        while server._address is None:
            await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, 5)
    assert server._main is not None
    assert server._main.done()
    host, port = server.address.rsplit(":", 1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


async def test_a_stop_in_the_very_turn_in_which_serving_begins_is_a_graceful_one() -> None:
    store = FaultyStore()
    server = BrokerServer(storage=store, port=0)

    class Stopping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "broker_started":
                server._ask_to_stop()

    logger = logging.getLogger("osqueue.broker")
    handler = Stopping()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        await asyncio.wait_for(server.start(), 5)
        await asyncio.wait_for(server.wait(), 5)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert server._main is not None
    assert not server._main.cancelled()
    assert store.now()["broker"] is None
