"""Job types and the models of their payloads, checked before anything is sent and before a handler runs."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeAlias, TypeVar

import pydantic
import pydantic_core

from .errors import PayloadValidationError

P = TypeVar("P")

Registry: TypeAlias = Mapping[str, Any]
"""Job type name to anything that pydantic validates: `{"email:send": SendEmail}`. The values are of many
types, and a mapping cannot tie each name to its own: `JobType` does that for a type checker."""

Handler: TypeAlias = Callable[[P], Awaitable[object]] | Callable[[P], object]


@dataclass(frozen=True, slots=True)
class JobType(Generic[P]):
    """A job type's name with its payload's model, so that a type checker knows which payload belongs to it."""

    name: str
    model: type[P]

    def handled_by(self, handler: Handler[P]) -> JobHandler[P]:
        """Return the handler tied to this job type, for `Worker(handlers=[...])`."""
        return JobHandler(self, handler)


@dataclass(frozen=True, slots=True)
class JobHandler(Generic[P]):
    """A job type and what runs its jobs."""

    job_type: JobType[P]
    handler: Handler[P]


class PayloadSchemas:
    """Validates payloads against a registry. Without one, any JSON value is a payload of any type."""

    def __init__(self, registry: Registry | None) -> None:
        self._registry = None if registry is None else dict(registry)

    def to_json(self, job_type: str | JobType[Any] | None, payload: object) -> bytes:
        """Return a payload as JSON text. Raises `PayloadValidationError`; nothing was sent then."""
        name = job_type.name if isinstance(job_type, JobType) else job_type
        model = job_type.model if isinstance(job_type, JobType) else self._model(name)
        try:
            if model is None:
                return _strict_json(payload)
            return _model_json(_adapter(model), payload)
        except pydantic.ValidationError as error:
            # Without it as the cause: it shows the payload, which may hold what belongs in no log.
            raise PayloadValidationError(_text(name, error), job_type=name) from None
        except (pydantic_core.PydanticSerializationError, ValueError, RecursionError) as error:
            raise PayloadValidationError(
                f"the payload of {_named(name)} is not JSON: {error}", job_type=name
            ) from None

    def from_json(self, job_type: str | None, text: bytes, model: object = None) -> object:
        """Return the payload that a JSON text holds: of the type's model where there is one, else plain data.

        Raises `PayloadValidationError`.
        """
        if model is None and self._registry is not None and job_type is not None:
            model = self._registry.get(job_type)
        try:
            if model is None:
                return pydantic_core.from_json(text, allow_inf_nan=False)
            return _adapter(model).validate_json(text)
        except pydantic.ValidationError as error:
            raise PayloadValidationError(_text(job_type, error), job_type=job_type) from None
        except ValueError as error:
            raise PayloadValidationError(
                f"the payload of {_named(job_type)} cannot be read: {error}", job_type=job_type
            ) from error

    def _model(self, name: str | None) -> object:
        if self._registry is None or not name:
            return None
        if name not in self._registry:
            known = ", ".join(sorted(self._registry)) or "none"
            raise PayloadValidationError(
                f"there is no job type {name!r} in the registry; it has {known}", job_type=name
            )
        model: object = self._registry[name]
        return model


def _adapter(model: Any) -> pydantic.TypeAdapter[Any]:
    try:
        return _cached_adapter(model)
    except TypeError:
        return pydantic.TypeAdapter(model)  # a model that has no hash, such as Annotated with a list


@cache
def _cached_adapter(model: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(model)


def _model_json(adapter: pydantic.TypeAdapter[Any], payload: object) -> bytes:
    value = adapter.validate_python(payload)
    _refuse_nan(adapter.dump_python(value, warnings=False))
    text = adapter.dump_json(value, by_alias=True, warnings=False)
    # As the worker will read it: an instance may have been changed since it was made (pydantic does not look
    # again), or be written under other names than it is read by.
    adapter.validate_json(text)
    return text


def _strict_json(payload: object) -> bytes:
    plain = pydantic_core.to_jsonable_python(payload, by_alias=True, inf_nan_mode="constants")
    _refuse_nan(plain)
    return pydantic_core.to_json(plain)


def _refuse_nan(value: object) -> None:
    # pydantic writes NaN and infinity as null without a word.
    match value:
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} is not a JSON number")
        case dict():
            for item in value.values():
                _refuse_nan(item)
        case list() | tuple() | set() | frozenset():
            for item in value:
                _refuse_nan(item)


def _named(name: str | None) -> str:
    return repr(name) if name else "an untyped job"


def _text(name: str | None, error: pydantic.ValidationError) -> str:
    # Without pydantic's `input`: a payload may hold what belongs in no log.
    faults = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'payload'}: {fault['msg']}"
        for fault in error.errors(include_input=False, include_url=False)
    )
    return f"the payload of {_named(name)} does not fit its model: {faults}"
