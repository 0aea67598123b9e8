"""Brokers and stores that are killed under load: what was acknowledged stays, and nothing ended comes back.

The callers send no request ids, and so each is told of each kill: what of that is true is looked up in the end.

The moments are random. With its seed a run is repeated as well as a machine repeats itself: `DRILL_SEED=1234`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest
from drills.chance import seeded
from drills.load import document_in, load_on
from drills.programs import running
from drills.stores import KilledSeaweedFS
from storage.servers.process import free_ports

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_storage import open_storage, probe

KILLS = 20
STORE_KILLS = 4
LONGEST_LIFE = 0.3
"""Seconds for which a broker, or a store, serves at most from the first answer to its end."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("storage_url", ["file", "seaweedfs"], indirect=True)
async def test_broker_that_is_killed_under_load_loses_nothing_acknowledged(
    storage_url: str, tmp_path: Path
) -> None:
    chance = seeded()
    (port,) = free_ports(1)
    command = ("-m", "osqueue_broker", "--storage", storage_url, "--port", str(port))
    epochs = [0]
    with (tmp_path / "brokers.log").open("ab") as log:
        start = partial(running, *command, cwd=tmp_path, stderr=log.fileno())
        # The last broker is to outlive the load, so it is left on a stack that is older.
        async with open_storage(storage_url) as storage, AsyncExitStack() as last:
            async with load_on(f"http://127.0.0.1:{port}") as ledger:
                for kill in range(KILLS):
                    began_at = time.monotonic()
                    async with start() as broker:
                        assert await broker.port() == str(port)
                        took = time.monotonic() - began_at
                        ledger.can_call.set()
                        await ledger.next_submit()
                        await asyncio.sleep(chance.uniform(0, LONGEST_LIFE))
                        ledger.can_call.clear()
                        assert await broker.end(signal.SIGKILL) == -signal.SIGKILL
                    epochs.append((await document_in(storage))["epoch"])
                    if kill % 5 == 0:  # one more, which may not lead yet
                        async with start() as broker:
                            await asyncio.sleep(took * chance.uniform(0.6, 1.0))
                            assert await broker.end(signal.SIGKILL) == -signal.SIGKILL
                broker = await last.enter_async_context(start())
                assert await broker.port() == str(port)
                ledger.can_call.set()
                await ledger.next_submit()
            document = await document_in(storage)
    print(ledger)
    ledger.check(document)
    epochs.append(document["epoch"])
    assert epochs == sorted(set(epochs)), f"a takeover did not raise the epoch: {epochs}"
    assert ledger.unclear, "no kill met a request in flight"
    assert ledger.unclear_ends, "no kill met a request in flight"


@pytest.mark.timeout(120)
async def test_broker_outlives_the_kills_of_its_store_and_resumes_by_itself(
    seaweedfs_stoppable: KilledSeaweedFS,
) -> None:
    chance = seeded()
    settings = BrokerSettings(request_timeout=1, probe_storage=False)  # it is probed below
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(open_storage(seaweedfs_stoppable.url))
        await probe(storage)  # the first writes of a new server take longer than the broker waits here
        broker = await stack.enter_async_context(BrokerServer(storage=storage, port=0, settings=settings))
        url = f"http://{broker.address}"
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, trust_env=False, timeout=10))
        async with load_on(url) as ledger:
            ledger.can_call.set()
            for _ in range(STORE_KILLS):
                await ledger.next_submit()
                await asyncio.sleep(chance.uniform(0, LONGEST_LIFE))
                await seaweedfs_stoppable.stop()
                number = ledger.take_number()
                answer = await http.post("/v1/jobs", json={"payload": {"number": number}})
                assert (answer.status_code, answer.json()["_tag"]) == (503, "StorageBackendError")
                ledger.note_failed_submit(number, answer.json()["outcome"])
                await seaweedfs_stoppable.start()
            await ledger.next_submit()
        document = await document_in(storage)
        print(ledger)
        ledger.check(document)
        assert document["epoch"] == 1, "the broker has led all the time"
        assert ledger.unclear
