"""Answers with lists of jobs: an empty list is told, and an absent one is read."""

from __future__ import annotations

import json

import httpx
import pytest
from broker.support import JSON, SERVICE, opened

from osqueue_broker import BrokerServer
from osqueue_client import operations, wire_json
from osqueue_client.operations import AnyOperation

BATCHES = (
    (operations.CLAIM_JOBS, "jobs"),
    (operations.SUBMIT_JOBS, "results"),
    (operations.COMPLETE_JOBS, "results"),
    (operations.HEARTBEAT_JOBS, "results"),
)


@pytest.mark.parametrize("fields", ['{"workerId":"w","limit":3}', '{"workerId":"w","wait":0.01}'])
async def test_a_batch_of_claims_that_comes_to_nothing_is_answered_with_an_empty_list(
    server: BrokerServer, http: httpx.AsyncClient, fields: str
) -> None:
    answer = await http.post("/v1/batch/claim", content=fields, headers=JSON)
    assert (answer.status_code, answer.json()) == (200, {"jobs": []})
    async with opened(server, "ws") as wire:
        assert await wire.call("claimJobs", **json.loads(fields)) == {"jobs": []}
    answer = await http.post(f"{SERVICE}/ClaimJobs", content=fields, headers=JSON)
    assert (answer.status_code, answer.json()) == (200, {})  # as protobuf's JSON has it


@pytest.mark.parametrize(("operation", "name"), BATCHES)
def test_the_list_in_the_answer_to_a_batch_is_always_written_and_read_as_empty_where_it_is_absent(
    operation: AnyOperation, name: str
) -> None:
    empty = wire_json.decode_response(operation, b"{}")
    assert getattr(empty, name) == ()
    assert wire_json.encode(empty) == b'{"%b":[]}' % name.encode()
