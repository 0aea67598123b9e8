"""Claims that wait for a job, for as long as their callers like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from .calls import Calls
from .errors import ConfigError
from .models import ClaimedJob, ClaimedJobs, ClaimJob, ClaimJobs
from .operations import Operation
from .repeats import LONGEST_REQUEST

Req = TypeVar("Req", ClaimJob, ClaimJobs)
Res = TypeVar("Res", ClaimedJob, ClaimedJobs)

_SHORTEST: Final = 0.02
"""Seconds: for less than that no broker is asked once more."""


async def wait_for_jobs(
    calls: Calls,
    operation: Operation[Req, Res],
    request: Req,
    wait: float,
    timeout: float | None,
    *,
    has_jobs: Callable[[Res], bool],
    needs: str | None = None,
) -> Res:
    """Claim, and claim again until there are jobs or the wait is over; return the last answer.

    A broker that knows of no waiting answers at once, and is asked once. Raises what `Calls.call` does.
    """
    if not wait >= 0:  # so that NaN is refused, too
        raise ConfigError(f"wait must be at least 0 s, not {wait!r}", outcome="not_applied")
    if not wait:
        return await calls.call(operation, request, timeout, needs=needs)
    until = calls.now() + wait
    while True:
        asked_at = calls.now()
        answer = await calls.call(operation, request, timeout, needs=needs, wait_until=until)
        now = calls.now()
        if has_jobs(answer) or until - now < _SHORTEST:
            return answer
        if now - asked_at < min(until - asked_at, LONGEST_REQUEST) / 2:
            return answer  # it does not wait there, or not as long as it should
