"""The checks that need a store which fails on command: what a backend says of a write that went wrong.

A backend must never call a write a conflict unless it surely was one, and must send it only once: a second try
that meets the first one's success would report a conflict that never was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final, Protocol

from ..backend import StorageBackend
from ..errors import CASConflictError, StorageBackendError
from .steps import ContractViolation, Factory, holds, lands, must_find, opened, require

KEY: Final = "contract/faults"

LONGEST: Final = 30.0
"""Seconds within which a backend must give up on a store that does not answer."""


class WriteFault(Enum):
    """What befalls one write request; the second word says whether it still has its effect."""

    DROPPED_BEFORE = ("the connection closed without an answer", False)
    DROPPED_AFTER = ("the answer got lost", True)
    INTERNAL_ERROR_BEFORE = ("the status 500", False)
    INTERNAL_ERROR_AFTER = ("the status 500, though applied", True)
    UNAVAILABLE_BEFORE = ("the status 503", False)
    UNAVAILABLE_AFTER = ("the status 503, though applied", True)
    THROTTLED = ("the status 429", False)
    CONFLICTING_OPERATION = ("the status 409 of a store that is busy with another write of the object", False)
    SILENT_BEFORE = ("no answer", False)
    SILENT_AFTER = ("no answer, though applied", True)

    def __init__(self, what: str, is_applied: bool) -> None:
        self.what = what
        self.is_applied = is_applied


class FaultInjector(Protocol):
    """Has the store fail. `faults` are those that it can bring about."""

    faults: frozenset[WriteFault]

    def fail_next_write(self, fault: WriteFault) -> None:
        """Have the next write request meet this fault; all later ones are served."""
        ...

    def writes(self) -> int:
        """Return how many write requests have reached the store."""
        ...


FaultCheck = Callable[[Factory, FaultInjector, WriteFault], Awaitable[None]]


async def verify_faults(factory: Factory, injector: FaultInjector) -> None:
    """Run every check of `FAULT_CONTRACT` with every fault of the injector.

    Raises `ContractViolation` for the first that fails. The factory's backends should have a short timeout.
    """
    for fault in sorted(injector.faults, key=lambda fault: fault.name):
        for check in FAULT_CONTRACT:
            try:
                await check(factory, injector, fault)
            except ContractViolation as error:
                raise ContractViolation(f"{check.__name__}: after {fault.what}: {error.message}") from error


async def failed_write_is_never_called_a_conflict(
    factory: Factory, injector: FaultInjector, fault: WriteFault
) -> None:
    """A write that met a fault raises what leaves its outcome open, was sent once, and can be resolved."""
    async with opened(factory, KEY) as (store,):
        version = await lands(store.create(KEY, b"old"), "a create of a missing object")
        sent = injector.writes()
        injector.fail_next_write(fault)
        await _fails(store.write(KEY, b"new", version), fault)
        require(injector.writes() == sent + 1, f"a write was sent {injector.writes() - sent} times")
        await holds(store, KEY, b"new" if fault.is_applied else b"old")
        await _goes_on(store)


async def failed_create_is_never_called_a_conflict(
    factory: Factory, injector: FaultInjector, fault: WriteFault
) -> None:
    """The same of a create."""
    async with opened(factory, KEY) as (store,):
        sent = injector.writes()
        injector.fail_next_write(fault)
        await _fails(store.create(KEY, b"new"), fault)
        require(injector.writes() == sent + 1, f"a create was sent {injector.writes() - sent} times")
        if fault.is_applied:
            await holds(store, KEY, b"new")
        else:
            require(await store.read(KEY) is None, "a create without effect left an object")
            await lands(store.create(KEY, b"old"), "a create of a missing object")
        await _goes_on(store)


async def write_cancelled_in_a_fault_passes_on_the_cancellation(
    factory: Factory, injector: FaultInjector, fault: WriteFault
) -> None:
    """A write that is cancelled while the store is silent ends at once, and the backend stays usable."""
    if fault not in (WriteFault.SILENT_BEFORE, WriteFault.SILENT_AFTER):
        return
    async with opened(factory, KEY) as (store,):
        version = await lands(store.create(KEY, b"old"), "a create of a missing object")
        sent = injector.writes()
        injector.fail_next_write(fault)
        async with asyncio.timeout(LONGEST), asyncio.TaskGroup() as group:
            writing = group.create_task(store.write(KEY, b"new", version))
            while injector.writes() == sent:
                await asyncio.sleep(0.001)
            writing.cancel()
            done, _ = await asyncio.wait((writing,), timeout=5)
        require(bool(done) and writing.cancelled(), "a cancelled write did not end as cancelled within 5 s")
        await holds(store, KEY, b"new" if fault.is_applied else b"old")
        await _goes_on(store)


async def _fails(write: Awaitable[str], fault: WriteFault) -> None:
    try:
        async with asyncio.timeout(LONGEST):
            await write
    except CASConflictError as error:
        raise ContractViolation("it was called a conflict") from error
    except TimeoutError as error:
        raise ContractViolation(f"no end within {LONGEST:g} s") from error
    except StorageBackendError as error:
        is_honest = error.outcome == "unknown" or (error.outcome == "not_applied" and not fault.is_applied)
        require(is_honest, f"its outcome was called {error.outcome}")
    except Exception as error:
        raise ContractViolation(f"{type(error).__name__} instead of StorageBackendError") from error
    else:
        raise ContractViolation("it was called a success")


async def _goes_on(store: StorageBackend) -> None:
    version = (await must_find(store, KEY)).version
    await lands(store.write(KEY, b"next", version), "a write on the right version, after the fault,")
    await holds(store, KEY, b"next")


FAULT_CONTRACT: Final[tuple[FaultCheck, ...]] = (
    failed_write_is_never_called_a_conflict,
    failed_create_is_never_called_a_conflict,
    write_cancelled_in_a_fault_passes_on_the_cancellation,
)
