"""A PostgreSQL server of our own, as initdb sets it up: `fsync` and `synchronous_commit` on."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from .processes import free_port, running, wait_until_it_answers
from .system import MissingServerError, Service

_USER: Final = "postgres"
_PARAMETERS: Final = b"user\0postgres\0database\0postgres\0\0"
_START: Final = struct.pack(">II", 8 + len(_PARAMETERS), 3 << 16) + _PARAMETERS
"""How a connection begins: the answer starts with R (authentication) when the server is up, with E before."""


@contextlib.asynccontextmanager
async def postgres_server(folder: Path) -> AsyncIterator[Service]:
    """Run a server with one database, `postgres`, that any user of this machine may open."""
    programs = _programs()
    account = _account(folder)
    data, log, port = folder / "data", folder / "log", free_port()
    setup = (
        programs / "initdb",
        "-D",
        data,
        "-U",
        _USER,
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-locale",
        "--no-sync",
    )
    async with running(*setup, log=log, cwd=folder, **account) as initdb:
        await initdb.ended()
    settings = ("fsync=on", "synchronous_commit=on", "full_page_writes=on", "listen_addresses=127.0.0.1",
                f"port={port}", "unix_socket_directories=")  # fmt: skip
    options = [part for setting in settings for part in ("-c", setting)]
    # SIGINT is its fast shutdown: SIGTERM would wait for clients.
    async with running(
        programs / "postgres", "-D", data, *options, log=log, cwd=folder, stop_signal=signal.SIGINT, **account
    ) as child:
        await wait_until_it_answers(child, port, log, _START, b"R")
        yield Service(f"postgresql://{_USER}@127.0.0.1:{port}/postgres", child.pid)


def _programs() -> Path:
    """Return the folder of the newest server; Debian keeps it off the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not versions:
        raise MissingServerError("PostgreSQL: install the Debian package postgresql")
    return max(versions, key=lambda path: int(path.parent.name))


def _account(folder: Path) -> dict[str, Any]:
    """Return as whom to run, who then owns the folder: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam(_USER)
    except KeyError:
        raise MissingServerError(f"PostgreSQL: root may not run it, and there is no user {_USER}") from None
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
