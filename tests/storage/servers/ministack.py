"""ministack as an S3 server: a second dialect of S3, in Python; it keeps the objects in memory."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.servers.process import free_ports, running


@dataclass(frozen=True, slots=True)
class Ministack:
    """A running server: what a client connects with. It takes any credentials."""

    endpoint_url: str
    access_key_id: str = "ministack-for-tests"
    secret_access_key: str = "not-a-secret-of-anybody"


@contextlib.contextmanager
def ministack(folder: Path) -> Iterator[Ministack]:
    """Run a server; there are no buckets in it yet. `folder`: for its log."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    env = {
        "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3", "IOT_MTLS_ENABLED": "0",
        "TMPDIR": str(folder), "HOME": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "ministack"]
    with running(command, port=port, log=folder / "ministack.log", env=env):
        yield Ministack(f"http://127.0.0.1:{port}")
