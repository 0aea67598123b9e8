"""A job as a worker sees it."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from typing import TypeVar, overload

from msgspec import UnsetType

from .models import ClaimedJob
from .registry import PayloadSchemas

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Job:
    """A leased job. `payload_json` is its payload's JSON text as it was submitted, None when it has none.

    Its repr leaves the payload out, which may hold what belongs in no log, and the token.
    `attempt` is 1 for the first, and `lease_token` names this very lease; both are None when the broker does not tell.
    """

    id: str
    type: str | None
    payload_json: bytes | None = field(repr=False)
    attempt: int | None
    lease_token: str | None = field(repr=False)
    _schemas: PayloadSchemas = field(repr=False, compare=False)

    @classmethod
    def claimed(cls, answer: ClaimedJob, schemas: PayloadSchemas) -> Job:
        """Return the job that a claim was answered with."""
        assert answer.job_id, "an empty answer is no job"
        text = None if isinstance(answer.payload, UnsetType) else bytes(answer.payload)
        return cls(answer.job_id, answer.type or None, text, answer.attempt, answer.lease_token, schemas)

    @property
    def payload(self) -> object:
        """The payload: of its type's model where the client's registry has one, else plain data.

        Raises `PayloadValidationError` if it does not fit.
        """
        return self.payload_as(None)

    @overload
    def payload_as(self, model: builtins.type[P]) -> P: ...
    @overload
    def payload_as(self, model: object) -> object: ...
    def payload_as(self, model: object) -> object:
        """The payload as another model than the registry's; None means the registry's."""
        if self.payload_json is None and model is None:
            return None
        return self._schemas.from_json(self.type, self.payload_json or b"null", model)
