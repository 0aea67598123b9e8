"""Who leads, by what right, and whose write a document holds.

A term is one broker's time as leader. `epoch` grows by one with each takeover, `seq` with each commit of any
term, and every commit has an id of its own: no two bodies are ever equal, so a version that a store derives
from the content can never be taken for an older one.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from msgspec import Struct

HISTORY: Final = 16
"""Terms that a document remembers."""


class Stamp(Struct, rename="camel", frozen=True):
    """Which commit made a document: the term it belongs to, its number, and its id."""

    epoch: int
    seq: int
    commit_id: str


class Header(Struct, frozen=True, kw_only=True):
    """What a document says of its leader and of the commit that made it.

    `stamp` is None in a document that only brokers without terms have written.
    """

    broker: str | None
    broker_heartbeat: int
    stamp: Stamp | None
    previous_terms: tuple[Stamp, ...] = ()

    def next_commit(self, *, commit_id: str, wall_ms: int, broker: str | None) -> Header:
        """Return the header of this term's next commit."""
        assert self.stamp is not None, "only a takeover makes a document with terms"
        stamp = Stamp(self.stamp.epoch, self.stamp.seq + 1, commit_id)
        return Header(
            broker=broker, broker_heartbeat=wall_ms, stamp=stamp, previous_terms=self.previous_terms
        )  # fmt: skip

    def takeover(self, *, commit_id: str, wall_ms: int, broker: str) -> Header:
        """Return the header of the commit with which a new term begins."""
        old = self.stamp
        terms = (*self.previous_terms, old)[-HISTORY:] if old else self.previous_terms
        stamp = Stamp(old.epoch + 1, old.seq + 1, commit_id) if old else Stamp(1, 1, commit_id)
        return Header(broker=broker, broker_heartbeat=wall_ms, stamp=stamp, previous_terms=terms)

    def holds(self, commit: Stamp) -> bool:
        """Return whether a document with this header holds the effect of a commit.

        It does if the commit made it, if a broker without terms rewrote what the commit made (it keeps the
        fields that it does not know), or if a takeover replaced a state of that term that was as far.
        """
        if self.stamp is not None and self.stamp.commit_id == commit.commit_id:
            return True
        return any(term.epoch == commit.epoch and term.seq >= commit.seq for term in self.previous_terms)


EMPTY: Final = Header(broker=None, broker_heartbeat=0, stamp=None)
"""The header before the first document is written."""


class Right(Enum):
    """What a broker that would lead may do about a document."""

    LEAD = auto()
    """Take over at once."""
    WATCH = auto()
    """Somebody may be leading: take over only if the version does not move for the heartbeat timeout."""


def right_to_lead(header: Header, address: str, *, has_just_bound: bool) -> Right:
    """Return what the broker at `address` may do.

    A broker that has just bound its port finds its own address only after it was killed: nobody else can be
    listening there. No wall clock is ever compared.
    """
    if header.broker is None:
        return Right.LEAD
    if has_just_bound and header.broker == address:
        return Right.LEAD
    return Right.WATCH
