"""Whether a leader is dead, judged by what a standby has seen of it on its own clock: values in, values out."""

from __future__ import annotations

from typing import Final

from osqueue_storage import StoredObject

from .queue.document import read_header
from .reaching import Reached
from .settings import BrokerSettings

REFUSALS: Final = 3
"""Refused connections in a row that may shorten the wait."""


class Watch:
    """One leader, and for how long it has given no sign of life.

    Only time in which the store answers counts: while it is down, a living leader cannot give one. `at` is the
    standby's own monotonic clock, always.
    """

    def __init__(self, found: StoredObject, at: float, *, address: str, settings: BrokerSettings) -> None:
        self.found = found
        self._own_address = address
        self._settings = settings
        self._seen_at = at
        self.silent_for = 0.0
        self.refusals = 0
        self._has_reached = False
        self._read_header(found)

    def _read_header(self, found: StoredObject) -> None:
        header = read_header(found.body)
        self.leader = header.broker
        self._epoch = None if header.stamp is None else header.stamp.epoch

    def see(self, found: StoredObject, at: float) -> bool:
        """Take in what the store has answered; return whether the document has moved.

        Raises `EngineStateError` if it cannot be read.
        """
        if found.version == self.found.version:
            # A longer gap is one in which the store gave no answer, or this process stood still.
            self.silent_for += min(at - self._seen_at, self._settings.broker_heartbeat_interval)
            self._seen_at = at
            return False
        before = (self.leader, self._epoch)
        self.found, self._seen_at = found, at
        self.silent_for, self.refusals = 0.0, 0
        self._read_header(found)
        if before != (self.leader, self._epoch):
            self._has_reached = False
        return True

    @property
    def wants_to_connect(self) -> bool:
        """Whether it would tell something to connect to the leader now.

        Until it was reached once, for refusals count only after that; and shortly before they would.
        """
        if self.leader is None or self.leader == self._own_address:
            return False
        settings = self._settings
        rest = settings.refused_timeout - self.silent_for
        return not self._has_reached or rest < (REFUSALS + 0.5) * settings.watch_interval

    def note(self, reached: Reached) -> None:
        """Take in what came of a try to connect to the leader."""
        self._has_reached = self._has_reached or reached is Reached.YES
        self.refusals = self.refusals + 1 if reached is Reached.REFUSED else 0

    @property
    def patience(self) -> float:
        """Seconds of silence after which this leader is dead."""
        is_refused = self._has_reached and self.refusals >= REFUSALS
        settings = self._settings
        return settings.refused_timeout if is_refused else settings.broker_heartbeat_timeout

    @property
    def is_over(self) -> bool:
        """Whether the leader counts as dead."""
        return self.silent_for >= self.patience
