"""Running the whole contract, and what it came to."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

from .checks import CONTRACT, odd_keys_are_kept_apart
from .processes import PROCESS_CONTRACT
from .steps import Check, ContractViolation, Factory, Races


@dataclass(frozen=True, slots=True)
class ContractReport:
    """What a backend has passed, in order; `races` counts the conditional writes of the checks that raced."""

    passed: tuple[str, ...]
    races: Mapping[str, Races]
    skipped: tuple[str, ...] = ()
    """The checks with several processes, if the factory cannot be sent to another process."""
    merged: tuple[str, ...] = ()
    """What was declared to be taken for something else in a key, and so was not tried."""

    def __str__(self) -> str:
        width = max(map(len, (*self.passed, *self.skipped)))
        lines = []
        for name in self.passed:
            races = self.races.get(name)
            counts = f"  {races}" if races else ""
            lines.append(f"passed   {name.ljust(width)}{counts}".rstrip())
        lines += [f"declared keys with {part!r} are not kept apart" for part in self.merged]
        lines += [f"skipped  {name.ljust(width)}  the factory cannot be pickled" for name in self.skipped]
        return "\n".join(lines)


async def verify_backend(
    factory: Factory, *, check_timeout: float = 120.0, merged: Collection[str] = ()
) -> ContractReport:
    """Run every check of `CONTRACT`, and those of `PROCESS_CONTRACT` if pickle takes the factory.

    `check_timeout`: seconds that one check may take. `merged`: what the store is known to take for something else in
    a key, such as `//` for `/`; no key with it is tried. Raises `ContractViolation` for the first check that fails,
    or does not end in time. Whatever else the backend raises passes through.
    """
    can_be_sent = _can_be_pickled(factory)
    passed: list[str] = []
    races: dict[str, Races] = {}
    for check in (*CONTRACT, *(PROCESS_CONTRACT if can_be_sent else ())):
        name = check.__name__
        run: Check = (
            partial(odd_keys_are_kept_apart, merged=merged) if check is odd_keys_are_kept_apart else check
        )
        try:
            async with asyncio.timeout(check_timeout) as timer:
                counted = await run(factory)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise ContractViolation(f"{name}: it did not end within {check_timeout} s") from error
        except ContractViolation as error:
            raise ContractViolation(f"{name}: {error.message}") from error
        passed.append(name)
        if counted is not None:
            races[name] = counted
    skipped = () if can_be_sent else tuple(check.__name__ for check in PROCESS_CONTRACT)
    return ContractReport(tuple(passed), races, skipped, tuple(merged))


def _can_be_pickled(factory: Factory) -> bool:
    try:
        pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True
