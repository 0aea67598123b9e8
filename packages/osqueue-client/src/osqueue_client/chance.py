"""What the client leaves to chance, and to the machine."""

from __future__ import annotations

import random  # noqa: TID251  # only so that clients do not ask again in step
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass


def _session_id() -> str:
    return secrets.token_hex(8)


def _slept() -> int:
    # Linux: the clock of the event loop stands meanwhile. Whole seconds, as two clocks are read one after the other.
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True)
class Chance:
    """The client's one source of what is random: the names of its sessions, and the jitter of its pauses.

    Not public. A simulation gives `OsqueueClient(..., _chance=Chance(session_id=..., jitter=...))` functions of its
    seed. What else the client knows of time it has from the event loop.
    """

    session_id: Callable[[], str] = _session_id
    """Makes a name that no other client has: 1 to 64 characters."""
    jitter: Callable[[], float] = random.random
    """Makes a number from 0 to 1."""
    slept: Callable[[], float] = _slept
    """Says for how many seconds the machine has slept since it was started: a request grows older meanwhile."""
