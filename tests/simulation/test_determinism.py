"""One seed is one run: else a failing seed could not be replayed."""

from __future__ import annotations

import pytest
from simulation.program import simulate


@pytest.mark.parametrize("seed", [1, 7, 11, 19, 42])
def test_a_seed_gives_the_same_trace_byte_for_byte_whatever_the_hash_seed(seed: int) -> None:
    first, second = (simulate("--replay", str(seed), hash_seed=hash_seed) for hash_seed in ("1", "2"))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.count("\n") > 50
    assert first.stdout == second.stdout


def test_two_seeds_give_two_traces() -> None:
    assert simulate("--replay", "1").stdout != simulate("--replay", "2").stdout
