"""A process that counts in a file store until it is told to stop or is killed; the tests start several.

    python file_writer.py ROOT WINS SIZE [DIE_AT [AFTER]]

Each time its write is acknowledged it prints the number that it wrote. With DIE_AT it kills itself before the
disk operation of that number, counted from its acknowledged write of the number AFTER (1; 0: from its start).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from osqueue_storage import CASConflictError, FileBackend

P = ParamSpec("P")
R = TypeVar("R")

KEY = "queue.json"
DISK_OPERATIONS = ("open", "write", "fsync", "rename", "unlink", "close", "stat", "scandir", "mkdir")


def body_of(number: int, size: int) -> bytes:
    """A body that tells by itself whether it is whole: number, digest, and a filling that both cover."""
    filling = (b"%d." % number) * (size // 8)
    return b"%d %s " % (number, hashlib.sha256(filling).hexdigest().encode()) + filling


def number_of(body: bytes) -> int:
    """The number in a body. Raises `AssertionError` if the body is torn."""
    number, digest, filling = body.split(b" ", 2)
    assert hashlib.sha256(filling).hexdigest().encode() == digest, "the body is torn"
    assert filling.startswith(b"%d." % int(number)), "the body is of two writes"
    return int(number)


async def count(root: str, wins: int, size: int, die_at: int | None, after: int) -> None:
    async with FileBackend(root) as store:
        won = 0
        if die_at is not None and after == won:
            die_before(die_at)
        while won < wins:
            found = await store.read(KEY)
            assert found is not None
            number = number_of(found.body) + 1
            try:
                await store.write(KEY, body_of(number, size), found.version)
            except CASConflictError:
                continue
            won += 1
            print(number, flush=True)
            if die_at is not None and after == won:
                die_before(die_at)


def die_before(operation: int) -> None:
    left = [operation]

    def deadly(real: Callable[P, R]) -> Callable[P, R]:
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return counted

    for name in DISK_OPERATIONS:
        setattr(os, name, deadly(getattr(os, name)))


if __name__ == "__main__":
    root, wins, size, *rest = sys.argv[1:]
    die_at = int(rest[0]) if rest else None
    after = int(rest[1]) if len(rest) > 1 else 1
    asyncio.run(count(root, int(wins), int(size), die_at, after))
