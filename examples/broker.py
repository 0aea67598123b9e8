"""Runs a broker. Usage: python broker.py [STORAGE_URL], by default in memory."""

import asyncio
import sys

from osqueue_broker import BrokerServer, open_storage


async def main() -> None:
    async with open_storage(sys.argv[1] if len(sys.argv) > 1 else "memory:") as storage:
        async with BrokerServer(storage=storage, host="0.0.0.0", port=8080) as server:
            print(f"Broker listening on {server.address}", flush=True)
            await server.wait()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
