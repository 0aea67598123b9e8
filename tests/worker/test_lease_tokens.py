"""The worker and the token of a lease: it sends it along, and heeds it when it is stale."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from worker.support import Overridden, until

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client import OsqueueClient
from osqueue_client.models import ClaimedJobs
from osqueue_storage import MemoryBackend
from osqueue_worker import Worker


class Recording(Overridden):
    """Notes the tokens that were answered and those that were sent."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.given: list[str | None] = []
        self.sent: list[tuple[str, str | None]] = []

    async def call(self, operation: Any, request: Any, /) -> Any:
        for lease in getattr(request, "jobs", (request,)):
            if hasattr(lease, "lease_token"):
                self.sent.append((operation.name, lease.lease_token))
        answer = await super().call(operation, request)
        if operation.response is ClaimedJobs:
            self.given += [job.lease_token for job in answer.jobs]
        return answer


@pytest.mark.parametrize("end", ["completeJob", "failJob"])
async def test_token_of_the_claim_is_sent_with_all_that_concerns_the_job(end: str) -> None:
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        transport = Recording(f"http://{server.address}")

        async def handle(payload: object) -> None:
            await until(lambda: transport.called["heartbeat"])
            if end == "failJob":
                raise ValueError("no")

        async with OsqueueClient(transport=transport) as client:
            await client.submit_job("a", 1, max_attempts=1)
            settings: dict[str, Any] = {"heartbeat_interval": 0.02, "poll_interval": 0.01}
            async with Worker(client=client, handlers={"a": handle}, **settings):
                await until(lambda: transport.called[end])
    [token] = transport.given
    assert token
    assert set(transport.sent) == {("heartbeatJobs", token), (end, token)}


async def test_handler_is_cancelled_when_its_lease_went_to_another_of_the_same_name() -> None:
    rules = BrokerSettings(heartbeat_timeout=0.3)
    async with BrokerServer(storage=MemoryBackend(), port=0, settings=rules) as server:
        transport = Overridden(f"http://{server.address}")
        may_beat, has_ended = asyncio.Event(), asyncio.Event()
        transport.before["heartbeat"] = may_beat.wait

        async def handle(payload: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                has_ended.set()

        async with OsqueueClient(transport=transport) as client, OsqueueClient(server.address) as other:
            await client.submit_job("a", 1)
            settings: dict[str, Any] = {"heartbeat_interval": 0.02, "poll_interval": 0.01, "concurrency": 1}
            async with Worker(client=client, handlers={"a": handle}, worker_id="w", **settings):
                await until(lambda: transport.called["heartbeat"])
                async with asyncio.timeout(10):
                    while (again := await other.claim_job("w")) is None:
                        await asyncio.sleep(0.01)
                may_beat.set()
                await asyncio.wait_for(has_ended.wait(), 10)
                await other.complete_job(again.id, "w", lease_token=again.lease_token)
            assert (await other.get_stats()).completed_total == 1
    assert (transport.called["completeJob"], transport.called["failJob"]) == (0, 0)
