"""`python -m osqueue_storage.contract URL`: does this store do what a queue needs?"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from ..errors import OsqueueError
from ..memory import MemoryBackend
from ..url import open_storage
from .report import verify_backend
from .steps import Factory


def main() -> int:
    """Run the contract on a storage URL; return the exit status."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(
            "usage: python -m osqueue_storage.contract URL\n\n"
            "Writes, overwrites and deletes keys below contract/ on the store, about 40 MB in all.",
            file=sys.stderr,
        )
        return 2
    try:
        print(asyncio.run(verify_backend(_factory(sys.argv[1]))))
    except OsqueueError as error:
        print(f"{error.tag}: {error.message}", file=sys.stderr)
        return 1
    return 0


def _factory(url: str) -> Factory:
    storage = open_storage(url)
    if isinstance(storage, MemoryBackend):  # another one would be another store
        return lambda: storage
    return partial(open_storage, url)


if __name__ == "__main__":
    sys.exit(main())
