"""Whether anybody listens at a leader's address: the one question that is asked of it directly."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import TypeAlias

from .addresses import host_and_port


class Reached(Enum):
    """What came of a try to connect."""

    YES = auto()
    """Somebody listens there."""
    REFUSED = auto()
    """The machine is there, and says that nobody listens."""
    UNCLEAR = auto()
    """Anything else. It says nothing of the leader."""


Connect: TypeAlias = Callable[[str], Awaitable[Reached]]
"""Tries to connect to an advertised address once. It may be cancelled."""


async def connect(address: str) -> Reached:
    """Open a TCP connection to an advertised address, and close it.

    A name may have several addresses: one that answers is enough, and all must refuse.
    """
    place = host_and_port(address)
    if place is None:
        return Reached.UNCLEAR
    try:
        found = await asyncio.get_running_loop().getaddrinfo(*place, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return Reached.UNCLEAR
    results = set()
    for family, kind, protocol, _, there in found:
        result = await _connect(family, kind, protocol, there)
        if result is Reached.YES:
            return result
        results.add(result)
    return Reached.REFUSED if results == {Reached.REFUSED} else Reached.UNCLEAR


async def _connect(family: int, kind: int, protocol: int, there: tuple[object, ...]) -> Reached:
    try:
        with socket.socket(family, kind, protocol) as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, there)
    except ConnectionRefusedError:
        return Reached.REFUSED
    except OSError:
        return Reached.UNCLEAR
    return Reached.YES
