"""How long the worker waits before it asks again."""

from __future__ import annotations

import random  # noqa: TID251  # only so that workers do not ask in step
from typing import Final

LONGEST_DELAY: Final = 5.0


def jittered(delay: float) -> float:
    """Return 0.75 to 1.25 times the delay."""
    return delay * random.uniform(0.75, 1.25)
