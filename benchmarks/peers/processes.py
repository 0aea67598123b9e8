"""Child processes: started on free ports, waited for, read line by line, and ended by pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

_PATIENCE: Final = 30.0
"""Seconds for a server to answer, and for a process to end before it is killed."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port of the loopback that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


class Child:
    """A process that is asked and answers in lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    def say(self, line: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def line(self, timeout: float = _PATIENCE) -> str:
        """Return the next line that it prints."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"process {self.pid} ended without an answer")
        return line.decode().rstrip("\n")

    async def ended(self) -> None:
        """Wait until it has ended by itself. Raises `RuntimeError` if it failed."""
        async with asyncio.timeout(_PATIENCE):
            status = await self._process.wait()
        if status:
            raise RuntimeError(f"process {self.pid} ended with status {status}")

    async def stop(self, number: signal.Signals) -> None:
        """End the process, and wait for its end."""
        if self.has_ended:
            return
        self._process.send_signal(number)
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def running(
    *command: str | Path,
    stop_signal: signal.Signals = signal.SIGTERM,
    log: Path | None = None,
    **options: Any,
) -> AsyncIterator[Child]:
    """Run a program while the context is open. What it prints can be read, or goes to the file `log`.

    `options` are those of `subprocess.Popen`.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600) if log else asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output if log else None,
            start_new_session=True, **options,
        )  # fmt: skip  # of its own session: Ctrl-C reaches this program only, which ends the others in order
    finally:
        if log:
            os.close(output)
    child = Child(process)
    try:
        yield child
    finally:
        await child.stop(stop_signal)


@contextlib.asynccontextmanager
async def running_module(
    *arguments: str, stop_signal: signal.Signals = signal.SIGTERM
) -> AsyncIterator[Child]:
    """Run a Python module while the context is open."""
    async with running(sys.executable, "-m", *arguments, stop_signal=stop_signal) as child:
        yield child


async def wait_until_it_answers(child: Child, port: int, log: Path, asked: bytes, answer: bytes) -> None:
    """Wait until a server on the loopback answers as it does when it is ready."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(asked)
                    if (await reader.read(len(answer))) == answer:
                        return
                finally:
                    writer.close()
            if child.has_ended:
                raise RuntimeError(f"a server did not start: {_end_of(log)}")
            await asyncio.sleep(0.02)  # another process: there is nothing to wait on but its port


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def cpu_seconds_of_tree(pid: int) -> float:
    """Return the CPU time of a process and all below it, also those that ended, in steps of 10 ms."""
    times: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            times[int(folder.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    members, last = {pid}, set[int]()
    while members != last:
        last, members = members, members | {one for one, (parent, _) in times.items() if parent in members}
    return sum(times[one][1] for one in members if one in times) / _TICKS
