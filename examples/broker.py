"""Runs a broker. Usage: python broker.py [STORAGE_URL], by default in memory."""

import asyncio
import contextlib
import sys

from osqueue_broker import BrokerServer, open_storage


async def main() -> None:
    storage = open_storage(sys.argv[1] if len(sys.argv) > 1 else "memory:")
    async with storage, BrokerServer(storage=storage, host="0.0.0.0", port=8080) as server:
        print(f"Broker listening on {server.address}", flush=True)
        await server.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
