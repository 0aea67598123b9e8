"""Run seeds: `make simulate SEEDS=10000`, or one again with `make simulate REPLAY=17`.

What is where:

* `loop.py`: an event loop in virtual time; the processes on it can be killed and paused, and have their own clocks
* `world.py`: chance, the faults of the moment, ids, clocks
* `store.py`, `network.py`: a store and a network that lose, delay and double what they are given
* `brokers.py`, `programs.py`, `foreign.py`: processes of the real code, clients that send no ids,
  a broker of another make
* `run.py`: one run: the plan that a seed stands for, what goes wrong, and the calm in which all work must end
* `history.py`: what a run leaves behind; `documents.py`, `evidence.py`: the same, read
* `entries.py`: batches, taken apart into the single calls that their entries stand for
* `checker.py`: whether all of that is as promised, and why that is enough; `causes.py` for what commits did,
  `answers.py` for what brokers answered
* `mutants.py`: the defects that must be found

A seed decides everything, so a failing one is replayed as it was, on the same code.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from functools import partial

from .run import Verdict, run_seed

CHUNK = 25
"""Seeds that one process runs: it keeps all of them in memory."""


def main() -> int:
    """Run what is asked for; return the exit status."""
    options = _options()
    if options.replay is not None:
        verdict = run_seed(options.replay, distrust=options.distrust)
        print("\n".join(verdict.lines()))
        _report(verdict)
        return 1 if verdict.violations else 0
    began_at = time.monotonic()
    print(f"seeds {options.first} to {options.first + options.seeds - 1}, {options.processes} processes")
    failed = landings = calls = errors = 0
    hours = 0.0
    for verdict in run_seeds(
        options.first,
        options.seeds,
        options.processes,
        stops=options.stop_at_first,
        distrust=options.distrust,
    ):
        landings += verdict.landings
        calls += verdict.calls
        errors += verdict.errors
        hours += verdict.seconds / 3600
        if not verdict.violations:
            continue
        failed += 1
        _report(verdict)
        if failed <= options.show:
            print("\n".join(verdict.around()))
        if options.stop_at_first:
            break
    took = time.monotonic() - began_at
    print(
        f"{options.seeds} seeds in {took:.1f} s: {calls} calls ({errors} of our clients' in vain), {landings} commits, "
        f"{hours:.1f} simulated hours, {failed} seeds with violations"
    )
    return 1 if failed else 0


def run_seeds(
    first: int, count: int, processes: int, *, stops: bool = False, distrust: bool = False
) -> Iterator[Verdict]:
    """Run so many seeds on several processes; yield their verdicts in order, `stops`: to the first that fails."""
    chunks = [range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK)]
    context = multiprocessing.get_context("fork")
    # A process for each chunk: it ends by os._exit, so that nothing that was killed ever goes on.
    with context.Pool(processes, maxtasksperchild=1) as pool:
        for verdicts in pool.imap(partial(_run_chunk, stops=stops, distrust=distrust), chunks):
            yield from verdicts


def _run_chunk(seeds: range, *, stops: bool, distrust: bool) -> list[Verdict]:
    verdicts = []
    for seed in seeds:
        verdict = run_seed(seed, distrust=distrust)
        if not verdict.violations:
            verdict.trace.clear()
        verdicts.append(verdict)
        if stops and verdict.violations:
            break
    return verdicts


def _report(verdict: Verdict) -> None:
    print(f"\nseed {verdict.seed}: {len(verdict.violations)} violations")
    for violation in verdict.violations[:10]:
        print(f"  {violation}")
    if verdict.violations:
        print(f"replay: make simulate REPLAY={verdict.seed}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simulation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--show", type=int, default=3, help="failing seeds to show the history of")
    parser.add_argument("--stop-at-first", action="store_true", help="end at the first failing seed")
    parser.add_argument("--replay", type=int, help="run this one seed, and print its whole history")
    parser.add_argument(
        "--distrust", action="store_true", help="take a commit for a violation, to see a report"
    )
    return parser.parse_args()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # nothing of what was killed may go on now
