"""A claim whose answer has reached nobody: its job does not wait for a lease that nobody knows of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from broker.support import JSON, NUMBERS, SERVICE, FaultyStore, in_fake_time, leading, opened, to_proto, until
from websockets.asyncio.client import connect

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_broker.queue.apply import apply
from osqueue_broker.queue.claims import UNDELIVERED, undelivered
from osqueue_broker.queue.document import write_document
from osqueue_broker.queue.mutation import Mutation
from osqueue_broker.queue.rules import Now, Rules
from osqueue_broker.queue.state import QueueState
from osqueue_broker.queue.terms import EMPTY
from osqueue_client import models, operations
from osqueue_client.models import ClaimedJob, RequestId

HEADER = EMPTY.takeover(commit_id="c", wall_ms=1, broker="b:1")
ID = {"session": "0123456789abcdef", "number": 1, "lowest": 1}


class Queue:
    """A queue with some jobs, in the order of their ids."""

    def __init__(self, *ids: str, max_attempts: int = 3) -> None:
        self.state = QueueState(Rules(heartbeat_timeout=30, max_attempts=max_attempts))
        self.served = 0.0
        self.has_changed = False
        self._tokens = 0
        for id in ids:
            self.do(Mutation(operations.SUBMIT_JOB, models.SubmitJob(), id))

    def do(self, mutation: Mutation) -> Any:
        applied = apply(self.state, [mutation], Now(1, self.served))
        self.has_changed = applied.has_changed
        return applied.answers[0]

    def claim(self, number: int | None = None, worker_id: str = "w") -> ClaimedJob:
        self._tokens += 1
        id = None if number is None else RequestId(session="s", number=number, lowest=1)
        request = models.ClaimJob(worker_id=worker_id, request_id=id)
        answer = self.do(Mutation(operations.CLAIM_JOB, request, f"token-{self._tokens}"))
        assert isinstance(answer, ClaimedJob)
        return answer

    def heartbeat(self, claimed: ClaimedJob) -> Any:
        beat = models.LeasedJob(job_id=str(claimed.job_id), worker_id="w", lease_token=claimed.lease_token)
        return self.do(Mutation(operations.HEARTBEAT, beat))

    def lose(self, claimed: ClaimedJob, *, had_id: bool) -> None:
        id = RequestId(session="s", number=1, lowest=1) if had_id else None
        mutation = undelivered(models.ClaimJob(worker_id="w", request_id=id), claimed)
        assert mutation is not None
        assert self.do(mutation) == models.Empty()

    def jobs(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = json.loads(write_document(HEADER, self.state))["jobs"]
        return jobs


# The queue


def test_a_claim_without_an_id_is_taken_back_at_once_and_leaves_no_trace() -> None:
    queue = Queue("a", "b")
    before = queue.jobs()
    queue.lose(queue.claim(), had_id=False)
    assert queue.has_changed
    assert queue.jobs() == before
    assert [queue.claim().job_id, queue.claim().job_id] == ["a", "b"]


def test_a_claim_with_an_id_is_taken_back_after_ten_seconds_and_leaves_no_trace() -> None:
    queue = Queue("a", "b", max_attempts=1)
    before = queue.jobs()
    queue.lose(queue.claim(1), had_id=True)
    assert not queue.has_changed
    assert queue.claim().job_id == "b"
    queue.served = 9.99
    assert queue.claim().job_id is None
    queue.served = 10
    again = queue.claim()
    assert (again.job_id, again.attempt) == ("a", 1)
    assert len(queue.state.dead) == 0
    assert queue.jobs()[0]["createdAt"] == before[0]["createdAt"]
    assert "lastError" not in queue.jobs()[0]


def test_a_repeat_within_ten_seconds_gets_the_same_lease_in_full() -> None:
    queue = Queue("a")
    first = queue.claim(1)
    queue.lose(first, had_id=True)
    queue.served = 9.99
    assert queue.claim(1) == first
    queue.served = 39.98
    assert queue.claim(2).job_id is None
    queue.served = 39.99
    assert queue.claim(2).attempt == 2  # an expired lease like any other


def test_a_repeat_after_ten_seconds_claims_anew() -> None:
    queue = Queue("a")
    first = queue.claim(1)
    queue.lose(first, had_id=True)
    queue.served = 10
    again = queue.claim(1)
    assert (again.job_id, again.attempt) == ("a", 1)
    assert again.lease_token != first.lease_token


@pytest.mark.parametrize("had_id", [True, False])
def test_a_heartbeat_proves_that_the_lease_is_known(had_id: bool) -> None:
    queue = Queue("a")
    first = queue.claim(1 if had_id else None)
    assert queue.heartbeat(first) == models.Empty()
    queue.lose(first, had_id=had_id)
    queue.served = 29.9
    assert queue.claim().job_id is None


def test_a_heartbeat_ends_the_doubt() -> None:
    queue = Queue("a")
    first = queue.claim(1)
    queue.lose(first, had_id=True)
    queue.served = 5
    queue.heartbeat(first)
    queue.served = 34.9
    assert queue.claim().job_id is None


def test_a_lease_is_in_doubt_only_when_all_answers_with_it_are_lost() -> None:
    queue = Queue("a")
    first = queue.claim(1)
    assert queue.claim(1) == first
    queue.lose(first, had_id=True)  # one of two
    queue.served = 10
    assert queue.claim().job_id is None
    queue.lose(first, had_id=True)
    queue.served = 19.9
    assert queue.claim().job_id is None
    queue.served = 20
    assert queue.claim().attempt == 1


def test_doubt_never_makes_a_lease_longer() -> None:
    queue = Queue("a")
    first = queue.claim(1)
    queue.served = 25
    queue.lose(first, had_id=True)
    queue.served = 30
    assert queue.claim().attempt == 1


def test_another_lease_of_the_job_is_not_touched() -> None:
    queue = Queue("a")
    first = queue.claim()
    queue.served = 30
    second = queue.claim(worker_id="v")
    queue.lose(first, had_id=False)
    assert not queue.has_changed
    assert queue.jobs()[0]["workerId"] == "v"
    queue.lose(second, had_id=False)
    queue.lose(second, had_id=False)
    assert queue.claim().attempt == 2
    end = models.LeasedChange(job_id="a", worker_id="w")
    queue.do(Mutation(operations.COMPLETE_JOB, end))
    queue.lose(second, had_id=False)
    assert len(queue.state.jobs) == 0


def test_answers_lost_without_end_do_not_fill_the_memory() -> None:
    queue = Queue("a")
    for _ in range(1_000):
        queue.lose(queue.claim(1), had_id=True)
    assert len(queue.state._leases) <= 70
    queue.served = 10
    assert queue.claim().attempt == 1


def test_only_a_lease_has_to_be_taken_back() -> None:
    claim = models.ClaimJob(worker_id="w")
    assert undelivered(claim, ClaimedJob()) is None
    assert undelivered(models.SubmitJob(), models.JobSubmitted(job_id="a")) is None
    assert UNDELIVERED not in operations.OPERATIONS


# The commit loop


@in_fake_time
async def test_a_claim_that_is_cancelled_after_it_was_taken_is_taken_back_by_the_next_commit() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        submitted = await leader.ask(operations.SUBMIT_JOB)
        store.gate.clear()
        claim = leader.put(operations.CLAIM_JOB, worker_id="gone")
        await until(lambda: store.at_gate == 1)
        claim.cancel()
        commits = len(store.attempts)
        store.gate.set()
        await until(lambda: len(store.attempts) == commits + 1)
        assert b'"in_progress"' in store.attempts[-2][0]
        assert store.now()["jobs"][0]["status"] == "unclaimed"
        assert store.now()["jobs"][0]["attempts"] == 0
        assert (await leader.ask(operations.CLAIM_JOB, worker_id="w")).job_id == submitted.job_id


@in_fake_time
async def test_a_claim_whose_caller_was_told_that_its_outcome_is_unknown_is_taken_back() -> None:
    store = FaultyStore()
    async with leading(store, request_timeout=8.0) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        store.gate.clear()
        claim = leader.put(operations.CLAIM_JOB, worker_id="w")
        await asyncio.wait((claim,))
        assert "not confirmed" in str(claim.exception())
        store.gate.set()
        claimed = await leader.ask(operations.CLAIM_JOB, worker_id="w")
        assert claimed.attempt == 1


@in_fake_time
async def test_a_lease_is_taken_back_however_long_the_store_is_down() -> None:
    store = FaultyStore()
    async with leading(store, request_timeout=8.0, heartbeat_timeout=1_000.0, max_pending=2) as leader:
        await leader.ask(operations.SUBMIT_JOB)
        claimed = await leader.ask(operations.CLAIM_JOB, worker_id="w")
        store.gate.clear()
        asked = [leader.put(operations.SUBMIT_JOB)]
        await until(lambda: store.at_gate == 1)
        asked += [leader.put(operations.SUBMIT_JOB) for _ in range(2)]
        lost = undelivered(models.ClaimJob(worker_id="w"), claimed)
        assert lost is not None
        leader.commits.put(lost)  # there is room for it, though for nothing else
        await asyncio.wait(asked)
        await asyncio.sleep(20)
        store.gate.set()
        await until(lambda: store.now()["jobs"][0]["status"] == "unclaimed")


# Real connections


@asynccontextmanager
async def held_up() -> AsyncIterator[tuple[FaultyStore, BrokerServer, str]]:
    """A broker with one job, whose store holds up the next write; and the job's id."""
    store = FaultyStore()
    async with (
        BrokerServer(storage=store, port=0, settings=BrokerSettings(max_attempts=1)) as server,
        opened(server) as wire,
    ):
        submitted = await wire.call("submitJob", payload="1")
        store.gate.clear()
        try:
            yield store, server, submitted["jobId"]
        finally:
            store.gate.set()


async def has_noticed(server: BrokerServer) -> None:
    """Return when the broker has read all that was sent, and seen all ends of connections, before this call."""
    async with httpx.AsyncClient(trust_env=False) as http:
        for _ in range(2):
            assert (await http.get(f"http://{server.address}/healthz")).status_code == 200


async def claimed_by_another(server: BrokerServer) -> dict[str, Any]:
    """What a worker gets that asks until there is a job."""
    async with opened(server) as wire, asyncio.timeout(5):
        while not (claimed := await wire.call("claimJob", workerId="other")):
            pass
        assert isinstance(claimed, dict)
        return claimed


def http_request(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def rest_claim(**fields: Any) -> bytes:
    return http_request("/v1/jobs/claim", json.dumps(fields).encode(), "content-type: application/json")


def connect_claim(*headers: str, **fields: Any) -> bytes:
    body = to_proto(fields, NUMBERS["claimJob"][0])
    return http_request(f"{SERVICE}/ClaimJob", body, "content-type: application/proto", *headers)


async def hang_up(store: FaultyStore, server: BrokerServer, request: bytes, *, at_once: bool) -> None:
    """Send a claim, and end the connection while the claim waits for the store."""
    host, port = server.address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    await until(lambda: store.at_gate == 1)
    if at_once:
        writer.transport.abort()
    writer.close()
    await has_noticed(server)


async def hang_up_websocket(
    store: FaultyStore, server: BrokerServer, *, at_once: bool, **fields: Any
) -> None:
    socket = await connect(f"ws://{server.address}/v1/ws", proxy=None)
    await socket.send(json.dumps({"id": 1, "method": "claimJob", "params": fields}))
    await until(lambda: store.at_gate == 1)
    if at_once:
        socket.transport.abort()
    await socket.close()
    await has_noticed(server)


async def leave(kind: str, store: FaultyStore, server: BrokerServer, at_once: bool, **fields: Any) -> None:
    if kind == "ws":
        await hang_up_websocket(store, server, at_once=at_once, **fields)
        return
    request = rest_claim(**fields) if kind == "rest" else connect_claim(**fields)
    await hang_up(store, server, request, at_once=at_once)


@pytest.mark.parametrize("at_once", [True, False], ids=["abort", "close"])
@pytest.mark.parametrize("kind", ["rest", "ws", "connect"])
async def test_a_client_that_hangs_up_while_its_claim_waits_costs_the_job_no_attempt(
    kind: str, at_once: bool
) -> None:
    async with held_up() as (store, server, job_id):
        await leave(kind, store, server, at_once, workerId="gone")
        store.gate.set()
        claimed = await claimed_by_another(server)
        assert (claimed["jobId"], claimed["attempt"]) == (job_id, 1)
        assert "lastError" not in store.now()["jobs"][0]


@pytest.mark.parametrize("kind", ["rest", "ws", "connect"])
async def test_a_client_that_hangs_up_and_repeats_its_claim_gets_the_same_lease(kind: str) -> None:
    async with held_up() as (store, server, job_id):
        await leave(kind, store, server, True, workerId="w", requestId=ID)
        store.gate.set()
        await until(lambda: store.now()["jobs"][0]["status"] == "in_progress")
        token = store.now()["jobs"][0]["lease"]["token"]
        wires = {"rest": "rest", "ws": "ws", "connect": "connect-proto"}
        async with opened(server) as other, opened(server, wires[kind]) as wire:
            assert await other.call("claimJob", workerId="other") == {}
            again = await wire.call("claimJob", workerId="w", requestId=ID | {"ageMs": 500})
            assert (again["jobId"], again["attempt"], again["leaseToken"]) == (job_id, 1, token)
            await wire.call("completeJob", jobId=job_id, workerId="w", leaseToken=token)
        assert store.now()["completedTotal"] == 1


async def test_a_connect_call_whose_deadline_passes_costs_the_job_no_attempt() -> None:
    async with held_up() as (store, server, job_id), httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(
            f"http://{server.address}{SERVICE}/ClaimJob",
            json={"workerId": "gone"},
            headers=JSON | {"connect-timeout-ms": "100"},
        )
        assert answer.json()["code"] == "deadline_exceeded"
        assert store.at_gate == 1
        store.gate.set()
        claimed = await claimed_by_another(server)
        assert (claimed["jobId"], claimed["attempt"]) == (job_id, 1)


async def test_a_connect_call_with_an_id_whose_deadline_passes_may_be_repeated() -> None:
    async with held_up() as (store, server, job_id), httpx.AsyncClient(trust_env=False) as http:
        await http.post(
            f"http://{server.address}{SERVICE}/ClaimJob",
            json={"workerId": "w", "requestId": ID},
            headers=JSON | {"connect-timeout-ms": "100"},
        )
        store.gate.set()
        await until(lambda: store.now()["jobs"][0]["status"] == "in_progress")
        async with opened(server, "connect-json") as wire:
            again = await wire.call("claimJob", workerId="w", requestId=ID)
            assert (again["jobId"], again["attempt"]) == (job_id, 1)


@pytest.mark.parametrize("kind", ["rest", "ws", "connect"])
async def test_other_requests_are_done_whether_or_not_their_client_stays(kind: str) -> None:
    async with held_up() as (store, server, _):
        if kind == "ws":
            socket = await connect(f"ws://{server.address}/v1/ws", proxy=None)
            await socket.send('{"id":1,"method":"submitJob","params":{"payload":2}}')
            await until(lambda: store.at_gate == 1)
            socket.transport.abort()
            await socket.close()
            await has_noticed(server)
        elif kind == "rest":
            submit = http_request("/v1/jobs", b'{"payload":2}', "content-type: application/json")
            await hang_up(store, server, submit, at_once=True)
        else:
            body = to_proto({"payload": "2"}, NUMBERS["submitJob"][0])
            submit = http_request(f"{SERVICE}/SubmitJob", body, "content-type: application/proto")
            await hang_up(store, server, submit, at_once=True)
        store.gate.set()
        await until(lambda: len(store.now()["jobs"]) == 2)


@pytest.mark.parametrize("name", ["rest", "ws", "connect-json", "connect-proto"])
async def test_a_claim_that_was_answered_keeps_its_lease_when_the_connection_ends(name: str) -> None:
    store = FaultyStore()
    async with BrokerServer(storage=store, port=0) as server:
        async with opened(server, name) as wire:
            await wire.call("submitJob", payload="1")
            claimed = await wire.call("claimJob", workerId="w")
        await has_noticed(server)
        async with opened(server) as wire:
            assert await wire.call("claimJob", workerId="other") == {}
            await wire.call("completeJob", jobId=claimed["jobId"], workerId="w")
