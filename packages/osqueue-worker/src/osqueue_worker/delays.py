"""How long the worker waits before it asks again."""

from __future__ import annotations

from typing import Final

LONGEST_DELAY: Final = 5.0


def jittered(delay: float, jitter: float) -> float:
    """Return 0.75 to 1.25 times the delay, by a `jitter` from 0 to 1."""
    return delay * (0.75 + jitter / 2)
