"""A server in a process of its own, and the loads that are put on it, each a process, too."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LONGEST_LOAD = 200.0


class Server:
    """A process of servers.py, ready once this is made."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "servers.py", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        line = self._line()
        if not line.startswith("listening "):
            self.stop()
            raise RuntimeError(f"the server did not start: {' '.join(arguments)}")
        self._port = int(line.split()[1])

    def load(
        self, transport: str, clients: int, phases: tuple[str, ...], **options: Any
    ) -> list[dict[str, Any]]:
        """Put a load of load.py on the server; return what each phase came to."""
        found: list[dict[str, Any]] = self._run(
            "load.py", transport=transport, clients=clients, phases=phases, **options
        )
        return found

    def pick_up(self, transport: str, **options: Any) -> dict[str, Any]:
        """Return what pickup.py found on the server."""
        found: dict[str, Any] = self._run("pickup.py", transport=transport, **options)
        return found

    def meters(self) -> dict[str, float]:
        """Return what the broker's meters have found since the last call (meters.py)."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._line())
        return found

    def memory(self, name: str = "VmRSS") -> int:
        """Return the bytes of memory that the process holds, or with `VmHWM` the most it has ever held."""
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self._process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def stop(self) -> None:
        """End the process. Safe twice."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def kill(self) -> None:
        """End the process as a power cut would."""
        self._process.kill()
        self._process.communicate()

    def led_at(self) -> float:
        """Return when a standby has begun to lead, as `time.monotonic()` has it; wait for it."""
        word, at = self._line().split()
        assert word == "leading"
        return float(at)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _run(self, program: str, **options: Any) -> Any:
        described = json.dumps({"port": self._port, "pid": self._process.pid} | options)
        command = [sys.executable, str(HERE / program), described]
        return json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=LONGEST_LOAD).stdout
        )


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    """Run a server while the context is open."""
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.stop()
