"""The worker in a process of its own: python -m peers.worker SYSTEM URL [JOBS SECONDS]

With JOBS and SECONDS it measures a drain, without them the pick-up of each job (see `meter`).
"""

from __future__ import annotations

import sys

from .meter import Drain, pick_up
from .system import system_of


def main() -> None:
    """Work until the process is ended."""
    name, url, *limits = sys.argv[1:]
    mark = Drain(int(limits[0]), float(limits[1])).mark if limits else pick_up
    system_of(name).work(url, mark)


if __name__ == "__main__":
    main()
