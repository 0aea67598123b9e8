"""Runs a broker until Ctrl-C, in memory or on the storage that a URL such as file:./data names."""

import argparse
import asyncio
import sys

from osqueue_broker import BrokerServer, open_storage
from osqueue_client import OsqueueError


async def main(storage_url: str, port: int) -> None:
    async with open_storage(storage_url) as storage:
        server = BrokerServer(storage=storage, host="0.0.0.0", port=port)
        await server.run(on_started=lambda: print(f"Broker listening on {server.address}", flush=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storage", nargs="?", default="memory:", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    options = parser.parse_args()
    try:
        asyncio.run(main(options.storage, options.port))
    except OsqueueError as error:
        sys.exit(f"{error.tag}: {error.message}")
    except OSError as error:
        sys.exit(f"cannot listen on port {options.port} (try --port): {error.strerror}")
