"""The programs around the brokers: producers, administrators, workers, and clients that send no ids."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from osqueue_broker.fsck_run import Fsck
from osqueue_client import BrokerLeadershipError, OsqueueClient, OsqueueError, TransportConnectionError
from osqueue_client import models as m
from osqueue_client import operations as ops
from osqueue_client.chance import Chance
from osqueue_client.features import BATCH
from osqueue_client.joining import Joining
from osqueue_client.models import Model
from osqueue_client.operations import Operation
from osqueue_worker import Worker
from osqueue_worker.chance import Chance as WorkerChance

from .entries import mark_of
from .history import Call
from .loop import Node
from .network import CALL, Network, SimTransport
from .store import SimStore, StoreView
from .world import Clock, World

TYPES: Final = ("a", "b")


class Recorded:
    """Stands before a client's calls, and notes what was asked and what came of it."""

    def __init__(self, world: World, node: Node, inner: Any) -> None:
        self._world = world
        self._node = node
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def connect(self) -> None:
        """Learn through the client what the broker knows."""
        await recorded(self._world, self._node, ops.GET_STATS.name, m.Empty(), self._inner.connect)

    async def call(
        self, operation: Operation[Any, Any], request: Model, timeout: float | None = None, **needs: Any
    ) -> Any:
        """Ask through the client."""
        return await recorded(
            self._world,
            self._node,
            operation.name,
            request,
            lambda: self._inner.call(operation, request, timeout, **needs),
        )

    async def send(
        self, operation: Operation[Any, Any], request: Model, timeout: float | None = None, **needs: Any
    ) -> Any:
        """Ask through the client: a request that was checked, of joined calls for one."""
        return await recorded(
            self._world,
            self._node,
            operation.name,
            request,
            lambda: self._inner.send(operation, request, timeout, **needs),
        )


async def recorded(
    world: World, node: Node, operation: str, request: Model, ask: Callable[[], Awaitable[Any]]
) -> Any:
    """Do a call, and note it."""
    history = world.history
    call = Call(len(history.calls), node.name, operation, request, world.loop.now, mark=mark_of(request))
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
    client._calls = calls = Recorded(world, node, client._calls)  # type: ignore[assignment]  # it does what that does
    client._joining = Joining(calls)  # type: ignore[arg-type]
    return client


class Marks:
    """Numbers for payloads: a job is known by it wherever it is."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        """Return a number that no job has."""
        self.last += 1
        return self.last


async def produce(
    world: World, client: OsqueueClient, marks: Marks, *, until: float, pause: float, most: int
) -> None:
    """Submit jobs one after the other, in bursts at times, and up to `most` in one call."""
    while world.loop.now < until:
        burst = world.random.choice((1, 1, 1, 3, most))
        if burst == most:
            await _submit_many(world, client, [marks.next() for _ in range(world.random.randint(1, most))])
        else:
            async with asyncio.TaskGroup() as group:
                for _ in range(burst):
                    group.create_task(_submit(world, client, marks.next()))
        await asyncio.sleep(world.between(0, 2 * pause))


async def _submit(world: World, client: OsqueueClient, mark: int) -> None:
    type = world.random.choice((*TYPES, *TYPES, None))
    limit = world.random.choice((None, None, None, 1, 2))
    with contextlib.suppress(OsqueueError):  # noted, and judged by the checker
        await client.submit_job(type, mark, max_attempts=limit)


async def _submit_many(world: World, client: OsqueueClient, marks: list[int]) -> None:
    limit = world.random.choice((None, None, None, 1, 2))
    jobs = [(world.random.choice((*TYPES, *TYPES, None)), mark) for mark in marks]
    with contextlib.suppress(OsqueueError):
        await client.submit_jobs(jobs, max_attempts=limit)


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
                    found = await client.list_jobs(limit=world.random.choice((None, 5)))
                    if found.next_cursor:
                        type = world.random.choice((None, "a", ""))
                        await client.list_jobs(limit=3, cursor=found.next_cursor, type=type)
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
        await asyncio.sleep(world.between(0.2, 0.6 if world.is_calm else 3))
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


class OwnClient:
    """The real client, asked as an old one is: its requests have ids."""

    def __init__(self, client: OsqueueClient) -> None:
        self._calls = client._calls

    async def ask(self, operation: Operation[Any, Any], request: Model) -> Any:
        """Ask until there is an answer."""
        return await self._calls.call(operation, request, needs=BATCH)


async def work_in_batches(world: World, client: OldClient | OwnClient, worker_id: str) -> None:
    """Claim some at once, wait for them at times; keep and complete them together, with stale ones among them."""
    timeout = world.history.heartbeat_timeout
    stale: list[m.Lease] = []
    while True:
        await asyncio.sleep(world.between(0.1, 0.5 if world.is_calm else 3))
        limit, wait = world.random.choice((1, 2, 3)), world.random.choice((None, 1.5, 4.0))
        try:
            claimed = await client.ask(
                ops.CLAIM_JOBS, m.ClaimJobs(worker_id=worker_id, limit=limit, wait=wait)
            )
            held = [m.Lease(job_id=job.job_id, lease_token=job.lease_token) for job in claimed.jobs]
            leases = tuple(held + stale[-2:])
            if not leases:
                continue
            if not world.is_calm and world.chance(0.3):
                await asyncio.sleep(timeout * world.between(0.5, 1.6))
                await client.ask(ops.HEARTBEAT_JOBS, m.LeasedJobs(worker_id=worker_id, jobs=leases))
            else:
                await asyncio.sleep(world.between(0, 1))
            if world.chance(0.2):
                leases += leases[:1]
            stale = held
            await client.ask(ops.COMPLETE_JOBS, m.LeasedChanges(worker_id=worker_id, jobs=leases))
        except OsqueueError:
            continue


async def check_files(
    world: World, node: Node, store: SimStore, broker_timeout: float, *, until: float, pause: float
) -> None:
    """Be the person who runs `osqueue-broker fsck --repair` now and then, whoever leads."""
    while world.loop.now < until:
        await asyncio.sleep(world.between(0, 2 * pause))
        clock = Clock(world, node)
        fsck = Fsck(StoreView(store, node.name), clock, heartbeat_timeout=broker_timeout)
        try:
            report = await fsck.repair(delete_garbage=True)
            world.trace(node.name, f"repaired {len(report.mended)}, deleted {len(report.deleted)}")
            if report.mended:
                world.loop.faults.append(f"fsck found something to mend: {report.mended[0]}")
        except OsqueueError as error:
            world.trace(node.name, f"fsck: {type(error).__name__}: {error}")


def _shown(request: Model) -> str:
    match request:
        case m.SubmitJob():
            return str(mark_of(request))
        case m.ClaimJob():
            return f"{request.worker_id} {','.join(request.types or ())}"
        case m.LeasedJob():
            return f"{request.job_id[:8]} {request.worker_id}"
        case m.DeadJobRef():
            return request.job_id[:8]
        case m.SubmitJobs():
            return ",".join(str(mark_of(job)) for job in request.jobs)
        case m.ClaimJobs():
            return f"{request.limit} {request.worker_id} {','.join(request.types or ())}"
        case m.LeasedJobs():
            return f"{','.join(lease.job_id[:8] for lease in request.jobs)} {request.worker_id}"
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
        case m.JobsSubmitted():
            return ",".join((result.job_id or "refused")[:8] for result in answer.results)
        case m.ClaimedJobs():
            return (
                ",".join(f"{(job.job_id or '')[:8]} attempt {job.attempt}" for job in answer.jobs)
                or "nothing"
            )
        case m.LeasedResults():
            return ",".join("done" if result.error is None else "refused" for result in answer.results)
    return type(answer).__name__
