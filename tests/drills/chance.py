"""The random moments of a drill. With its seed it is repeated as well as a machine repeats itself."""

from __future__ import annotations

import os
import random


def seeded() -> random.Random:
    """Return chance, and print its seed: `DRILL_SEED=1234` uses it again."""
    seed = int(os.environ.get("DRILL_SEED") or random.randrange(2**32))
    print(f"DRILL_SEED={seed}")
    return random.Random(seed)
