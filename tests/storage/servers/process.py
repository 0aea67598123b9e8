"""A server program of somebody else, run as a child process on free loopback ports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Return that many ports of the loopback that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    port: int,
    log: Path,
    env: Mapping[str, str] | None = None,
    seconds: float = 30.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until it listens on `port`, and end it, with all its children, when the context ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_until_it_listens(process, port, log, time.monotonic() + seconds)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGKILL) -> None:
    """End a program and all its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait(timeout=10)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path, until: float) -> None:
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{process.args!r} does not listen on {port}: {log.read_text()[-2000:]}")
        time.sleep(0.02)  # another process: there is nothing to wait on but its port
