"""A Redis server of our own that keeps what it has acknowledged."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from .processes import free_port, running, wait_until_it_answers
from .system import MissingServerError, Service


@contextlib.asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[Service]:
    """Run a server: each write is in the append-only file, and synced, before it is acknowledged."""
    program = shutil.which("redis-server")
    if program is None:
        raise MissingServerError("Redis: install the Debian package redis-server")
    port, log = free_port(), folder / "log"
    settings = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
    place = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--daemonize", "no")
    async with running(program, *place, *settings, log=log) as child:
        await wait_until_it_answers(child, port, log, b"PING\r\n", b"+PONG\r\n")
        yield Service(f"redis://127.0.0.1:{port}/0", child.pid)
