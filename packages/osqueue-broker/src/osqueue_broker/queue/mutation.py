"""One request to the queue, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal, TypeAlias

from osqueue_client.errors import OsqueueError
from osqueue_client.models import Empty, Model
from osqueue_client.operations import AnyOperation

from .segment import SegmentNeeded


@dataclass(frozen=True, slots=True)
class Mutation:
    """One request to the queue, a read included.

    `new_id` names what it may make: a job, the first of many jobs (see `ids`), a lease.
    """

    operation: AnyOperation
    request: Model
    new_id: str = ""


class Waiting(Enum):
    """No answer yet."""

    FOR_JOB = auto()
    """The claim waits among the state's `waiting_claims`."""


FOR_JOB: Final = Waiting.FOR_JOB

Outcome: TypeAlias = Model | Literal[Waiting.FOR_JOB]
"""What a request comes to that was not refused."""

Answer: TypeAlias = Outcome | OsqueueError | SegmentNeeded

DONE: Final = Empty()
