"""A job as a worker sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .registry import PayloadSchemas


@dataclass(frozen=True, slots=True)
class Job:
    """A leased job. `payload_json` is its payload's JSON text as it was submitted, None when it has none.

    `attempt` is 1 for the first, and None when the broker does not tell.
    """

    id: str
    type: str | None
    payload_json: bytes | None
    attempt: int | None
    _schemas: PayloadSchemas = field(repr=False, compare=False)

    @property
    def payload(self) -> object:
        """The payload: of its type's model where the client's registry has one, else plain data.

        Raises `PayloadValidationError` if it does not fit.
        """
        return self.payload_as(None)

    def payload_as(self, model: object) -> object:
        """The payload as another model than the registry's; None means the registry's."""
        if self.payload_json is None and model is None:
            return None
        return self._schemas.from_json(self.type, self.payload_json or b"null", model)
