"""The simulator finds each defect of its table, within the stated number of seeds."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from simulation.mutants import MUTANTS, kill
from simulation.program import simulate


@pytest.mark.timeout(900)  # as long as that takes on a machine with much else to do
def test_every_mutant_is_killed(tmp_path: Path) -> None:
    def run(place: int) -> bool:
        is_dead, _ = kill(MUTANTS[place], tmp_path / str(place))
        return is_dead

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        killed = list(threads.map(run, range(len(MUTANTS))))
    alive = [mutant.name for mutant, is_dead in zip(MUTANTS, killed, strict=True) if not is_dead]
    assert not alive


@pytest.mark.timeout(600)
def test_without_a_defect_the_same_seeds_show_nothing() -> None:
    done = simulate("--first", "0", "--seeds", str(max(mutant.seeds for mutant in MUTANTS)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_enough_mutants_and_no_two_are_the_same() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 18
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
