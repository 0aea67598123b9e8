"""Job types and the models of their payloads, checked before anything is sent and before a handler runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeAlias, TypeVar

import pydantic
import pydantic_core

from .errors import ConfigError, PayloadValidationError
from .payloads import read_typed, read_untyped, typed_json, untyped_json

P = TypeVar("P")

Registry: TypeAlias = Mapping[str, Any]
"""Job type name to anything that pydantic validates: `{"email:send": SendEmail}`. The values are of many
types, and a mapping cannot tie each name to its own: `JobType` does that for a type checker."""

HandlerOf: TypeAlias = Callable[[P], Awaitable[object]] | Callable[[P], object]
"""What runs the jobs whose payload is a `P`."""


@dataclass(frozen=True, slots=True)
class JobType(Generic[P]):
    """A job type's name with its payload's model, so that a type checker knows which payload belongs to it.

    A client with a registry takes it only if the registry has this model under this name. Raises `ConfigError`
    for an empty name.
    """

    name: str
    model: type[P]

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError('a JobType needs a name, for example JobType("email:send", SendEmail)')

    def handled_by(self, handler: HandlerOf[P]) -> JobHandler[Any]:
        """Return the handler tied to this job type, for `Worker(handlers=[...])`.

        A type checker compares the two here. What is returned shows the payload's type no more, so that the
        handlers of several job types are of one type, and a list of them is, too.
        """
        return JobHandler(self, handler)


@dataclass(frozen=True, slots=True)
class JobHandler(Generic[P]):
    """A job type and what runs its jobs."""

    job_type: JobType[P]
    handler: HandlerOf[P]


class PayloadSchemas:
    """Validates payloads against a registry. Without one, any JSON value is a payload of any type."""

    def __init__(self, registry: Registry | None) -> None:
        # A copy, and read-only: a job type that comes or goes later would be known here and not at the worker.
        self.registry: Registry | None = None if registry is None else MappingProxyType(dict(registry))

    def to_json(self, job_type: str | JobType[Any] | None, payload: object) -> bytes:
        """Return a payload as JSON text. Raises `PayloadValidationError`; nothing was sent then."""
        name = job_type.name if isinstance(job_type, JobType) else job_type
        model = self._model(name)
        if isinstance(job_type, JobType):
            if self.registry is not None and model != job_type.model:
                raise PayloadValidationError(
                    f"the registry has another model for {name!r} than this JobType", job_type=name
                )
            model = job_type.model
        try:
            return untyped_json(payload) if model is None else typed_json(model, payload)
        except pydantic.ValidationError as error:
            # Without it as the cause: it shows the payload, which may hold what belongs in no log.
            raise PayloadValidationError(_text(name, error), job_type=name) from None
        except (pydantic_core.PydanticSerializationError, ValueError, RecursionError) as error:
            raise PayloadValidationError(
                f"the payload of {_named(name)} cannot be sent as JSON: {error}", job_type=name
            ) from None

    def from_json(self, job_type: str | None, text: bytes, model: object = None) -> object:
        """Return the payload that a JSON text holds: of the type's model where there is one, else plain data.

        Raises `PayloadValidationError`, also for valid JSON that Python cannot hold: a number beyond the floats,
        an integer of more than 4300 digits, half a surrogate pair.
        """
        if model is None and self.registry is not None and job_type is not None:
            model = self.registry.get(job_type)
        try:
            return read_untyped(text) if model is None else read_typed(model, text)
        except pydantic.ValidationError as error:
            raise PayloadValidationError(_text(job_type, error), job_type=job_type) from None
        except ValueError as error:
            raise PayloadValidationError(
                f"the payload of {_named(job_type)} cannot be read: {error}", job_type=job_type
            ) from error

    def _model(self, name: str | None) -> object:
        if self.registry is None or not name:
            return None
        if name not in self.registry:
            known = ", ".join(sorted(self.registry)) or "none"
            raise PayloadValidationError(
                f"there is no job type {name!r} in the registry; it has {known}", job_type=name
            )
        model: object = self.registry[name]
        return model


def _named(name: str | None) -> str:
    return repr(name) if name else "an untyped job"


def _text(name: str | None, error: pydantic.ValidationError) -> str:
    # Without pydantic's `input`: a payload may hold what belongs in no log.
    faults = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'payload'}: {fault['msg']}"
        for fault in error.errors(include_input=False, include_url=False)
    )
    return f"the payload of {_named(name)} does not fit its model: {faults}"
