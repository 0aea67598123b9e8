"""How a worker comes by jobs: it asks for as many as it has room for, and waits in the broker until there are some."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any, Final

from osqueue_client import Job, OsqueueClient, OsqueueError
from osqueue_client.features import BATCH, WAIT
from osqueue_client.models import BATCH_LIMIT

from .delays import LONGEST_DELAY, jittered
from .errors import is_for_good, is_refusal
from .logs import ClaimLog, log
from .runs import Runs

_NEEDED: Final = frozenset({BATCH, WAIT})
"""Features of a broker that need not be asked again and again."""

_WAIT: Final = 20.0
"""Seconds for which a claim waits in the broker before the next one takes its place."""

_AT_ONCE: Final = 2
"""Claims under way at a time. Slots that come free while one waits are asked for by another; while both wait there is
no job, and after the first answer all free slots are asked for."""

_SETTLING: Final = 0.5
"""Seconds from its sending in which a claim that finds a job is answered. What takes longer only waits."""

_PATIENCE: Final = 10.0
"""Seconds for which `stop()` waits for a claim of a broker that knows no waiting: it waits as long for its store."""


class Claims:
    """Claims jobs for one worker, and starts them.

    Whatever a broker or a proxy answers, it is asked again: the next broker, or the same one after a repair, may answer
    otherwise, and a fleet of workers must not need a restart then. `fail` is called only for what no broker can mend: a
    `ConfigError` (the client was closed), and an error that is not osqueue's.

    A broker that does not know batches and waiting is asked once per `poll_interval` while it has no jobs.
    """

    def __init__(
        self,
        client: OsqueueClient,
        worker_id: str,
        types: tuple[str, ...],
        runs: Runs,
        *,
        concurrency: int,
        poll_interval: float,
        fail: Callable[[Exception], None],
        jitter: Callable[[], float],
    ) -> None:
        self._client = client
        self._worker_id = worker_id
        self._types = types
        self._runs = runs
        self._concurrency = concurrency
        self._poll_interval = poll_interval
        self._fail = fail
        self._jitter = jitter
        self._woken = asyncio.Event()
        self._must_stop = asyncio.Event()
        self._has_connected = False
        self._under_way: dict[asyncio.Task[None], float] = {}
        """Claims, and when they were sent."""
        self._asked_for = 0
        """Jobs that the claims under way may bring."""
        self._has_found = False
        """Whether the last claims brought a job."""
        self._failures = 0
        self._pause = 0.0
        """Seconds to wait before the next claim."""

    @property
    def _is_polling(self) -> bool:
        """Whether the broker knows no waiting, as far as is known."""
        return self._has_connected and not self._client.features >= _NEEDED

    @property
    def is_awaited(self) -> bool:
        """Whether `stop` waits for an answer."""
        return self._is_polling and bool(self._under_way)

    def wake(self) -> None:
        """Look again whether there is room for jobs."""
        self._woken.set()

    def stop(self) -> None:
        """Have `run` return, soon."""
        self._must_stop.set()
        self._woken.set()

    async def run(self) -> None:
        """Claim until `stop`. Jobs that are leased to this worker meanwhile are started, too."""
        claim_log = ClaimLog(asyncio.get_running_loop().time)
        async with asyncio.TaskGroup() as group:
            while not self._must_stop.is_set():
                self._woken.clear()
                if self._pause:
                    delay, self._pause = self._pause, 0.0
                    await self._rest(delay)
                elif free := self._free():
                    self._send(group, free, claim_log)
                else:
                    await self._woken.wait()
            await self._settle()

    def _free(self) -> int:
        """Return for how many jobs another claim may ask.

        It goes along with the reports of the jobs that made room for it, in the same commit. These must not pile up.
        """
        if len(self._under_way) >= (1 if self._is_polling else _AT_ONCE):
            return 0
        if self._runs.reporting > self._concurrency:
            return 0
        return min(max(0, self._concurrency - self._runs.running - self._asked_for), BATCH_LIMIT)

    def _send(self, group: asyncio.TaskGroup, count: int, claim_log: ClaimLog) -> None:
        claim = group.create_task(self._claim(count, claim_log))
        self._under_way[claim] = asyncio.get_running_loop().time()
        self._asked_for += count

        def has_ended(_: object) -> None:
            del self._under_way[claim]
            self._asked_for -= count
            self._woken.set()

        claim.add_done_callback(has_ended)

    async def _settle(self) -> None:
        """Wait for the claims that may be answered with jobs at any moment, and end the others.

        A broker takes back what it leases to one that has gone.
        """
        if not self._under_way:
            return
        now = asyncio.get_running_loop().time()
        until = now + _PATIENCE if self._is_polling else max(self._under_way.values()) + _SETTLING
        await asyncio.wait(tuple(self._under_way), timeout=max(0.0, until - now))
        for claim in self._under_way:
            claim.cancel()

    async def _claim(self, count: int, claim_log: ClaimLog) -> None:
        """Ask for so many jobs, start those that come, and decide when to ask again."""
        asked_at = asyncio.get_running_loop().time()
        if self._is_polling:
            # One job while there is none; once there is one, as many at once as there is room for.
            width = count if self._has_found else 1
            async with asyncio.TaskGroup() as group:
                claims = [group.create_task(self._started(self._one(), claim_log)) for _ in range(width)]
            outcomes = {claim.result() for claim in claims}
        else:
            outcomes = {await self._started(self._many(count), claim_log)}
        if _Claimed.UNKNOWN in outcomes:
            self._failures += 1
        else:
            self._failures = 0
            claim_log.worked()
        self._has_found = _Claimed.JOBS in outcomes
        has_waited = asyncio.get_running_loop().time() - asked_at > _WAIT / 2
        if not self._has_found and (self._failures or not has_waited):
            longest = max(LONGEST_DELAY, self._poll_interval)
            self._pause = min(self._poll_interval * 2 ** min(self._failures, 8), longest)

    async def _started(self, claim: Coroutine[Any, Any, list[Job]], claim_log: ClaimLog) -> _Claimed:
        """Start what a claim brings at once: others may wait for their answers longer than a lease holds."""
        try:
            jobs = await claim
        except OsqueueError as error:
            if is_for_good(error):
                self._fail(error)
            elif is_refusal(error):
                claim_log.failed(logging.ERROR, "claim_refused", error)
            else:
                claim_log.failed(logging.WARNING, "claim_failed", error)
            return _Claimed.UNKNOWN
        except Exception as error:  # noqa: BLE001  # raised by wait()
            self._fail(error)
            return _Claimed.UNKNOWN
        if not jobs:
            return _Claimed.NOTHING
        outcome = _Claimed.UNKNOWN
        for job in jobs:
            if job.type in self._types:
                self._runs.start(job)
                outcome = _Claimed.JOBS
            else:
                # Not reported: given back, it would be the next job again. Its lease runs out.
                log(logging.ERROR, "unknown_type_claimed", "has no handler here: its lease runs out", job=job)
        return outcome

    async def _one(self) -> list[Job]:
        job = await self._client.claim_job(self._worker_id, self._types)
        return [] if job is None else [job]

    async def _many(self, count: int) -> list[Job]:
        if not self._has_connected:
            if not self._client.features:
                await self._client.connect()
            self._has_connected = True
            if self._is_polling:
                return await self._one()
        return await self._client.claim_jobs(self._worker_id, self._types, limit=count, wait=_WAIT)

    async def _rest(self, delay: float) -> None:
        """Wait about that long, or until `stop`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(jittered(delay, self._jitter())):
                await self._must_stop.wait()


class _Claimed(Enum):
    """What came of a claim; `UNKNOWN`: no answer that means anything."""

    JOBS = auto()
    NOTHING = auto()
    UNKNOWN = auto()
