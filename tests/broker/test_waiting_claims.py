"""A claim that waits for a job: answered by the commit that makes one claimable, in order, and stranding none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import httpx
import pytest
import uvicorn
from broker.support import (
    JSON,
    NUMBERS,
    SERVICE,
    WIRES,
    FaultyStore,
    Leader,
    Refused,
    in_fake_time,
    leading,
    opened,
    to_proto,
    until,
)
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect

from osqueue_broker import BrokerServer, create_app
from osqueue_broker.listener import bind
from osqueue_broker.queue import claims
from osqueue_broker.queue.apply import Applied, apply
from osqueue_broker.queue.claims import undelivered
from osqueue_broker.queue.mutation import FOR_JOB, Mutation
from osqueue_broker.queue.rules import Now, Rules
from osqueue_broker.queue.state import QueueState
from osqueue_broker.websocket import MAX_WAITS
from osqueue_client import models, operations
from osqueue_client.errors import BrokerLeadershipError, QueueFullError, StorageBackendError
from osqueue_client.models import RequestId
from osqueue_client.operations import CLAIM_JOB, CLAIM_JOBS, COMPLETE_JOB, GET_STATS, SUBMIT_JOB
from osqueue_storage import MemoryBackend


class Queue:
    """A queue, and who has been answered late: worker ids with the ids of their jobs."""

    def __init__(self) -> None:
        self.state = QueueState(Rules(heartbeat_timeout=30))
        self.served = 0.0
        self._ids = count(1)

    def do(self, *mutations: Mutation) -> Applied:
        named = [
            each if each.new_id else replace(each, new_id=f"{next(self._ids):032x}") for each in mutations
        ]
        return apply(self.state, named, Now(1, self.served))

    def wait(self, worker_id: str, *types: str, number: int | None = None) -> Any:
        return self.do(waiting(worker_id, *types, number=number)).answers[0]


def waiting(worker_id: str, *types: str, number: int | None = None, limit: int | None = None) -> Mutation:
    id = None if number is None else RequestId(session="s", number=number, lowest=1)
    fields: dict[str, Any] = {"worker_id": worker_id, "types": types or None, "wait": 60.0, "request_id": id}
    if limit is None:
        return Mutation(CLAIM_JOB, models.ClaimJob(**fields))
    return Mutation(CLAIM_JOBS, models.ClaimJobs(limit=limit, **fields))


def job(id: str, type: str | None = None) -> Mutation:
    return Mutation(SUBMIT_JOB, models.SubmitJob(type=type), id)


def late(applied: Applied) -> list[tuple[str, list[str | None]]]:
    """Who was answered late, and with which jobs."""
    found: list[tuple[str, list[str | None]]] = []
    for mutation, answer in applied.late:
        assert isinstance(mutation.request, models.ClaimJob | models.ClaimJobs)
        assert isinstance(answer, models.ClaimedJob | models.ClaimedJobs)
        jobs = (answer,) if isinstance(answer, models.ClaimedJob) else answer.jobs
        found.append((mutation.request.worker_id, [job.job_id for job in jobs]))
    return found


# The queue


def test_a_claim_without_a_job_waits_and_changes_nothing() -> None:
    queue = Queue()
    applied = queue.do(waiting("w"))
    assert applied.answers == [FOR_JOB]
    assert not applied.has_changed
    assert len(queue.state.waiting_claims) == 1
    [stats] = queue.do(Mutation(GET_STATS, models.Empty())).answers
    assert isinstance(stats, models.QueueStats)
    assert stats.waiting_claims == 1


def test_a_claim_with_a_wait_of_0_or_with_a_job_at_hand_does_not_wait() -> None:
    queue = Queue()
    claim = Mutation(CLAIM_JOB, models.ClaimJob(worker_id="w", wait=0.0))
    assert queue.do(claim).answers == [models.ClaimedJob()]
    queue.do(job("j"))
    answer = queue.wait("w")
    assert isinstance(answer, models.ClaimedJob)
    assert answer.job_id == "j"
    assert len(queue.state.waiting_claims) == 0


def test_jobs_go_to_those_who_have_waited_longest_in_the_order_of_the_jobs() -> None:
    queue = Queue()
    for worker in ("first", "second", "third"):
        queue.wait(worker)
    applied = queue.do(job("a"), job("b"))
    assert late(applied) == [("first", ["a"]), ("second", ["b"])]
    assert applied.has_changed
    assert late(queue.do(job("c"))) == [("third", ["c"])]


def test_a_claim_that_waits_goes_before_a_new_one_of_the_same_batch() -> None:
    queue = Queue()
    queue.wait("old")
    new = Mutation(CLAIM_JOB, models.ClaimJob(worker_id="new"))
    applied = queue.do(new, job("a"), new, job("b"))
    assert late(applied) == [("old", ["a"])]
    assert [getattr(applied.answers[place], "job_id", None) for place in (0, 2)] == ["b", None]


def test_types_are_kept_and_a_claim_with_types_gets_no_untyped_job() -> None:
    queue = Queue()
    queue.wait("b", "b", "b", "")
    queue.wait("any")
    queue.wait("a or b", "a", "b")
    applied = queue.do(job("1", "a"), job("2", "b"), job("3"), job("4", "a"), job("5", "c"))
    assert late(applied) == [("any", ["1"]), ("b", ["2"]), ("a or b", ["4"])]
    assert queue.state.unclaimed == 2


def test_a_batch_that_waits_takes_what_has_come_up_to_its_limit() -> None:
    queue = Queue()
    queue.do(waiting("many", limit=2))
    queue.wait("one")
    assert late(queue.do(job("a"))) == [("many", ["a"])]
    queue.do(waiting("many", limit=2))
    assert late(queue.do(job("b"), job("c"), job("d"), job("e"))) == [("one", ["b"]), ("many", ["c", "d"])]
    assert queue.state.unclaimed == 1


def test_a_job_that_is_claimable_again_goes_to_who_waits() -> None:
    queue = Queue()
    queue.do(job("j"))
    fail = models.FailJob(job_id="j", worker_id="w", error=models.JobError(type="E", message="m"))
    queue.wait("w")
    queue.wait("v")
    assert late(queue.do(Mutation(operations.FAIL_JOB, fail))) == [("v", ["j"])]  # it failed
    queue.wait("w")
    queue.served = 30
    assert late(queue.do()) == [("w", ["j"])]  # its lease has expired
    lost = undelivered(models.ClaimJob(worker_id="w"), queue.state.jobs.get("j").claimed())  # type: ignore[union-attr]  # it is there
    assert lost is not None
    queue.wait("v")
    assert late(queue.do(lost)) == [("v", ["j"])]  # nobody heard of its lease
    bury = models.FailJob(
        job_id="j", worker_id="v", error=models.JobError(type="E", message="m"), retry=False
    )
    queue.wait("u")
    assert late(queue.do(Mutation(operations.FAIL_JOB, bury))) == []
    requeue = Mutation(operations.REQUEUE_DEAD, models.DeadJobRef(job_id="j"))
    assert late(queue.do(requeue)) == [("u", ["j"])]
    assert queue.do(Mutation(COMPLETE_JOB, models.LeasedChange(job_id="j", worker_id="u"))).has_changed


def test_a_claim_that_is_withdrawn_gets_nothing() -> None:
    queue = Queue()
    queue.do(replace(waiting("gone", "a", "a"), new_id="gone"))
    queue.wait("here", "a")
    queue.state.waiting_claims.remove("gone")
    queue.state.waiting_claims.remove("gone")
    assert late(queue.do(job("j", "a"))) == [("here", ["j"])]
    assert len(queue.state.waiting_claims) == 0


def test_so_many_claims_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert claims.WAITING_LIMIT == 10_000
    monkeypatch.setattr(claims, "WAITING_LIMIT", 2)
    queue = Queue()
    queue.wait("a")
    queue.wait("b")
    refused = queue.wait("c")
    assert isinstance(refused, QueueFullError)
    assert refused.retry_after == 1.0
    queue.do(job("j"))
    assert queue.wait("c") is FOR_JOB


def test_a_claim_that_is_repeated_while_the_first_still_waits_gets_the_same_lease_at_the_same_time() -> None:
    queue = Queue()
    queue.wait("w", number=1)
    queue.wait("w", number=1)
    queue.wait("v", number=2)
    (_, first), (_, again) = queue.do(job("a")).late
    assert first == again
    assert isinstance(first, models.ClaimedJob)
    assert first.job_id == "a"
    assert late(queue.do(job("b"))) == [("v", ["b"])]
    assert queue.wait("w", number=1) == first
    # One of the answers is lost: the other one counts.
    lost = undelivered(waiting("w", number=1).request, first)
    assert lost is not None
    queue.do(lost)
    queue.served = 20
    assert queue.state.in_progress == 2


def test_a_claim_that_is_repeated_with_other_types_is_served_by_whichever_gets_a_job_first() -> None:
    queue = Queue()
    queue.wait("w", "a", number=1)
    queue.wait("w", "b", number=1)
    (_, first), (_, again) = queue.do(job("b", type="b")).late
    assert first == again
    assert isinstance(first, models.ClaimedJob)
    assert first.job_id == "b"
    assert len(queue.state.waiting_claims) == 0


def test_many_types_at_once_are_given_in_the_order_of_the_jobs() -> None:
    queue = Queue()
    for place in range(200):
        queue.wait(f"w{place}")
    applied = queue.do(*[job(f"j{n}", f"type {n % 50}") for n in range(300)])
    assert late(applied) == [(f"w{n}", [f"j{n}"]) for n in range(200)]


# The commit loop


def ask(leader: Leader, wait: float = 60.0, **fields: Any) -> asyncio.Future[Any]:
    return leader.put(CLAIM_JOB, **({"worker_id": "w", "wait": wait} | fields))


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def changes(store: FaultyStore) -> int:
    """How many writes were no mere signs of life."""
    bodies = [json.loads(body) for body, _ in store.attempts]
    return len({json.dumps((body["jobs"], body["completedTotal"])) for body in bodies})


@in_fake_time
async def test_it_is_answered_empty_when_its_time_is_up_and_costs_no_write() -> None:
    store = FaultyStore()
    async with leading(store, broker_heartbeat_interval=1000.0, broker_heartbeat_timeout=3000.0) as leader:
        loop = asyncio.get_running_loop()
        began_at, writes = loop.time(), len(store.attempts)
        for wait in (60.0, 5.0):
            began_at = loop.time()
            assert await ask(leader, wait) == models.ClaimedJob()
            assert loop.time() - began_at == pytest.approx(wait, abs=0.1)
        assert len(store.attempts) == writes
        assert (await leader.ask(GET_STATS)).waiting_claims == 0


@in_fake_time
async def test_it_is_answered_by_the_commit_that_brings_the_job_and_not_before_it_has_landed() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        claim = ask(leader)
        await asyncio.sleep(1)
        store.gate.clear()
        submit = leader.put(SUBMIT_JOB)
        await until(lambda: store.at_gate == 1)
        await turns()
        assert not claim.done()
        store.gate.set()
        assert (await claim).job_id == (await submit).job_id
        [listed] = store.now()["jobs"]
        assert listed["status"] == "in_progress"
        assert changes(store) == 1


@in_fake_time
async def test_whose_caller_has_gone_it_gets_nothing() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        gone, here = ask(leader), ask(leader)
        await asyncio.sleep(1)
        gone.cancel()
        await turns()
        await leader.ask(SUBMIT_JOB)
        assert (await here).attempt == 1
        assert changes(store) == 1


@in_fake_time
async def test_a_lease_whose_caller_leaves_during_its_commit_is_taken_back_and_given_to_the_next() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        gone, here = ask(leader), ask(leader)
        await asyncio.sleep(1)
        store.gate.clear()
        submit = leader.put(SUBMIT_JOB)
        await until(lambda: store.at_gate == 1)
        gone.cancel()
        await turns()
        store.gate.set()
        claimed = await here
        assert (claimed.job_id, claimed.attempt) == ((await submit).job_id, 1)


@in_fake_time
async def test_an_end_of_the_wait_and_a_job_in_one_batch_give_the_job_to_who_has_waited() -> None:
    store = FaultyStore()
    async with leading(store, broker_heartbeat_interval=1000.0, broker_heartbeat_timeout=3000.0) as leader:
        old = ask(leader, 5.0, types=("t",))
        await asyncio.sleep(1)
        store.gate.clear()
        busy = leader.put(SUBMIT_JOB, type="other")
        await until(lambda: store.at_gate == 1)
        await asyncio.sleep(5)
        new = ask(leader, 0.0, types=("t",))
        submit = leader.put(SUBMIT_JOB, type="t")
        store.gate.set()
        assert (await old).job_id == (await submit).job_id
        assert await new == models.ClaimedJob()
        await busy


@in_fake_time
async def test_its_end_is_told_only_while_nobody_can_have_taken_over() -> None:
    store = FaultyStore()
    async with leading(store, broker_heartbeat_interval=3.0, broker_heartbeat_timeout=10.0) as leader:
        claim = ask(leader, 15.0)
        await asyncio.sleep(0.1)
        store.gate.clear()
        await asyncio.sleep(20)  # the sign of life does not get through
        assert not claim.done()
        store.gate.set()
        assert await claim == models.ClaimedJob()


@in_fake_time
async def test_while_the_store_is_down_it_ends_with_an_error_once_its_time_is_up() -> None:
    store = FaultyStore()
    async with leading(store, request_timeout=10.0) as leader:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        held, longer = ask(leader, 5.0), ask(leader, 60.0)
        await asyncio.sleep(0.1)
        store.gate.clear()
        with pytest.raises(StorageBackendError) as refused:
            await held
        assert refused.value.outcome == "not_applied"
        assert 15 <= loop.time() - began_at <= 18
        assert not longer.done()
        store.gate.set()
        await leader.ask(SUBMIT_JOB)
        assert (await longer).attempt == 1


@in_fake_time
async def test_one_that_got_a_job_in_a_commit_without_an_answer_hears_that_nobody_knows() -> None:
    store = FaultyStore()
    async with leading(store, request_timeout=10.0) as leader:
        loop = asyncio.get_running_loop()
        claim = ask(leader)
        await asyncio.sleep(20)
        store.gate.clear()
        began_at = loop.time()
        submit = leader.put(SUBMIT_JOB)
        with pytest.raises(StorageBackendError) as refused:
            await claim
        assert refused.value.outcome == "unknown"
        assert 10 <= loop.time() - began_at <= 13
        with pytest.raises(StorageBackendError):
            await submit
        store.gate.set()
        claimed = await leader.ask(CLAIM_JOB, worker_id="v", wait=5.0)
        assert claimed.attempt == 1  # it was taken back


@in_fake_time
async def test_where_writes_are_spaced_it_waits_no_more_than_that_longer() -> None:
    store = FaultyStore()
    async with leading(store, group_commit_interval=1.0) as leader:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            began_at = loop.time()
            assert await ask(leader, 1.7) == models.ClaimedJob()
            assert 1.7 <= loop.time() - began_at <= 2.8
            claim = ask(leader)
            await asyncio.sleep(0.3)
            began_at = loop.time()
            await leader.ask(SUBMIT_JOB)
            assert (await claim).attempt == 1
            assert loop.time() - began_at <= 1.1


@in_fake_time
async def test_a_stop_turns_away_those_who_wait_and_those_who_would() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        held = ask(leader)
        await asyncio.sleep(1)
        store.gate.clear()
        submit = leader.put(SUBMIT_JOB, type="t")
        await until(lambda: store.at_gate == 1)
        late_comer = ask(leader, types=("u",))
        leader.commits.drain()
        store.gate.set()
        for claim in (late_comer, ask(leader, types=("u",))):
            with pytest.raises(BrokerLeadershipError) as refused:
                await asyncio.wait_for(claim, 1)
            assert refused.value.outcome == "not_applied"
        assert (await held).job_id == (await submit).job_id  # that was under way
        await leader.stop()
    assert store.now()["broker"] is None


@in_fake_time
async def test_a_deposed_leader_tells_those_who_wait_who_leads() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        claim = ask(leader)
        await asyncio.sleep(0.1)
        document = store.now()
        store.put_now(document | {"broker": "other:1", "epoch": document["epoch"] + 1, "commitId": "theirs"})
        with pytest.raises(BrokerLeadershipError) as refused:
            await claim
        assert refused.value.leader == "other:1"
        with pytest.raises(BrokerLeadershipError):
            await leader.ended


@in_fake_time
async def test_a_leader_whose_document_was_rewritten_turns_away_those_who_wait_and_leads_on() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        claim = ask(leader)
        await asyncio.sleep(0.1)
        store.put_now(store.now() | {"note": "by hand"})
        with pytest.raises(BrokerLeadershipError):
            await claim
        again = ask(leader)
        await asyncio.sleep(0.1)
        await leader.ask(SUBMIT_JOB)
        assert (await again).attempt == 1


@in_fake_time
async def test_one_that_got_a_job_in_a_commit_that_was_superseded_hears_of_the_new_leader() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        claim = ask(leader)
        await asyncio.sleep(0.1)
        document = store.now()
        other = document | {"broker": "other:1", "epoch": document["epoch"] + 1, "commitId": "theirs"}
        store.meanwhile.append(lambda: store.put_now(other))
        submit = leader.put(SUBMIT_JOB)
        for asked in (claim, submit):
            with pytest.raises(BrokerLeadershipError) as refused:
                await asked
            assert refused.value.leader == "other:1"


@in_fake_time
async def test_the_bytes_of_those_that_wait_are_bounded() -> None:
    async with leading(FaultyStore(), max_pending_bytes=1000) as leader:
        request = models.ClaimJob(worker_id="w", wait=60.0)
        first = leader.commits.put(Mutation(CLAIM_JOB, request, "first"), 600)
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError):
            await leader.commits.put(Mutation(CLAIM_JOB, request, "second"), 600)
        first.cancel()
        await turns()
        third = leader.commits.put(Mutation(CLAIM_JOB, request, "third"), 600)
        await asyncio.sleep(0.1)
        assert not third.done()
        await leader.ask(SUBMIT_JOB)
        assert isinstance(await third, models.ClaimedJob)


# Over all transports


async def waiting_claims(wire: Any, number: int) -> None:
    async with asyncio.timeout(10):
        while (await wire.call("getStats")).get("waitingClaims", 0) != number:  # of a server, bounded
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("method", ["claimJob", "claimJobs"])
async def test_a_submit_answers_a_claim_that_waits(server: BrokerServer, wire: Any, method: str) -> None:
    async with opened(server) as rest, asyncio.TaskGroup() as group:
        claim = group.create_task(wire.call(method, workerId="w", types=["t"], wait=10))
        await waiting_claims(rest, 1)
        id = (await rest.call("submitJob", payload="1.50", type="t"))["jobId"]
        answer = await claim
        claimed = answer if method == "claimJob" else answer["jobs"][0]
        assert (claimed["jobId"], claimed["payload"]) == (id, "1.50")
        await wire.call("completeJob", jobId=id, workerId="w", leaseToken=claimed["leaseToken"])


async def test_without_a_job_the_answer_is_empty(wire: Any) -> None:
    assert await wire.call("claimJob", workerId="w", wait=0.05) == {}
    assert (await wire.call("claimJobs", workerId="w", wait=0.05)).get("jobs", []) == []


@asynccontextmanager
async def mounted() -> AsyncIterator[str]:
    """The address of a broker that is mounted in an application under plain uvicorn."""
    with bind("127.0.0.1", 0) as sock:
        host = "{}:{}".format(*sock.getsockname())
        broker = create_app(storage=MemoryBackend(), advertise=f"{host}/queue")
        app = Starlette(routes=[Mount("/queue", app=broker)])
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        async with broker.running(), asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[sock]))
            await until(lambda: server.started)
            try:
                yield f"{host}/queue"
            finally:
                server.should_exit = True


@asynccontextmanager
async def served(kind: str) -> AsyncIterator[str]:
    if kind == "mounted":
        async with mounted() as address:
            yield address
    else:
        async with BrokerServer(storage=MemoryBackend(), port=0) as server:
            yield server.address


async def hang_up(address: str, name: str, wait_begun: Callable[[], Any]) -> None:
    """Begin to wait over a connection of its own, and close that."""
    fields: dict[str, Any] = {"workerId": "gone", "wait": 50}
    if name == "ws":
        async with connect(f"ws://{address}/v1/ws", proxy=None) as socket:
            await socket.send(json.dumps({"id": 1, "method": "claimJob", "params": fields}))
            await wait_begun()
        return
    host, _, path = address.partition("/")
    path = f"/{path}" if path else ""
    kind, body = "application/json", json.dumps(fields).encode()
    target = f"{path}{SERVICE}/ClaimJob"
    if name == "rest":
        target = f"{path}/v1/jobs/claim"
    elif name == "connect-proto":
        kind, body = "application/proto", to_proto(fields, NUMBERS["claimJob"][0])
    _, writer = await asyncio.open_connection(*host.split(":"))
    head = f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await wait_begun()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("kind", ["server", "mounted"])
@pytest.mark.parametrize("name", WIRES)
async def test_a_hang_up_ends_the_wait_and_strands_no_job(name: str, kind: str) -> None:
    async with (
        served(kind) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=20) as http,
    ):

        async def stats() -> dict[str, Any]:
            answer: dict[str, Any] = (await http.get("/v1/stats")).json()
            return answer

        async def number(wanted: int) -> None:
            async with asyncio.timeout(10):
                while (await stats())["waitingClaims"] != wanted:  # of a server, bounded
                    await asyncio.sleep(0.005)

        await hang_up(address, name, lambda: number(1))
        await number(0)
        id = (await http.post("/v1/jobs", json={"payload": 1})).json()["jobId"]
        claimed = (await http.post("/v1/jobs/claim", json={"workerId": "here"})).json()
        assert (claimed["jobId"], claimed["attempt"]) == (id, 1)


async def test_a_deadline_of_connect_that_is_shorter_than_the_wait_ends_it(
    server: BrokerServer, http: httpx.AsyncClient
) -> None:
    answer = await http.post(
        f"{SERVICE}/ClaimJob",
        json={"workerId": "w", "wait": 50},
        headers=JSON | {"connect-timeout-ms": "100"},
    )
    assert answer.json()["code"] == "deadline_exceeded"
    async with opened(server) as rest:
        await waiting_claims(rest, 0)
        await rest.call("submitJob", payload="1")
        assert (await rest.call("claimJob", workerId="v"))["attempt"] == 1


async def test_other_requests_of_a_connection_go_on_beside_its_claims_that_wait(server: BrokerServer) -> None:
    async with connect(f"ws://{server.address}/v1/ws", proxy=None) as socket, opened(server) as rest:
        params = {"workerId": "w", "wait": 50}
        for id in range(MAX_WAITS + 5):
            await socket.send(json.dumps({"id": id, "method": "claimJob", "params": params}))
        refused = [json.loads(await asyncio.wait_for(socket.recv(), 10)) for _ in range(5)]
        assert {answer["error"]["_tag"] for answer in refused} == {"QueueFullError"}
        await waiting_claims(rest, MAX_WAITS)
        await socket.send(json.dumps({"id": "x", "method": "submitJob", "params": {"payload": 1}}))
        answers = [json.loads(await asyncio.wait_for(socket.recv(), 10)) for _ in range(2)]
        assert {answer["id"] for answer in answers} == {0, "x"}


@pytest.mark.parametrize("name", WIRES)
async def test_a_stop_answers_those_who_wait_at_once(name: str) -> None:
    server = BrokerServer(storage=MemoryBackend(), port=0)
    await server.start()
    try:
        async with opened(server, name) as wire, opened(server) as rest:

            async def claim() -> Refused:
                with pytest.raises(Refused) as refused:
                    await wire.call("claimJob", workerId="w", wait=50)
                return refused.value

            asked = asyncio.create_task(claim())
            await waiting_claims(rest, 1)
            await asyncio.wait_for(server.stop(), 10)
            assert (await asked).tag == "BrokerLeadershipError"
    finally:
        await server.stop()
