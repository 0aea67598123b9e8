"""What the checks of the contract counted, store by store, as a table at the end of a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from osqueue_storage.contract import Check, Factory

RACES = "races of the contract"

Keep = Callable[[Check, Factory], Awaitable[None]]


@pytest.fixture
def keep(record_property: Callable[[str, object], None]) -> Keep:
    """Run a check of the contract, and record its wins, losses and unknown outcomes for the summary."""

    async def run(check: Check, factory: Factory) -> None:
        races = await check(factory)
        if races is not None:
            record_property(RACES, str(races))

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was recorded."""
    rows = [
        (report.nodeid.rpartition("/")[2], value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == RACES
    ]
    if rows:
        terminalreporter.section(RACES)
        for test, races in rows:
            terminalreporter.write_line(f"{test}  {races}")
