"""`python -m osqueue_storage.contract URL`: does this store do what a queue needs?"""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial

from ..errors import ConfigError, OsqueueError, StorageBackendError
from ..memory import MemoryBackend
from ..url import open_storage
from .report import verify_backend
from .steps import Factory


def main() -> int:
    """Run the contract on a storage URL; return the exit status: 2 where it was never tried."""
    options = _parser().parse_args()
    try:
        factory = _factory(options.url)
        asyncio.run(_reach(factory))
    except (ConfigError, StorageBackendError) as error:
        return _failed(error, 2)
    try:
        print(asyncio.run(verify_backend(factory, merged=options.merged)))
    except OsqueueError as error:
        return _failed(error, 1)
    return 0


async def _reach(factory: Factory) -> None:
    """Ask for something that only a store gives that is there, and has the bucket."""
    async with factory() as storage:
        async for _ in storage.list("contract/missing"):
            pass


def _failed(error: OsqueueError, status: int) -> int:
    print(f"{error.tag}: {error.message}", file=sys.stderr)
    return status


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
