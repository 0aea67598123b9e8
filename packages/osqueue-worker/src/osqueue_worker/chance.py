"""What the worker leaves to chance."""

from __future__ import annotations

import random  # noqa: TID251  # only so that workers do not ask in step
import uuid
from collections.abc import Callable
from dataclasses import dataclass


def _short_id() -> str:
    return uuid.uuid4().hex[:8]  # noqa: TID251  # the worker's one source of ids


@dataclass(frozen=True, slots=True)
class Chance:
    """The worker's one source of what is random: the end of its id, and the jitter of its pauses.

    Not public. A simulation gives `Worker(..., _chance=Chance(...))` functions of its seed. What the worker knows of
    time it has from the event loop.
    """

    short_id: Callable[[], str] = _short_id
    jitter: Callable[[], float] = random.random
    """Makes a number from 0 to 1."""
