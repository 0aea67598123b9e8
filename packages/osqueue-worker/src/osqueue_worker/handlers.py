"""Which function runs the jobs of which type."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from osqueue_client import ConfigError, Job, JobHandler, Registry

Handler: TypeAlias = Callable[[Any], object]
"""Takes the payload; async, or a plain function that then runs in a thread."""

Handlers: TypeAlias = Mapping[str, Handler] | Sequence[JobHandler[Any]]
"""By job type name, or as `job_type.handled_by(function)`, which a type checker can verify."""

_EXPECTED: Final = (
    'handlers must be a dict like {"email:send": send_email} or a list of job_type.handled_by(function)'
)


@dataclass(frozen=True, slots=True)
class BoundHandler:
    """A handler with the model of its payloads; None means that of the client's registry."""

    run: Handler
    model: object
    is_async: bool
    """Whether it surely runs on the event loop, where a cancellation ends it."""

    def payload_of(self, job: Job) -> object:
        """Return the job's payload as the handler takes it. Raises `PayloadValidationError`."""
        return job.payload_as(self.model)

    async def __call__(self, payload: object) -> None:
        """Run the handler; one that is not async runs in a thread."""
        if self.is_async:
            result = self.run(payload)
        else:
            result, error = await asyncio.to_thread(_call, self.run, payload)
            if error is not None:
                raise error
        if inspect.isawaitable(result):
            await result


def bind(handlers: Handlers, registry: Registry | None = None) -> dict[str, BoundHandler]:
    """Return the handlers by job type.

    Raises `ConfigError` if there are none, two for one type, or one for a type that the client's registry lacks.
    """
    bound: dict[str, BoundHandler] = {}
    for name, model, run in _rows(handlers):
        _check(name, model, run, registry)
        if name in bound:
            raise ConfigError(f"there are two handlers for {name!r}")
        bound[name] = BoundHandler(run, model, _is_async(run))
    if not bound:
        raise ConfigError(
            'a worker needs handlers, for example Worker(handlers={"email:send": send_email}, ...)'
        )
    return bound


def _is_async(run: Handler) -> bool:
    return inspect.iscoroutinefunction(run) or inspect.iscoroutinefunction(type(run).__call__)


def _check(name: object, model: object, run: object, registry: Registry | None) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"a handler's job type must be its name, not {name!r}")
    if not name:
        raise ConfigError(
            "a handler needs a job type: an untyped job is never given to a worker that names types"
        )
    if not callable(run):
        raise ConfigError(f"the handler of {name!r} must be a function, not {run!r}")
    if registry is None:
        return
    if name not in registry:
        known = ", ".join(sorted(registry)) or "none"
        raise ConfigError(
            f"there is a handler for {name!r}, but no such job type in the client's registry; it has {known}"
        )
    if model is not None and model != registry[name]:
        raise ConfigError(f"the client's registry has another model for {name!r} than its handler's JobType")


def _rows(handlers: object) -> Iterator[tuple[str, object, Handler]]:
    if isinstance(handlers, Mapping):
        for name, run in handlers.items():
            yield name, None, run
        return
    if isinstance(handlers, str) or not isinstance(handlers, Iterable):
        raise ConfigError(f"{_EXPECTED}, not {handlers!r}")
    for entry in handlers:
        if not isinstance(entry, JobHandler):
            raise ConfigError(f"{_EXPECTED}, not a list with {entry!r}")
        yield entry.job_type.name, entry.job_type.model, entry.handler


def _call(run: Handler, payload: object) -> tuple[object, BaseException | None]:
    # What it raises is returned: a future takes no StopIteration, and who waits for it would wait forever.
    try:
        return run(payload), None
    except BaseException as error:  # noqa: BLE001  # raised again where the handler is waited for
        return None, error
