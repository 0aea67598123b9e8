"""What the worker says in the log: a line can be read without its fields, and none holds a payload."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from osqueue_client import Job, OsqueueError

logger = logging.getLogger("osqueue.worker")

_FIRST_SILENCE: Final = 10.0
_LONGEST_SILENCE: Final = 300.0
_LONGEST_TEXT: Final = 1000
"""Of an exception's text, in characters: its traceback and the broker have more of it."""


def log(
    level: int,
    event: str,
    text: str,
    *,
    job: Job | None = None,
    error: BaseException | None = None,
    has_traceback: bool = False,
    **fields: object,
) -> None:
    """Log `event: text`, with the job and the error named in the message and in the record's fields."""
    fields["event"] = event
    if job is not None:
        fields |= {"job_id": job.id, "job_type": job.type, "attempt": job.attempt}
        attempt = "" if job.attempt is None else f" (attempt {job.attempt})"
        text = f"{job.type or 'untyped job'} {job.id}{attempt} {text}"
    if error is not None:
        fields |= {"error": type(error).__name__, "error_message": text_of(error)}
        text = f"{text}: {described(error)}"
    logger.log(level, "%s: %s", event, text, exc_info=error if has_traceback else None, extra=fields)


def described(error: BaseException) -> str:
    """Return an exception's class and text, on one line."""
    text = " ".join(text_of(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def text_of(error: BaseException) -> str:
    """Return an exception's text, also where its class cannot give any."""
    return str(error)[:_LONGEST_TEXT] if has_text(error) else "(unreadable)"


def has_text(error: BaseException) -> bool:
    """Whether `str(error)` works."""
    try:
        str(error)
    except Exception:  # noqa: BLE001  # the user's class, with the user's __str__
        return False
    return True


class ClaimLog:
    """Logs claims that fail: the first at once, those after it at growing intervals, and that it is over."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._level = logging.NOTSET
        self._since = self._next_at = 0.0
        self._silence = _FIRST_SILENCE

    def failed(self, level: int, event: str, error: OsqueueError) -> None:
        """Log the failure, unless the like of it was logged a short while ago."""
        now = self._clock()
        if not self._failures:
            self._since, self._silence = now, _FIRST_SILENCE
        self._failures += 1
        if level <= self._level and now < self._next_at:
            return
        if self._failures > 1:
            so_far = f"{self._failures} times in {now - self._since:.0f} s, most recently"
        else:
            so_far = "it is tried again"
        log(level, event, so_far, error=error, failures=self._failures)
        self._level, self._next_at = level, now + self._silence
        self._silence = min(self._silence * 2, _LONGEST_SILENCE)

    def worked(self) -> None:
        """Log that claims work again, if they did not."""
        if self._failures:
            seconds = self._clock() - self._since
            text = f"after {self._failures} that failed in {seconds:.0f} s"
            log(logging.WARNING, "claims_work_again", text, failures=self._failures)
        self._failures, self._level = 0, logging.NOTSET
