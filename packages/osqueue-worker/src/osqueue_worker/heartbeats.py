"""The leases of all jobs that run are kept by one request each interval."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from osqueue_client import OsqueueClient, OsqueueError
from osqueue_client.models import BATCH_LIMIT

from .logs import log
from .reports import LEASE_IS_LOST
from .runs import Cut, Run, Runs

_PATIENCE: Final = 5.0
"""Seconds that a heartbeat may take, however often they are sent."""


class Heartbeats:
    """Keeps the leases of a worker's runs. One that turns out to be lost has its handler cancelled."""

    def __init__(
        self,
        client: OsqueueClient,
        worker_id: str,
        runs: Runs,
        *,
        interval: float,
        fail: Callable[[Exception], None],
    ) -> None:
        self._client = client
        self._worker_id = worker_id
        self._runs = runs
        self._interval = interval
        self._fail = fail
        self._has_failed = False

    async def run(self) -> None:
        """Keep leases until it is cancelled."""
        left: list[Run] = []
        while True:
            # Where more jobs run than one request takes, the requests are spread over the interval.
            requests = max(1, -(-self._runs.running // BATCH_LIMIT))
            await asyncio.sleep(self._interval / requests)
            left = [run for run in left if run.is_in_attempt] or self._runs.in_attempt()
            due, left = left[:BATCH_LIMIT], left[BATCH_LIMIT:]
            if due:
                await self._beat(due)

    async def _beat(self, runs: list[Run]) -> None:
        try:
            results = await self._client.heartbeat_jobs(
                [run.job for run in runs], self._worker_id, timeout=max(self._interval, _PATIENCE)
            )
        except OsqueueError as error:
            results = [error] * len(runs)
        except Exception as error:  # noqa: BLE001  # raised by wait(); the handlers may still end well
            self._fail(error)
            return
        failed: list[tuple[Run, OsqueueError]] = []
        for run, result in zip(runs, results, strict=True):
            if isinstance(result, LEASE_IS_LOST):
                run.cut_short(Cut.LOST)
            elif result is not None:
                failed.append((run, result))
        self._note(failed)

    def _note(self, failed: list[tuple[Run, OsqueueError]]) -> None:
        """Log the first of the failures in a row."""
        if failed and not self._has_failed:
            run, error = failed[0]
            others = f", and {len(failed) - 1} more," if len(failed) > 1 else ""
            text = f"is run on{others} and tried again"
            log(logging.WARNING, "heartbeat_failed", text, job=run.job, error=error, failures=len(failed))
        self._has_failed = bool(failed)
