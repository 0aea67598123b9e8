"""Which function runs the jobs of which type."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from osqueue_client import ConfigError, Job, JobHandler

Handler: TypeAlias = Callable[[Any], object]
"""Takes the payload; async, or a plain function that then runs in a thread."""

Handlers: TypeAlias = Mapping[str, Handler] | Sequence[JobHandler[Any]]
"""By job type name, or as `job_type.handled_by(function)`, which a type checker can verify."""


@dataclass(frozen=True, slots=True)
class BoundHandler:
    """A handler with the model of its payloads; None means that of the client's registry."""

    run: Handler
    model: object

    def payload_of(self, job: Job) -> object:
        """Return the job's payload as the handler takes it. Raises `PayloadValidationError`."""
        return job.payload_as(self.model)

    async def __call__(self, payload: object) -> None:
        """Run the handler; one that is not async runs in a thread."""
        is_async = inspect.iscoroutinefunction(self.run)
        result = self.run(payload) if is_async else await asyncio.to_thread(self.run, payload)
        if inspect.isawaitable(result):
            await result


def bind(handlers: Handlers) -> dict[str, BoundHandler]:
    """Return the handlers by job type. Raises `ConfigError` if there are none, or two for one type."""
    bound: dict[str, BoundHandler] = {}
    for name, model, run in _rows(handlers):
        if not name:
            raise ConfigError(
                "a handler needs a job type: an untyped job is never given to a worker that names types"
            )
        if not callable(run):
            raise ConfigError(f"the handler of {name!r} must be a function, not {run!r}")
        if name in bound:
            raise ConfigError(f"there are two handlers for {name!r}")
        bound[name] = BoundHandler(run, model)
    if not bound:
        raise ConfigError(
            'a worker needs handlers, for example Worker(handlers={"email:send": send_email}, ...)'
        )
    return bound


def _rows(handlers: Handlers) -> Iterable[tuple[str, object, Handler]]:
    if isinstance(handlers, Mapping):
        return ((name, None, run) for name, run in handlers.items())
    return ((entry.job_type.name, entry.job_type.model, entry.handler) for entry in handlers)
