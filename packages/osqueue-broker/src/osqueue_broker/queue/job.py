"""One job: its JSON text, which is the truth, and the few fields that the queue works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field

from osqueue_client.models import ClaimedJob, Payload
from osqueue_client.wire_json import UNREADABLE

from .order import HIGHEST, foreign_first, with_nothing_aside, without_place

if TYPE_CHECKING:
    from .sequence import Block

UNCLAIMED: Final = "unclaimed"
IN_PROGRESS: Final = "in_progress"
TAKEN: Final = "taken"
"""Just taken out of a segment, to be leased. Never written."""

GONE: Final = "gone"
"""Not in the queue any more: completed or moved to the dead. Never written."""

Fields = dict[str, Raw | str | int | dict[str, str | int]]

NOWHERE: Final = -1
"""The position of a job whose place is still to be given."""

CONFIRMED: Final = 1 << 60
"""As many hand-outs that nobody can doubt them all."""

_ROOM: Final = 260
"""Bytes that the names and numbers add which a lease and an error put into a job's text, and a token of our making."""

_encoder = msgspec.json.Encoder()
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])


class JobText(Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The fields of a job in the document that we know; a job may have more, which are kept."""

    id: str
    status: str
    payload: Payload = UNSET
    type: str | None = None
    # A default_factory is not left out by omit_defaults: other brokers expect these two in every job.
    created_at: int = field(default_factory=int)
    attempts: int = field(default_factory=int)
    max_attempts: int | None = None
    worker_id: str | None = None
    heartbeat: int | None = None
    lease: Raw | UnsetType = UNSET


class _OrderedText(JobText):
    """A job that may say its place among those that stand elsewhere; written only while some do."""

    order: int | UnsetType = UNSET


class LeaseText(Struct, rename="camel"):
    """What we add to a job that runs. It counts only while worker and attempts are the job's own:

    a broker that does not know it may have leased the job again, and have left it where it was.
    """

    token: str
    worker_id: str
    attempts: int


class _PayloadText(Struct):
    payload: Payload = UNSET


_text_decoder = msgspec.json.Decoder(JobText)
_ordered_decoder = msgspec.json.Decoder(_OrderedText)
_lease_decoder = msgspec.json.Decoder(LeaseText)
_payload_decoder = msgspec.json.Decoder(_PayloadText)


class Job:
    """A job in memory. The queue changes the slots; `text` follows when the job is next written."""

    __slots__ = (
        "_error_size",
        "_last_error",
        "_size_when_read",
        "_text",
        "attempts",
        "block",
        "created_at",
        "hand_outs",
        "heartbeat",
        "id",
        "is_stale",
        "lease_deadline",
        "lease_token",
        "max_attempts",
        "position",
        "size",
        "status",
        "text_bytes",
        "type",
        "worker_id",
    )

    def __init__(self, text: bytes, known: JobText, position: int) -> None:
        self._text = text
        self.is_stale = False
        self.id = known.id
        self.status = known.status
        self.type = known.type or ""
        self.created_at = known.created_at
        self.attempts = known.attempts
        self.max_attempts = known.max_attempts
        self.worker_id = known.worker_id
        self.heartbeat = known.heartbeat
        self.lease_token = None if isinstance(known.lease, UnsetType) else _token_in(known, known.lease)
        self.hand_outs = 1
        self._last_error: dict[str, str | int] | None = None
        self._error_size = 0
        self.position = position
        """Its place among all jobs; given once."""
        self._size_when_read = self.text_bytes = len(text)
        """About how many bytes its text has. It stays the same while the job is claimable."""
        self.size = 0
        self._measure()
        self.lease_deadline = 0.0
        self.block: Block | None = None

    @classmethod
    def submitted(
        cls,
        *,
        id: str,
        payload: Payload,
        type: str | None,
        max_attempts: int | None,
        created_at: int,
        position: int,
    ) -> Job:
        """Return a new job that waits to be claimed."""
        known = JobText(
            id=id, status=UNCLAIMED, payload=payload, type=type or None, created_at=created_at,
            max_attempts=max_attempts,
        )  # fmt: skip
        return cls(_encoder.encode(known), known, position)

    @classmethod
    def from_text(cls, text: bytes, position: int | None = None) -> Job:
        """Return the job that stands in a text, at a position or, without one, at that which it says itself.

        With a position, its field `order` is somebody else's. Raises one of `UNREADABLE` if it is no job.
        """
        try:
            known = _ordered_decoder.decode(text)
        except msgspec.ValidationError:  # by its `order`, if it is a job at all
            job = _text_decoder.decode(text)
            return cls(foreign_first(text), job, NOWHERE if position is None else position)
        order = known.order
        if order is UNSET:
            if position is None:
                return cls(with_nothing_aside(text), known, NOWHERE)
            return cls(text, known, position)
        if position is None and 0 <= order <= HIGHEST:
            return cls(without_place(text, order), known, order)
        return cls(foreign_first(text), known, NOWHERE if position is None else position)

    @property
    def is_in_doubt(self) -> bool:
        """Whether no answer with the running lease can have reached its worker, as far as is known."""
        return self.hand_outs <= 0

    @property
    def payload(self) -> Raw | UnsetType:
        """The payload's JSON text, or `UNSET` if the job has none."""
        return _payload_decoder.decode(self._text).payload

    def claimed(self) -> ClaimedJob:
        """Return the answer to the claim that began the running lease."""
        return ClaimedJob(
            job_id=self.id,
            payload=self.payload,
            type=self.type or None,
            attempt=self.attempts,
            lease_token=self.lease_token,
        )

    @property
    def last_error(self) -> dict[str, str | int] | None:
        """Why its last attempt failed, if that was since it was read."""
        return self._last_error

    @last_error.setter
    def last_error(self, error: dict[str, str | int]) -> None:
        self._last_error = error
        self._error_size = sum(_text_size(value) for value in error.values() if isinstance(value, str))
        if self.status != UNCLAIMED:  # else it is about to die, and counted among the claimable until then
            self.text_bytes = self._size_when_read + self._error_size

    def rewrite(self) -> None:
        """Have the text made again, as slots have changed; `size` is right at once."""
        self.is_stale = True
        self._measure()

    def _measure(self) -> None:
        # An estimate that is never too small: what came, and what the queue adds in its place or beside it.
        self.size = self._size_when_read + self._error_size + _ROOM
        if self.worker_id is not None:
            self.size += 2 * _text_size(self.worker_id)  # beside the lease's token, once more

    def text(self) -> bytes:
        """Return the job as JSON text, with every field that it came with."""
        if self.is_stale:
            self._text = _encoder.encode(self._fields())
            self.is_stale = False
        return self._text

    def fields(self) -> Fields:
        """Return every field of the job, those that nobody here knows included."""
        return dict(_fields_decoder.decode(self.text()))

    def _fields(self) -> Fields:
        fields: Fields = dict(_fields_decoder.decode(self._text))
        fields["status"] = self.status
        fields["attempts"] = self.attempts
        _set_or_drop(fields, "workerId", self.worker_id)
        _set_or_drop(fields, "heartbeat", self.heartbeat)
        if self.lease_token is not None:
            lease: dict[str, str | int] = {
                "token": self.lease_token,
                "workerId": self.worker_id or "",
                "attempts": self.attempts,
            }
            fields["lease"] = lease
        else:
            fields.pop("lease", None)
        if self._last_error is not None:
            fields["lastError"] = self._last_error
        return fields


def _token_in(known: JobText, text: Raw) -> str | None:
    """Return the token of the lease under which a job runs, if the job has one that is about this lease."""
    try:
        lease = _lease_decoder.decode(text)
    except UNREADABLE:
        return None  # a field of somebody else's by that name
    is_its_own = lease.worker_id == known.worker_id and lease.attempts == known.attempts
    return lease.token if is_its_own and known.status == IN_PROGRESS else None


def _set_or_drop(fields: Fields, name: str, value: str | int | None) -> None:
    if value is None:
        fields.pop(name, None)
    else:
        fields[name] = value


def _text_size(text: str) -> int:
    return len(_encoder.encode(text))
