"""The programs around the brokers: producers, administrators, workers, and clients that send no ids."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from msgspec import Raw

from osqueue_client import BrokerLeadershipError, OsqueueClient, OsqueueError, TransportConnectionError
from osqueue_client import models as m
from osqueue_client import operations as ops
from osqueue_client.chance import Chance
from osqueue_client.models import Model
from osqueue_client.operations import Operation
from osqueue_worker import Worker
from osqueue_worker.chance import Chance as WorkerChance

from .history import Call
from .loop import Node
from .network import CALL, Network, SimTransport
from .store import SimStore, StoreView
from .world import World

TYPES: Final = ("a", "b")


class Recorded:
    """Stands before a client's calls, and notes what was asked and what came of it."""

    def __init__(self, world: World, node: Node, inner: Any) -> None:
        self._world = world
        self._node = node
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def call(self, operation: Operation[Any, Any], request: Model, timeout: float | None = None) -> Any:
        """Ask through the client."""
        return await recorded(
            self._world,
            self._node,
            operation.name,
            request,
            lambda: self._inner.call(operation, request, timeout),
        )


async def recorded(
    world: World, node: Node, operation: str, request: Model, ask: Callable[[], Awaitable[Any]]
) -> Any:
    """Do a call, and note it."""
    history = world.history
    call = Call(len(history.calls), node.name, operation, request, world.loop.now)
    if isinstance(request, m.SubmitJob):
        call.mark = int(bytes(request.payload)) if isinstance(request.payload, Raw) else None
    history.calls.append(call)
    before = CALL.set(call)
    try:
        call.answer = await ask()
    except (Exception, asyncio.CancelledError) as error:
        call.error = error if isinstance(error, Exception) else None
        if call.error is None:
            call.error = OsqueueError("cancelled", outcome="unknown")
        raise
    finally:
        CALL.reset(before)
        call.ended_at = world.loop.now
        world.trace(node.name, f"call {call.number} {operation} {_shown(request)} -> {_outcome(call)}")
    return call.answer


def client_of(
    world: World, network: Network, node: Node, *, urls: Sequence[str] | None, store: SimStore, timeout: float
) -> OsqueueClient:
    """Return the real client, over the simulated network."""
    client = OsqueueClient(
        urls,
        storage=None if urls else StoreView(store, node.name),
        transport=lambda url: SimTransport(network, node, url),
        timeout=timeout,
        _chance=Chance(session_id=lambda: world.new_id()[:16], jitter=world.random.random, slept=lambda: 0.0),
    )
    client._calls = Recorded(world, node, client._calls)  # type: ignore[assignment]  # it does what that does
    return client


class Marks:
    """Numbers for payloads: a job is known by it wherever it is."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        """Return a number that no job has."""
        self.last += 1
        return self.last


async def produce(world: World, client: OsqueueClient, marks: Marks, *, until: float, pause: float) -> None:
    """Submit jobs one after the other, in bursts at times."""
    while world.loop.now < until:
        burst = world.random.choice((1, 1, 1, 3))
        async with asyncio.TaskGroup() as group:
            for _ in range(burst):
                group.create_task(_submit(world, client, marks.next()))
        await asyncio.sleep(world.between(0, 2 * pause))


async def _submit(world: World, client: OsqueueClient, mark: int) -> None:
    type = world.random.choice((*TYPES, *TYPES, None))
    limit = world.random.choice((None, None, None, 1, 2))
    with contextlib.suppress(OsqueueError):  # noted, and judged by the checker
        await client.submit_job(type, mark, max_attempts=limit)


async def administer(world: World, client: OsqueueClient, *, until: float, pause: float) -> None:
    """Look at the queue, and requeue and delete dead jobs."""
    while world.loop.now < until:
        await asyncio.sleep(world.between(0, 2 * pause))
        if world.is_calm:
            return
        try:
            match world.random.randrange(4):
                case 0:
                    await client.get_stats()
                case 1:
                    await client.list_jobs()
                case _:
                    dead = await client.list_dead()
                    if dead.jobs and not world.is_calm:
                        job = world.random.choice(dead.jobs)
                        change = world.random.choice((client.requeue_dead, client.delete_dead))
                        await change(job.id)
        except OsqueueError:
            pass


async def work(world: World, client: OsqueueClient, worker_id: str, types: tuple[str, ...]) -> None:
    """Be a real worker, until the process ends."""

    async def handle(payload: object) -> None:
        if world.is_calm:
            await asyncio.sleep(world.between(0, 0.3))
            return
        await asyncio.sleep(world.random.choice((0.1, 0.5, 2.0, 2.0, 8.0)) * world.random.random())
        if world.chance(0.15):
            raise RuntimeError("the handler failed")

    timeout = world.history.heartbeat_timeout
    worker = Worker(
        client=client,
        handlers=dict.fromkeys(types, handle),
        concurrency=world.random.choice((1, 2, 3)),
        worker_id=worker_id,
        heartbeat_interval=timeout / 5,
        poll_interval=world.between(0.5, 3),
        _chance=WorkerChance(short_id=lambda: worker_id, jitter=world.random.random),
    )
    async with worker:
        await worker.wait()


class OldClient:
    """A client as others wrote it: it sends no request ids, and asks one broker after the other."""

    def __init__(self, world: World, network: Network, node: Node, urls: Sequence[str]) -> None:
        self.world = world
        self.node = node
        self._transports = [SimTransport(network, node, url) for url in urls]

    async def ask(self, operation: Operation[Any, Any], request: Model) -> Any:
        """Ask any broker, once."""
        world = self.world
        order = list(self._transports)
        world.random.shuffle(order)

        async def ask() -> Any:
            error: OsqueueError | None = None
            for transport in order:
                try:
                    async with asyncio.timeout(6):
                        return await transport.call(operation, request)
                except TimeoutError as silence:
                    raise TransportConnectionError("no answer", outcome="unknown") from silence
                except OsqueueError as refusal:
                    is_elsewhere = isinstance(refusal, BrokerLeadershipError | TransportConnectionError)
                    if refusal.outcome != "not_applied" or not is_elsewhere:
                        raise
                    error = refusal
            assert error is not None
            raise error

        return await recorded(world, self.node, operation.name, request, ask)


async def work_without_ids(
    world: World, client: OldClient, worker_id: str, *, keeps_token: bool, types: tuple[str, ...] = ()
) -> None:
    """Claim and complete; stall beyond the lease at times, and come back with what is stale by then."""
    timeout = world.history.heartbeat_timeout
    while True:
        await asyncio.sleep(world.between(0.2, 3))
        try:
            job = await client.ask(ops.CLAIM_JOB, m.ClaimJob(worker_id=worker_id, types=types or None))
            if not job.job_id:
                continue
            token = job.lease_token if keeps_token else None
            lease: dict[str, Any] = {"job_id": job.job_id, "worker_id": worker_id}
            if token is not None:
                lease["lease_token"] = token
            if not world.is_calm and world.chance(0.5):
                await asyncio.sleep(timeout * world.between(0.9, 1.6))
                for _ in range(world.random.choice((0, 1, 2, 3))):  # the same job perhaps, in another attempt
                    await client.ask(ops.CLAIM_JOB, m.ClaimJob(worker_id=worker_id, types=types or None))
                if world.chance(0.7):
                    await client.ask(ops.HEARTBEAT, m.LeasedJob(**lease))
            else:
                await asyncio.sleep(world.between(0, 1))
            if not world.is_calm and world.chance(0.2):
                error = m.JobError(type="Old", message="no luck")
                await client.ask(ops.FAIL_JOB, m.FailJob(**lease, error=error, retry=world.chance(0.7)))
            else:
                await client.ask(ops.COMPLETE_JOB, m.LeasedChange(**lease))
                if world.chance(0.2):
                    await client.ask(ops.COMPLETE_JOB, m.LeasedChange(**lease))
        except OsqueueError:
            continue


def _shown(request: Model) -> str:
    match request:
        case m.SubmitJob():
            return bytes(request.payload).decode() if isinstance(request.payload, Raw) else ""
        case m.ClaimJob():
            return f"{request.worker_id} {','.join(request.types or ())}"
        case m.LeasedJob():
            return f"{request.job_id[:8]} {request.worker_id}"
        case m.DeadJobRef():
            return request.job_id[:8]
    return ""


def _outcome(call: Call) -> str:
    answer = call.answer
    match answer:
        case None:
            return f"{type(call.error).__name__} ({call.outcome}): {call.error}"
        case m.JobSubmitted():
            return answer.job_id[:8]
        case m.ClaimedJob():
            return f"{answer.job_id[:8]} attempt {answer.attempt}" if answer.job_id else "nothing"
        case m.QueueStats():
            return f"total {answer.total}"
    return type(answer).__name__
