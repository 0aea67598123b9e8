"""Some hundred fresh seeds at each run of the tests. `make simulate` runs thousands.

The first seed is printed, and `OSQUEUE_SIMULATION_SEED` runs the same ones again; `OSQUEUE_SIMULATION_SEEDS` says how
many.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from simulation.program import simulate

SEEDS = int(os.environ.get("OSQUEUE_SIMULATION_SEEDS", "150"))
FIRST = int(
    os.environ.get("OSQUEUE_SIMULATION_SEED", random.SystemRandom().randrange(1_000_000, 1_000_000_000))
)


@pytest.mark.timeout(60 + SEEDS)
def test_no_promise_is_broken_under_faults(tell: Callable[[str], None]) -> None:
    done = simulate("--first", str(FIRST), "--seeds", str(SEEDS))
    tell(f"OSQUEUE_SIMULATION_SEED={FIRST}: {done.stdout.strip().splitlines()[-1]}")
    assert done.returncode == 0, (
        f"OSQUEUE_SIMULATION_SEED={FIRST} OSQUEUE_SIMULATION_SEEDS={SEEDS}\n{done.stdout}{done.stderr}"
    )


def test_a_failing_seed_says_how_to_replay_it_and_what_happened() -> None:
    done = simulate("--first", "0", "--seeds", "1", "--distrust")
    assert done.returncode == 1
    assert "make simulate REPLAY=0" in done.stdout
    assert "landed #" in done.stdout
