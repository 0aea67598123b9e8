"""Running the whole contract, and what it came to."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping
from dataclasses import dataclass

from .checks import CONTRACT
from .processes import PROCESS_CONTRACT
from .steps import ContractViolation, Factory, Races


@dataclass(frozen=True, slots=True)
class ContractReport:
    """What a backend has passed, in order; `races` counts the conditional writes of the checks that raced."""

    passed: tuple[str, ...]
    races: Mapping[str, Races]
    skipped: tuple[str, ...] = ()
    """The checks with several processes, if the factory cannot be sent to another process."""

    def __str__(self) -> str:
        width = max(map(len, (*self.passed, *self.skipped)))
        lines = []
        for name in self.passed:
            races = self.races.get(name)
            counts = f"  {races.wins} won, {races.losses} conflicted" if races else ""
            lines.append(f"passed   {name.ljust(width)}{counts}".rstrip())
        lines += [f"skipped  {name.ljust(width)}  the factory cannot be pickled" for name in self.skipped]
        return "\n".join(lines)


async def verify_backend(factory: Factory, *, check_timeout: float = 120.0) -> ContractReport:
    """Run every check of `CONTRACT`, and those of `PROCESS_CONTRACT` if pickle takes the factory.

    `check_timeout`: seconds that one check may take. Raises `ContractViolation` for the first check that fails,
    or does not end in time. Whatever else the backend raises passes through.
    """
    can_be_sent = _can_be_pickled(factory)
    passed: list[str] = []
    races: dict[str, Races] = {}
    for check in (*CONTRACT, *(PROCESS_CONTRACT if can_be_sent else ())):
        name = check.__name__
        try:
            async with asyncio.timeout(check_timeout) as timer:
                counted = await check(factory)
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
    return ContractReport(tuple(passed), races, skipped)


def _can_be_pickled(factory: Factory) -> bool:
    try:
        pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True
