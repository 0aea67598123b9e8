"""What is asked of each job queue that is measured, and which there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

CONCURRENCY: Final = 100
"""Jobs that the worker runs at once."""
CALLERS: Final = 64
"""Callers that submit at once, one job a call."""
BATCH: Final = 1_000
"""Jobs of one bulk submit, where there is such a call."""
JOB_TYPE: Final = "noop"

SYSTEMS: Final = ("osqueue", "pgqueuer", "taskiq", "huey")

Mark: TypeAlias = Callable[[str], None]
"""What each handler calls, with its payload, and all it does."""


class MissingServerError(Exception):
    """A server program is not installed; the message says which package brings it."""


@dataclass(frozen=True)
class Service:
    """A server that runs: how clients reach it, and the process whose children are all of it."""

    url: str
    pid: int


class Producer(Protocol):
    """The submitting side, in one process. Each call returns when the jobs are as durable as they get."""

    async def bulk(self, payloads: Sequence[str], /) -> None:
        """Submit with the system's call for many, or with `CALLERS` callers where it has none."""

    async def callers(self, payloads: Sequence[str], /) -> None:
        """Submit with `CALLERS` concurrent callers, one job a call."""

    async def one(self, payload: str, /) -> None:
        """Submit one job."""


class System(Protocol):
    """A job queue: its server, a producer, and a worker."""

    def serve(self, folder: Path, /) -> AbstractAsyncContextManager[Service]:
        """Run the server on an empty queue, its data in `folder`. Raises `MissingServerError`."""

    def producer(self, url: str, /) -> AbstractAsyncContextManager[Producer]:
        """Open a producer."""

    def work(self, url: str, mark: Mark, /) -> None:
        """Run jobs, `CONCURRENCY` at once, until the process ends."""


def system_of(name: str) -> System:
    """Return a system of `SYSTEMS`. Imported only now: no process is to carry the others' libraries."""
    match name:
        case "osqueue":
            from .osqueue import Osqueue

            return Osqueue()
        case "pgqueuer":
            from .pgqueuer import PgQueuerOnPostgres

            return PgQueuerOnPostgres()
        case "taskiq":
            from .taskiq import TaskiqOnRedis

            return TaskiqOnRedis()
        case "huey":
            from .huey import HueyOnRedis

            return HueyOnRedis()
        case _:
            raise ValueError(f"no such system: {name}")
