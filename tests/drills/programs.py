"""Programs that a drill starts, and the lines that they print."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

LISTENING = re.compile(r"Broker listening on 127\.0\.0\.1:(\d+)")


class Program:
    """A Python program that runs, and the lines that it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def port(self) -> str:
        """Return the port in the line that a broker prints when it listens."""
        line = await self.line()
        found = LISTENING.fullmatch(line)
        assert found is not None, line
        return found[1]

    async def end(self, number: int, seconds: float = 20.0) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        async with asyncio.timeout(seconds):
            return await self.process.wait()


def obey_ctrl_c() -> None:
    # A test run in the background of a shell ignores SIGINT, and so would its children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@asynccontextmanager
async def running(
    *arguments: str, cwd: Path, stderr: int = asyncio.subprocess.DEVNULL
) -> AsyncIterator[Program]:
    """Run a Python program, and kill it when the context ends if it has not ended by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=stderr,
        preexec_fn=obey_ctrl_c,
    )  # fmt: skip
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(*arguments: str, cwd: Path) -> tuple[int | None, str, str]:
    """Run a program that ends by itself; return its exit status, output, and standard error."""
    async with running(*arguments, cwd=cwd, stderr=asyncio.subprocess.PIPE) as program:
        async with asyncio.timeout(30):
            out, err = await program.process.communicate()
        return program.process.returncode, out.decode(), err.decode()
