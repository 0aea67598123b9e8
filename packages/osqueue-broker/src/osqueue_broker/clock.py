"""The one place in the broker that touches real clocks and real chance."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Final, Protocol

_NEVER_STANDS: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while the machine sleeps. CLOCK_MONOTONIC of Linux stands, and a leader would wake up fresh."""


class Clock(Protocol):
    """Time and ids, as the broker sees them."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch: only ever written, never compared with another machine's."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps."""
        ...

    def new_id(self) -> str:
        """A UUID that nobody has used before."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's clocks and the operating system's randomness."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.clock_gettime(_NEVER_STANDS)  # its one home

    def new_id(self) -> str:
        return str(uuid.uuid4())  # noqa: TID251  # its one home
