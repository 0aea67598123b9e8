"""The one place in the broker that touches real clocks and real chance."""

from __future__ import annotations

import os
import time
from typing import Final, Protocol

_NEVER_STANDS: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while the machine sleeps. CLOCK_MONOTONIC of Linux stands, and a leader would wake up fresh."""


_VARIANT: Final = dict(zip("0123456789abcdef", 4 * "89ab", strict=True))
"""The top two bits of a hexadecimal digit as RFC 9562 has them."""


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


_AT_ONCE: Final = 256
"""Ids for which randomness is fetched at a time: a call of the system costs more than all the rest of an id."""


class SystemClock:
    """The machine's clocks and the operating system's randomness."""

    def __init__(self) -> None:
        self._random: list[str] = []

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.clock_gettime(_NEVER_STANDS)  # its one home

    def new_id(self) -> str:
        if not self._random:
            bits = os.urandom(16 * _AT_ONCE).hex()
            self._random = [bits[at : at + 32] for at in range(0, len(bits), 32)]
        bits = self._random.pop()
        # RFC 9562: a UUID of version 4, in the one variant.
        return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-{_VARIANT[bits[16]]}{bits[17:20]}-{bits[20:]}"
