"""One job: its JSON text, which is the truth, and the few fields that the queue works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field

from osqueue_client.models import Payload

if TYPE_CHECKING:
    from .sequence import Block

UNCLAIMED: Final = "unclaimed"
IN_PROGRESS: Final = "in_progress"
GONE: Final = "gone"
"""Not in the queue any more: completed or moved to the dead. Never written."""

Fields = dict[str, Raw | str | int | dict[str, str | int]]

_ROOM: Final = 160
"""Bytes that the names and numbers add which a lease and an error put into a job's text."""

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


class _PayloadText(Struct):
    payload: Payload = UNSET


_text_decoder = msgspec.json.Decoder(JobText)
_payload_decoder = msgspec.json.Decoder(_PayloadText)


class Job:
    """A job in memory. The queue changes the slots; `text` follows when the job is next written."""

    __slots__ = (
        "_size_when_read",
        "_text",
        "attempts",
        "block",
        "created_at",
        "heartbeat",
        "id",
        "is_stale",
        "last_error",
        "lease_deadline",
        "max_attempts",
        "position",
        "size",
        "status",
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
        self.last_error: dict[str, str | int] | None = None
        self.position = position
        self._size_when_read = len(text)
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
    def from_text(cls, text: bytes, position: int) -> Job:
        """Return the job that stands in a document. Raises one of `UNREADABLE` if it is none."""
        return cls(text, _text_decoder.decode(text), position)

    @property
    def payload(self) -> Raw | UnsetType:
        """The payload's JSON text, or `UNSET` if the job has none."""
        return _payload_decoder.decode(self._text).payload

    def rewrite(self) -> None:
        """Have the text made again, as slots have changed; `size` is right at once."""
        self.is_stale = True
        self._measure()

    def _measure(self) -> None:
        # An estimate that is never too small: what came, and what the queue adds in its place or beside it.
        self.size = self._size_when_read + _ROOM + _text_size(self.worker_id or "")
        if self.last_error is not None:
            self.size += sum(
                _text_size(value) for value in self.last_error.values() if isinstance(value, str)
            )

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
        if self.last_error is not None:
            fields["lastError"] = self.last_error
        return fields


def _set_or_drop(fields: Fields, name: str, value: str | int | None) -> None:
    if value is None:
        fields.pop(name, None)
    else:
        fields[name] = value


def _text_size(text: str) -> int:
    return len(_encoder.encode(text))
