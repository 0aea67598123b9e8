"""When a call is asked again, and what it says when it is not: no I/O, no clock, no chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from .errors import (
    BrokerLeadershipError,
    DiscoveryError,
    EngineStateError,
    JobNotFoundError,
    LeaseLostError,
    OsqueueError,
    StorageBackendError,
    TransportConnectionError,
    TransportRequestError,
)
from .link import Link
from .operations import GET_STATS, AnyOperation
from .session import Place

LONGEST_AGE: Final = 60.0
"""Seconds after its first sending for which a change may be sent again: a broker refuses it when it is older."""

_FIRST_DELAY: Final = 0.05
_LONGEST_DELAY: Final = 1.0
_PATIENCE: Final = 13.0
"""Seconds after which an answer is given up and asked for again: a broker waits 10 s for its store, or up to 12.5."""

LONGEST_REQUEST: Final = 20.0
"""Seconds for which one request waits for a job, however long its caller does. Proxies cut a request that is idle for
60 s, and what is sent again must be younger than `LONGEST_AGE`, after another such wait."""

NOT_HERE: Final = (BrokerLeadershipError, DiscoveryError, StorageBackendError, TransportConnectionError)
"""What any request would meet now: nobody serves there."""

_OF_A_PROXY: Final = frozenset({502, 503, 504})
_OF_A_PROXY_OVER_CONNECT: Final = "unavailable"
_SETTLING = (JobNotFoundError, LeaseLostError)
"""What a broker says only after it has looked whether the request was done before."""


class TimeIsUp(Exception):
    """The time of an attempt, or of the whole call, is over."""


class NotKnown(Exception):
    """The broker lacks a feature without which the request means nothing to it: nothing was sent."""


class NotAgain(Exception):
    """A change that may have happened cannot be sent to the broker that was found, or no longer to any."""


@dataclass(slots=True)
class Tries:
    """What came of the attempts of one call: the current one, and those before it."""

    operation: AnyOperation
    is_change: bool
    begun_at: float
    seconds: float
    """The call's time limit."""
    wait_until: float | None = None
    """Until when it waits for a job, if it does; the time limit begins then."""
    place: Place | None = None
    """The request's in its session, from when it was first sent with an id."""
    # The current attempt.
    link: Link | None = None
    attempt_at: float = 0.0
    sent_at: float | None = None
    wait: float = 0.0
    """Seconds for which the request waits at the broker."""
    is_repeatable: bool = False
    knows_ids: bool = False
    """Whether the broker that is asked does a request with an id once, as far as is known."""
    # All of them.
    count: int = 0
    failure: OsqueueError | None = None
    """The last one."""
    doubtful_since: float | None = None
    """When the first request was sent that may have had an effect, if there was one."""
    is_anew: bool = False
    """Whether there was one before that, which is left to its fate."""
    delay: float = _FIRST_DELAY
    asked: set[str] = field(default_factory=set)
    """The addresses that were tried since the last pause."""

    @property
    def deadline(self) -> float:
        """When the call must end."""
        return self.begun_at + self.seconds

    @property
    def failure_text(self) -> str:
        """What failed last, for a person."""
        text = self.failure.message if self.failure else ""
        name = self.operation.name
        return text if text.startswith(name) else f"{name}: {text}"

    def begin(self, now: float) -> None:
        """Begin an attempt."""
        self.count += 1
        self.link, self.attempt_at, self.sent_at, self.wait = None, now, None, 0.0
        self.is_repeatable = not self.is_change
        self.knows_ids = False

    def limit(self, now: float) -> float:
        """Return until when the attempt may go on from here: to the end, where nothing could follow it."""
        if self.sent_at is not None and not self.is_repeatable:
            return self.deadline
        patience = _PATIENCE
        if self.operation.is_read:  # its answer may be long, and one that is always given up never comes
            patience = max(patience, (self.deadline - now) / 2)
        return min(self.deadline, now + patience + self.wait)

    def begin_wait(self, now: float, *, is_known: bool) -> None:
        """Note for how long the request waits at a broker, which may know nothing of that."""
        if self.wait_until is not None and is_known:
            self.wait = round(max(0.0, min(self.wait_until - now, LONGEST_REQUEST)), 3)

    def begin_anew(self, now: float) -> None:
        """Take a claim that waits for a new request where it is too old to be sent again.

        A job that was leased by the old one comes back when that lease runs out; to wait on is what the caller wants.
        """
        if self.wait_until is None or self.doubtful_since is None or not self._is_too_old(now):
            return
        self.doubtful_since, self.is_anew = None, True
        if self.place is not None:
            self.place.give_back()
            self.place = None

    def first_sent_at(self, now: float) -> float:
        """Return when the request was sent first; one that surely had no effect does not count."""
        return now if self.doubtful_since is None else self.doubtful_since

    def require_may_send(self, now: float) -> None:
        """Raise `NotAgain` if the change may have happened and this broker could not tell."""
        if self.doubtful_since is not None and (not self.knows_ids or self._is_too_old(now)):
            raise NotAgain
        self.is_repeatable = self.knows_ids

    def failed(self, error: OsqueueError, now: float) -> bool:
        """Note how an attempt failed; return whether there may be another."""
        if self.sent_at is None:
            self._speak_of_call(error)
        elif error.outcome != "not_applied" and self.doubtful_since is None:
            self.doubtful_since = self.sent_at
        self.failure = error
        if self.link is not None:
            self.asked.add(self.link.address)
        if not self.may_pass(error):
            return False
        if not self.is_change or self.doubtful_since is None:
            return True
        was_repeatable = self.sent_at is None or self.is_repeatable
        return was_repeatable and (self.wait_until is not None or not self._is_too_old(now))

    def may_pass(self, error: OsqueueError) -> bool:
        """Whether the error is of this broker or of this moment, so that another broker, or a later try, may do better.

        Not so a full queue, which the caller should know of, and whatever else a broker refuses. Brokers that know no
        request ids may refuse a lost lease by an `EngineStateError`, and say no outcome.
        """
        match error:
            case TransportRequestError():
                return error.status in _OF_A_PROXY or error.remote_tag == _OF_A_PROXY_OVER_CONNECT
            case EngineStateError():
                return error.outcome != "not_applied" and self.knows_ids
        return isinstance(error, NOT_HERE)

    def _speak_of_call(self, error: OsqueueError) -> None:
        # Only the leader was looked for, or asked what it knows.
        error.outcome = "not_applied"
        if error.message.startswith(f"{GET_STATS.name}: "):
            error.args = (self.operation.name + error.message.removeprefix(GET_STATS.name),)

    def next_delay(self, named: str | None, jitter: float) -> float:
        """Return the seconds to wait before the next attempt; `named` is the leader that the last error named.

        None for a leader that was not asked just now. Else half to all of a delay that doubles, up to 1 s.
        """
        if named is not None and named not in self.asked:
            return 0.0
        self.asked.clear()
        delay, self.delay = self.delay, min(self.delay * 2, _LONGEST_DELAY)
        return delay * (0.5 + jitter / 2)

    def no_answer(self, now: float) -> OsqueueError:
        """Return the error of an attempt whose time was up."""
        if self.failure is not None and self.sent_at is None and now >= self.deadline:
            return self.failure  # tells more than that there was no time for another
        who = "no broker was found" if self.link is None else f"no answer from {self.link.address}"
        before = f"; before that: {self.failure.message}" if self.failure else ""
        seconds = min(self.seconds, now - self.attempt_at)
        return TransportConnectionError(
            f"{self.operation.name}: {who} within {round(seconds, 1 if seconds >= 1 else 3):g} s{before}",
            outcome="not_applied" if self.sent_at is None else "unknown",
        )

    def closed(self) -> TransportConnectionError:
        """Return the error of a call that was under way when its client was closed."""
        is_clear = self.sent_at is None and self.doubtful_since is None and not self.is_anew
        return TransportConnectionError(
            f"{self.operation.name}: the client was closed during the call",
            outcome="not_applied" if is_clear else "unknown",
        )

    def conclusion(self, now: float) -> OsqueueError:
        """Return the last failure as the caller should see it: with the outcome over all attempts."""
        error = self.failure
        assert error is not None
        if (self.doubtful_since is not None or self.is_anew) and not isinstance(error, _SETTLING):
            error.outcome = "unknown"
        if self.count > 1:
            error.args = (f"{error.message} (tried {self.count} times in {now - self.begun_at:.1f} s)",)
        return error

    def _is_too_old(self, now: float) -> bool:
        return now - self.first_sent_at(now) >= LONGEST_AGE
