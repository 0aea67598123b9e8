"""`cancelRequest` over WebSocket: whenever it comes, it strands no lease."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from broker.support import until
from broker_front.support import RecordingService

from osqueue_broker.websocket import WebSocketEndpoint
from osqueue_client import models
from osqueue_client.models import ClaimedJob, ClaimedJobs

JOB = ClaimedJob(job_id="j", attempt=1, lease_token="t")
LEASE = ClaimedJob(job_id="j", lease_token="t")


class Claims(RecordingService):
    """Claims wait until their workers are given something; what is told to nobody is taken back, as the broker does."""

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[str, asyncio.Future[Any]] = {}

    async def call(self, operation: Any, request: Any, /) -> Any:
        if not isinstance(request, models.ClaimJob | models.ClaimJobs):
            return await super().call(operation, request)
        given = self._given.setdefault(request.worker_id, asyncio.get_running_loop().create_future())
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self.undelivered(operation, request, given.result())
            raise

    def give(self, worker_id: str, answer: models.Model) -> bool:
        """Return whether it still waits."""
        given = self._given[worker_id]
        if not given.done():
            given.set_result(answer)
        return not given.cancelled()

    @property
    def waiting(self) -> int:
        return len(self._given)

    @property
    def taken_back(self) -> list[str]:
        """The jobs whose leases were taken back, each time that it was said."""
        jobs: list[ClaimedJob] = []
        for _, _, answer in self.lost:
            jobs += answer.jobs if isinstance(answer, ClaimedJobs) else ()
            jobs += (answer,) if isinstance(answer, ClaimedJob) else ()
        return [job.job_id for job in jobs if job.job_id is not None]


class Peer:
    """The other end of a connection, at the ASGI seam: it takes no more while `takes` is clear."""

    def __init__(self) -> None:
        self.takes = asyncio.Event()
        self.takes.set()
        self.offered = 0
        self.is_gone = False
        self.answers: dict[object, Any] = {}
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def say(self, id: object, method: str, /, **params: object) -> None:
        text = json.dumps({"id": id, "method": method, "params": params})
        self._said.put_nowait({"type": "websocket.receive", "text": text})

    def do(self, type: str) -> None:
        self._said.put_nowait({"type": type})

    async def receive(self) -> Any:
        return await self._said.get()

    async def send(self, message: Any) -> None:
        if message["type"] != "websocket.send":
            return
        self.offered += 1
        await self.takes.wait()
        if self.is_gone:
            raise OSError("the peer has gone")
        answer = json.loads(message["text"])
        self.answers[answer["id"]] = answer.get("result", answer.get("error"))


@asynccontextmanager
async def connected(claims: Claims) -> AsyncIterator[Peer]:
    peer = Peer()
    endpoint = WebSocketEndpoint(claims, 1 << 20)
    task = asyncio.ensure_future(endpoint({"type": "websocket"}, peer.receive, peer.send))
    peer.do("websocket.connect")
    yield peer
    peer.do("websocket.disconnect")
    await asyncio.wait_for(task, 5)


async def turns(count: int = 20) -> None:
    """Let everything go on that can."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("method", "answer"), [("claimJob", JOB), ("claimJobs", ClaimedJobs(jobs=(JOB,)))])
async def test_a_cancelled_claim_whose_answer_waits_to_be_sent_is_taken_back_once_and_answered_without_a_job(
    method: str, answer: models.Model
) -> None:
    claims = Claims()
    async with connected(claims) as peer:
        peer.say(1, method, workerId="w", wait=30)
        await until(lambda: claims.waiting == 1)
        peer.takes.clear()
        peer.say(2, "getStats")
        await until(lambda: peer.offered == 1)  # and until it is taken, no other answer is made
        claims.give("w", answer)
        await turns()
        peer.say(3, "cancelRequest", id=1)
        await turns()
        assert claims.taken_back == ["j"]
        peer.takes.set()
        await until(lambda: len(peer.answers) == 3)
        assert peer.answers[1] == ({} if method == "claimJob" else {"jobs": []})
        assert peer.answers[3] == {}
    assert claims.taken_back == ["j"]


async def test_a_cancelled_claim_whose_answer_then_reaches_nobody_is_taken_back_once() -> None:
    claims = Claims()
    async with connected(claims) as peer:
        peer.say(1, "claimJob", workerId="w", wait=30)
        await until(lambda: claims.waiting == 1)
        peer.takes.clear()
        claims.give("w", JOB)
        await until(lambda: peer.offered == 1)
        peer.say(2, "cancelRequest", id=1)
        await turns()
        assert claims.taken_back == ["j"]
        peer.is_gone = True
        peer.takes.set()
        await turns()
    assert claims.taken_back == ["j"]


@pytest.mark.parametrize("between", range(8))
@pytest.mark.parametrize("is_cancelled_first", [True, False])
async def test_a_claim_that_is_cancelled_while_it_comes_to_a_job_is_taken_back_once(
    between: int, is_cancelled_first: bool
) -> None:
    claims = Claims()
    async with connected(claims) as peer:
        peer.say(1, "claimJob", workerId="w", wait=30)
        await until(lambda: claims.waiting == 1)
        if is_cancelled_first:
            peer.say(2, "cancelRequest", id=1)
            await turns(between)
            has_come = claims.give("w", JOB)
        else:
            has_come = claims.give("w", JOB)
            await turns(between)
            peer.say(2, "cancelRequest", id=1)
        await until(lambda: len(peer.answers) == 2)
        assert claims.taken_back == (["j"] if has_come else [])


async def test_claims_that_came_to_nothing_do_not_keep_one_with_a_job_from_being_taken_back() -> None:
    claims = Claims()
    async with connected(claims) as peer:
        for number in range(20):
            peer.say(number, "claimJobs", workerId=f"w{number}", wait=30)
        await until(lambda: claims.waiting == 20)
        claims.give("w0", ClaimedJobs(jobs=(JOB,)))
        for number in range(1, 20):
            claims.give(f"w{number}", ClaimedJobs())
        await until(lambda: len(peer.answers) == 20)
        assert claims.taken_back == []
        peer.say(99, "cancelRequest", id=0)
        await until(lambda: 99 in peer.answers)
        assert claims.lost[0][2] == ClaimedJobs(jobs=(LEASE,))
        assert claims.taken_back == ["j"]
