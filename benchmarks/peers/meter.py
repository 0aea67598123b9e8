"""What a worker measures: called first thing in each handler, which does nothing else."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from typing import Final

PAYLOAD_BYTES: Final = 200
_STAMP_DIGITS: Final = 20


def payload() -> str:
    """Return a payload that says when it was made, by a clock that all processes of the machine share."""
    return f"{time.monotonic_ns():0{_STAMP_DIGITS}d}".ljust(PAYLOAD_BYTES, "x")


def say(line: str) -> None:
    """Print a line to whoever started this."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Drain:
    """Takes the time from the first handler to the last of so many, or to the end of the given seconds.

    Prints `started` in the first handler, and the result as JSON in the last.
    """

    def __init__(self, jobs: int, seconds: float) -> None:
        self._jobs = jobs
        self._seconds = seconds
        self._numbers = itertools.count(1)  # next() is atomic: handlers may be threads
        self._first = self._until = math.inf
        self._cpu = 0.0
        self._is_done = False

    def mark(self, payload: str) -> None:
        """Count a handler."""
        number = next(self._numbers)
        now = time.monotonic()
        if number == 1:
            self._cpu = time.process_time()
            self._first, self._until = now, now + self._seconds
            say("started")
        elif (number >= self._jobs or now >= self._until) and not self._is_done:
            self._is_done = True
            cpu = time.process_time() - self._cpu
            say(json.dumps({"jobs": number - 1, "seconds": now - self._first, "cpu": cpu}))


def pick_up(payload: str) -> None:
    """Print the nanoseconds from before the submit to this handler."""
    say(str(time.monotonic_ns() - int(payload[:_STAMP_DIGITS])))
