"""The user's hooks: called beside the job, which they must not change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from osqueue_client import Job

from .logs import log

JobHook: TypeAlias = Callable[[Job], Awaitable[None] | None]
FailureHook: TypeAlias = Callable[[Job, BaseException], Awaitable[None] | None]

INTERRUPTS: Final = (KeyboardInterrupt, GeneratorExit)
"""What of the user's code ends the program and not only a job."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is called when a job was claimed, was completed, or had an attempt that failed."""

    on_claimed: JobHook | None
    on_completed: JobHook | None
    on_failed: FailureHook | None

    async def claimed(self, job: Job) -> None:
        await _call(self.on_claimed, job)

    async def completed(self, job: Job) -> None:
        await _call(self.on_completed, job)

    async def failed(self, job: Job, error: BaseException) -> None:
        await _call(self.on_failed, job, error)


async def _call(hook: Callable[..., Awaitable[None] | None] | None, job: Job, *args: object) -> None:
    """Call a hook. What it raises is logged: it must not change how the job ends."""
    if hook is None:
        return
    try:
        result = hook(job, *args)
        if result is not None:
            await result
    except asyncio.CancelledError as error:
        if is_being_cancelled():
            raise
        _log_failure(hook, job, error)
    except INTERRUPTS:
        raise
    except BaseException as error:  # noqa: BLE001  # logged
        _log_failure(hook, job, error)


def _log_failure(hook: object, job: Job, error: BaseException) -> None:
    name = getattr(hook, "__qualname__", type(hook).__qualname__)
    text = f"goes on after its hook {name} failed"
    log(logging.ERROR, "hook_failed", text, job=job, error=error, has_traceback=True)


def is_being_cancelled() -> bool:
    """Whether a `CancelledError` is meant for this task, and not come out of something that it waited for."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
