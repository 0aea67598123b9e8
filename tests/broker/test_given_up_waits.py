"""A claim that waits for a job, and is answered that it was not applied, gets none."""

from __future__ import annotations

import asyncio

import pytest

from osqueue_broker import BrokerSettings
from osqueue_broker.inbox import Inbox
from osqueue_broker.queue.mutation import FOR_JOB, Mutation
from osqueue_client import StorageBackendError
from osqueue_client.models import ClaimJob
from osqueue_client.operations import CLAIM_JOB


async def test_a_wait_that_is_given_up_is_withdrawn_before_the_next_batch() -> None:
    inbox = Inbox(BrokerSettings())
    loop = asyncio.get_running_loop()
    answer = inbox.put(Mutation(CLAIM_JOB, ClaimJob(worker_id="w", wait=0.001), "claim"), 0)
    inbox.take()
    inbox.answer([FOR_JOB])
    while (ends_in := inbox.next_wait_ends_in()) is not None and ends_in > 0:
        await asyncio.sleep(0.001)
    inbox.give_up(arrived_before=loop.time())
    assert inbox.take_withdrawn() == ["claim"]  # in the same turn of the loop
    with pytest.raises(StorageBackendError) as raised:
        await answer
    assert raised.value.outcome == "not_applied"
    inbox.close(StorageBackendError("over"))
