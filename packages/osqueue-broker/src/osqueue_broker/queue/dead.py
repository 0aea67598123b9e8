"""A dead job: one that failed for good, kept with its payload and its last error until a person decides."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from osqueue_client.models import DeadJob as DeadJobModel
from osqueue_client.models import JobError, Payload

from .job import UNCLAIMED, Fields, Job
from .order import ends_with_place, foreign_first, without_place
from .sequence import Block

_encoder = msgspec.json.Encoder()
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])


class _DeadText(Struct, rename="camel"):
    """The fields of a dead job in the document: those of the job, and how it died."""

    id: str
    created_at: int = 0
    payload: Payload = UNSET
    type: str | None = None
    attempts: int = 0
    max_attempts: int | None = None
    dead_at: int = 0
    dead_number: int = 0
    last_error: JobError | None = None
    order: Raw | UnsetType = UNSET


_text_decoder = msgspec.json.Decoder(_DeadText)


class DeadJob:
    """A dead job in memory: its text never changes. `position` counts the dead in the order of their death."""

    __slots__ = ("_text", "block", "id", "position")

    def __init__(self, id: str, number: int, text: bytes) -> None:
        self.id = id
        self.position = number
        self.block: Block | None = None
        self._text = text

    @classmethod
    def of(cls, job: Job, *, number: int, dead_at: int) -> DeadJob:
        """Return what is kept of a job whose `last_error` says why it died."""
        fields = job.fields()
        fields.pop("workerId", None)
        fields.pop("heartbeat", None)
        fields |= {"status": "dead", "deadAt": dead_at, "deadNumber": number}
        return cls(job.id, number, _encoder.encode(fields))

    @classmethod
    def from_text(cls, text: bytes) -> DeadJob:
        """Return the dead job that stands in a document. Raises one of `UNREADABLE` if it is none."""
        known = _text_decoder.decode(text)
        if known.order is not UNSET:  # ours in a segment, where it is the last field; else somebody else's
            is_ours = ends_with_place(text, known.dead_number)
            text = without_place(text, known.dead_number) if is_ours else foreign_first(text)
        return cls(known.id, known.dead_number, text)

    def text(self) -> bytes:
        """Return the dead job as JSON text."""
        return self._text

    def requeued(self, position: int) -> Job:
        """Return the job as it is claimable again: its attempts at 0, its last error still told."""
        fields: Fields = dict(_fields_decoder.decode(self._text))
        del fields["deadAt"], fields["deadNumber"]
        fields |= {"status": UNCLAIMED, "attempts": 0}
        return Job.from_text(_encoder.encode(fields), position)

    def view(self) -> DeadJobModel:
        """Return what is listed of it."""
        known = _text_decoder.decode(self._text)
        return DeadJobModel(
            id=known.id,
            payload=known.payload,
            type=known.type,
            created_at=known.created_at,
            attempts=known.attempts,
            max_attempts=known.max_attempts or 0,
            dead_at=known.dead_at,
            error=known.last_error or JobError(type="", message=""),
        )
