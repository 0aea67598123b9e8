"""Importing what the broker takes from the client loads none of the client's own libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("httpx", "pyqwest", "websockets", "connectrpc", "starlette", "uvicorn")


@pytest.mark.parametrize("module", ["osqueue_client.operations", "osqueue_client.errors", "osqueue_client"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == []
