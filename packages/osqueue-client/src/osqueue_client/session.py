"""Which request this is: the numbers by which a broker knows one that is sent again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .models import RequestId

IDLE_TIMEOUT: Final = 60.0
"""Seconds after which a session that nobody uses is given up: a broker drops it after 120."""

LONGEST_SPAN: Final = 1000
"""Requests after the lowest that is still waited for. A broker remembers all of their answers, 10,000 at most."""


class Session:
    """The numbers of some requests, and which of them are still waited for."""

    def __init__(self, id: str, now: float) -> None:
        self.id = id
        self.used_at = now
        self._process = os.getpid()
        self._next = self._lowest = 1
        self._waited_for: set[int] = set()

    def take(self) -> int:
        """Return the number of a new request. It is waited for until it is given back."""
        number = self._next
        self._next += 1
        self._waited_for.add(number)
        return number

    def give_back(self, number: int) -> None:
        """Wait no more for a request: its answer came, or nobody is left who wants it."""
        self._waited_for.discard(number)
        # Each number is passed once, however many are waited for.
        while self._lowest < self._next and self._lowest not in self._waited_for:
            self._lowest += 1

    @property
    def lowest(self) -> int:
        """The lowest number that is still waited for."""
        return self._lowest

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is waited for."""
        return not self._waited_for

    def is_usable(self, now: float) -> bool:
        """Whether another request may be numbered in it.

        Not in a child of the process that began it, not after it was idle for long, and not while one request that gets
        no answer has the broker remember those of all that followed it.
        """
        if self._process != os.getpid() or self._next - self._lowest >= LONGEST_SPAN:
            return False
        return bool(self._waited_for) or now - self.used_at < IDLE_TIMEOUT


@dataclass(frozen=True, slots=True)
class Place:
    """A request's place in its session, for as long as it is repeated."""

    session: Session
    number: int

    def request_id(self, now: float, first_sent_at: float) -> RequestId:
        """Return the id of the request as it is sent now."""
        session = self.session
        session.used_at = now
        age_ms = int((now - first_sent_at) * 1000)
        return RequestId(session=session.id, number=self.number, lowest=session.lowest, age_ms=age_ms)

    def give_back(self) -> None:
        """Wait for the request no more."""
        self.session.give_back(self.number)


class Sessions:
    """The session in which a client's next request is numbered: mostly one, for all of its life."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._current: Session | None = None

    def take(self, now: float) -> Place:
        """Return the place of a new request."""
        if self._current is None or not self._current.is_usable(now):
            self._current = Session(self._new_id(), now)
        return Place(self._current, self._current.take())


class SingleSessions:
    """Sessions of one request at a time each: none that is waited for long holds back another's `lowest`."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._sessions: list[Session] = []

    def take(self, now: float) -> Place:
        """Return the place of a new request, the only one of its session until it is given back."""
        self._sessions = [session for session in self._sessions if session.is_usable(now)]
        session = next((session for session in self._sessions if session.is_idle), None)
        if session is None:
            session = Session(self._new_id(), now)
            self._sessions.append(session)
        return Place(session, session.take())
