"""Brokers, free ports and waits for the tests of the client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from osqueue_client.transports import Transport, open_transport
from osqueue_client.transports.connect import ConnectTransport

TRANSPORTS = ("rest", "ws", "connect-proto", "connect-json")


def transport_to(name: str, url: str) -> Transport:
    """A transport of this name to the broker at `url`."""
    match name:
        case "rest" | "ws":
            return open_transport(name, url)
        case "connect-proto":
            return ConnectTransport(url)
        case _:
            return ConnectTransport(url, codec="json")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait, bounded, for something that another task brings about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
