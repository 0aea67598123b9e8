"""The threads in which a file backend waits for the disk."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from .errors import StorageBackendError

R = TypeVar("R")

_READERS: Final = 4


class DiskThreads:
    """One thread for changes and a few for reads, made when they are first needed, and anew after a fork.

    Changes take turns anyway, by the lock of the root. With a thread of their own they cannot hold up the
    readers, and what they remember needs no lock of its own.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._is_closed = False
        self._started = _Started()

    @property
    def closing(self) -> threading.Event:
        """Set once the backend is being closed: what only waits then gives up."""
        return self._current().closing

    async def change(self, work: Callable[[], R]) -> R:
        """Do the work in the thread for changes. Raises `StorageBackendError` after `aclose`."""
        return await self._run(lambda started: started.writer, work)

    async def read(self, work: Callable[[], R]) -> R:
        """Do the work in one of the threads for reads. Raises `StorageBackendError` after `aclose`."""
        return await self._run(lambda started: started.readers, work)

    async def aclose(self) -> None:
        """Wait for what runs, also for work whose callers have given up."""
        self._is_closed = True
        started = self._current()
        started.closing.set()
        for executor in (started.writer, started.readers):
            await asyncio.to_thread(executor.shutdown)

    async def _run(self, choose: Callable[[_Started], ThreadPoolExecutor], work: Callable[[], R]) -> R:
        if self._is_closed:
            raise StorageBackendError(f"{self._owner} is closed", outcome="not_applied")
        executor = choose(self._current())
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    def _current(self) -> _Started:
        if self._started.pid != os.getpid():
            self._started = _Started()  # a fork copies the executors, but none of their threads
        return self._started


class _Started:
    """What belongs to one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.closing = threading.Event()
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="osqueue-file-writer")
        self.readers = ThreadPoolExecutor(_READERS, thread_name_prefix="osqueue-file-reader")
