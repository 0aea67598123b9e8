"""What is measured inside the broker's process: its writes of the queue document, and the pauses of its event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Final

from osqueue_broker.settings import DOCUMENT_KEY
from osqueue_storage import CASConflictError, StorageBackend

TICK: Final = 0.001


class Writes:
    """Counts the writes of the queue document from now on, and those that were refused: not the broker's probe."""

    def __init__(self, storage: StorageBackend) -> None:
        self._write = storage.write
        self._conflicts = self._largest = 0
        storage.write = self._counted  # type: ignore[method-assign]  # the backend stays what it is in all else

    def take(self) -> dict[str, float]:
        """Return the conflicts and the largest body since the last call."""
        found: dict[str, float] = {"conflicts": self._conflicts, "largest": self._largest}
        self._conflicts = self._largest = 0
        return found

    async def _counted(self, key: str, body: bytes, expected_version: str) -> str:
        if key != DOCUMENT_KEY:
            return await self._write(key, body, expected_version)
        self._largest = max(self._largest, len(body))
        try:
            return await self._write(key, body, expected_version)
        except CASConflictError:
            self._conflicts += 1
            raise


class Pauses:
    """By how much a task is late that sleeps a millisecond, and how much of that is the process's own doing.

    `pause` is wall time. `own` leaves out the time in which the loop's thread was ready to run and had no processor
    (run delay, /proc/<pid>/task/<tid>/schedstat): other programs lengthen the first, not the second. `turn` is the CPU
    time of the thread from one wake-up to the next, at least one whole turn of the loop.
    """

    def __init__(self) -> None:
        self._longest = dict.fromkeys(("pause", "own", "turn"), 0.0)

    def take(self) -> dict[str, float]:
        """Return the longest since the last call, in seconds."""
        found = self._longest
        self._longest = dict.fromkeys(found, 0.0)
        return found

    async def watch(self) -> None:
        """Watch the loop that this runs in until cancelled."""
        stat = os.open(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat"), os.O_RDONLY)
        try:
            at, cpu, delayed = time.monotonic(), time.thread_time(), _run_delay(stat)
            while True:
                await asyncio.sleep(TICK)
                now, cpu_now, delayed_now = time.monotonic(), time.thread_time(), _run_delay(stat)
                late = now - at - TICK
                self._note("pause", late)
                self._note("own", late - (delayed_now - delayed))
                self._note("turn", cpu_now - cpu)
                at, cpu, delayed = now, cpu_now, delayed_now
        finally:
            os.close(stat)

    def _note(self, name: str, seconds: float) -> None:
        self._longest[name] = max(self._longest[name], seconds)


def _run_delay(stat: int) -> float:
    """Return the seconds that a thread has waited for a processor."""
    return int(os.pread(stat, 100, 0).split()[1]) / 1e9
