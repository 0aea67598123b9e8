"""`python -m osqueue_storage.contract URL`: does this store do what a queue needs?"""

from __future__ import annotations

import argparse
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
    options = _parser().parse_args()
    try:
        print(asyncio.run(verify_backend(_factory(options.url), merged=options.merged)))
    except OsqueueError as error:
        print(f"{error.tag}: {error.message}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m osqueue_storage.contract",
        description="Does this store do what a queue needs? Writes, overwrites and deletes keys below contract/, about "
        "40 MB in all.",
    )
    parser.add_argument(
        "url", metavar="URL", help="a storage URL, such as s3://bucket/prefix?region=eu-central-1"
    )
    parser.add_argument(
        "--merged", metavar="PART", action="append", default=[],
        help="what the store is known to take for something else in a key, such as // for /: no key with it is tried",
    )  # fmt: skip
    return parser


def _factory(url: str) -> Factory:
    storage = open_storage(url)
    if isinstance(storage, MemoryBackend):  # another one would be another store
        return lambda: storage
    return partial(open_storage, url)


if __name__ == "__main__":
    sys.exit(main())
